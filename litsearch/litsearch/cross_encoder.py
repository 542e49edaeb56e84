"""Rerank a run with a cross-encoder: question and paper go through one model together, which gives a score.

    python -m litsearch.cross_encoder run=RUN.jsonl model=BAAI/bge-reranker-v2-m3 max_k=100

Any sequence classification model of transformers with one output (its logit is the score), or with two (the logit of
the second class less that of the first). Pairs are sorted by length and batched by tokens; a question's scores are on
disk before the next ones are computed, so a killed run goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tqdm import tqdm

from litsearch.keys import needs_full_paper, texts_of
from litsearch.locations import Benchmark, open_benchmark
from litsearch.reranked import check_output, input_digest, read_stage_input, reranked_run
from litsearch.runs import Run, write_run
from litsearch.transformer_embedder import (
    BATCH_TOKENS,
    check_choice,
    check_count,
    length_batches,
    on_all_cores,
)
from shared import InputError, hub
from shared.generation.fingerprint import model_fingerprint
from shared.launch import entrypoint
from shared.quiet import quiet_transformers
from shared.training import run_folder

log = logging.getLogger(__name__)


class CrossEncoder:
    """A sequence classification model that scores pairs.

    Args:
        model: local folder, name in sources.yaml, or hub id. dtype: what it computes in.
        max_length: tokens of question and paper together; the paper is cut. batch_tokens: of one forward pass.
    """

    def __init__(
        self,
        model: str,
        max_length: int = 512,
        dtype: str = "float32",
        batch_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        from transformers import AutoModelForSequenceClassification

        from shared.generation.prompts import load_tokenizer

        check_count("max_length", max_length)
        check_choice("dtype", dtype, ("float32", "bfloat16", "float16", "auto"))
        path = hub.model_path(model, "litsearch")
        try:
            with quiet_transformers():
                loaded, report = AutoModelForSequenceClassification.from_pretrained(
                    path, dtype=dtype, trust_remote_code=False, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"model={model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"model={model!r} lacks {missing[0]}, so its scores would be random: give a model that was trained to "
                "score pairs (a reranker or cross-encoder)"
            )
        if loaded.config.num_labels > 2:
            raise InputError(f"model={model!r} has {loaded.config.num_labels} classes; a score comes from one or two")
        positions = getattr(loaded.config, "max_position_embeddings", None)
        if positions is not None and max_length > positions:
            raise InputError(f"max_length={max_length} is more than the {positions} positions of {model}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.tokenizer = loaded.eval().to(self.device), load_tokenizer(path)
        self.name, self.max_length = Path(path).name if Path(model).is_dir() else model, max_length
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"model={model!r}: its tokenizer has no padding token")
        self.about = {"model": model_fingerprint(path), "max_length": max_length, "dtype": str(loaded.dtype)}

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """`(len(texts),)` float32, higher is better. Raises InputError for a score that is not a number."""
        pairs = self.tokenizer(
            [query] * len(texts), list(texts), truncation="only_second", max_length=self.max_length, verbose=False
        )
        rows = [{name: values[i] for name, values in pairs.items()} for i in range(len(texts))]
        scores = np.empty(len(texts), np.float32)

        def score(batch: list[int]) -> None:
            padded = self.tokenizer.pad([rows[i] for i in batch], return_tensors="pt").to(self.device)
            with torch.inference_mode():
                logits = self.model(**padded).logits.float()
            value = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            scores[batch] = value.cpu().numpy()

        batches = length_batches([len(row["input_ids"]) for row in rows], self.batch_tokens)
        on_all_cores(score, batches, self.device)
        if not np.isfinite(scores).all():
            raise InputError(f"model={self.name}: a score of {query!r} is not a number; try dtype=float32")
        return scores


class ScoreJournal:
    """A question's scores per line, appended as they come; the first line says what they depend on.

    Raises InputError for a file that belongs to something else or is in use.
    """

    def __init__(self, path: Path, binding: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.scores = self._read(path, json.loads(json.dumps(dict(binding))))
        except OSError:
            self._file.close()
            raise InputError(f"{path} is in use by another run: wait for it, or give another out=") from None
        except InputError:
            self._file.close()
            raise

    def _read(self, path: Path, binding: dict[str, Any]) -> dict[str, list[float]]:
        self._file.seek(0)
        found, end, header = {}, 0, None
        for line in self._file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None:
                break  # a torn end
            if header is None:
                header = record
            else:
                found[record["query"]] = record["scores"]
            end += len(line)
        if header is not None and header != binding:
            raise InputError(f"{path} belongs to another input, model or setting; give another out=, or delete it")
        self._file.truncate(end)
        if header is None:
            self._append(binding)
        return found

    def add(self, query: str, scores: np.ndarray) -> None:
        self.scores[query] = [float(score) for score in scores]
        self._append({"query": query, "scores": self.scores[query]})

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> ScoreJournal:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


@entrypoint(config_name="cross_encoder")
def main(cfg: DictConfig) -> None:
    rerank(cfg)


def rerank(cfg: DictConfig, console: Console | None = None) -> Path:
    """Do what the configuration says; the path of the new run."""
    if cfg.model is None:
        raise InputError("model is missing: name a cross-encoder, e.g. model=BAAI/bge-reranker-v2-m3")
    benchmark = open_benchmark(cfg.data, full_papers=False)
    run = read_stage_input(cfg.run, benchmark, cfg.max_k)
    key = (
        cfg.key.name
        if cfg.get("key")
        else (run.key if run.key in ("title_abstract", "full_paper") else "title_abstract")
    )
    model = CrossEncoder(cfg.model, **OmegaConf.to_container(cfg.encoder))
    name = cfg.name or Path(model.name).name
    folder = run_folder(cfg.paper, cfg.scale, cfg.experiment, cfg.output_dir)
    stem = run.path.name.removesuffix(".gz").removesuffix(".jsonl")
    out = Path(cfg.out).expanduser().resolve() if cfg.out is not None else folder / f"{stem}.cross-{name}.jsonl"
    about = {**model.about, "key": key, "input": input_digest(run, cfg.max_k), "max_k": cfg.max_k}
    check_output(out, about["input"], "cross_encoder")
    scores = score_run(run, benchmark, model, key, cfg.max_k, out.with_name(f"{out.stem}.scores.jsonl"), about)
    orders = [np.argsort(-np.array(values), kind="stable").tolist() for values in scores]
    ranked = [[values[i] for i in order] for values, order in zip(scores, orders, strict=True)]
    stage = f"cross-encoder:{name}"
    new = reranked_run(run, orders, cfg.max_k, cfg.keep_rest, stage, {"cross_encoder": about}, scores=ranked)
    write_run(out, new)
    (console or Console(soft_wrap=True)).print(f"run: {out}", highlight=False)
    return out


def score_run(
    run: Run, benchmark: Benchmark, model: CrossEncoder, key: str, max_k: int, journal: Path, about: Mapping[str, Any]
) -> list[list[float]]:
    """Scores of the first max_k papers of every question; what the journal holds is not computed again."""
    if key == "paragraphs":
        raise InputError("key=paragraphs: a cross-encoder scores title_abstract or full_paper")
    corpus = benchmark.corpus
    wanted = {corpusid for retrieved in run.retrieved for corpusid in retrieved[:max_k]}
    source = corpus.stream() if needs_full_paper(key) else corpus.papers
    texts = {paper.corpusid: texts_of(paper, key)[0] for paper in source if paper.corpusid in wanted}
    found = []
    with ScoreJournal(journal, about) as book:
        for record in tqdm(run.records, desc=model.name, unit=" questions", disable=None):
            query = record.query.query
            if query not in book.scores:
                book.add(query, model.scores(query, [texts[corpusid] for corpusid in record.retrieved[:max_k]]))
            found.append(book.scores[query])
    return found


if __name__ == "__main__":
    main()
