"""Wall time of one trial, prompt fine-tuning with demonstrations, against the release's way of running it.

    python lm-bff/bench/trial_speed.py              # SST-2 (872 test sentences) and MR (500 of 2,000), 16 draws each
    python lm-bff/bench/trial_speed.py --quick

A trial is 60 updates of batch 8, dev every 10, the best weights tested with 16 sets of demonstrations. Both sides get
the same model, split, embeddings, draws and order of examples, without dropout, and so end with the same metric. The
embeddings are made beforehand (the release has a script for that) and are not timed. The release's way:

* every prompt is tokenised piece by piece, for every draw anew, and padded to 128 or 256 tokens;
* the similarity of a query and a training example is one call per pair, for every draw anew;
* micro-batches of 2, accumulated; every row of the last layer, and the logits of the whole vocabulary; one optimiser
  call per parameter;
* the model is read from disk for the trial, the best weights are written to disk and read back;
* one draw after the other at test.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lm_bff import demonstrations
from lm_bff.batches import collate
from lm_bff.data import Example, Splits, class_numbers, load_splits
from lm_bff.label_words import label_words
from lm_bff.model import Pretrained
from lm_bff.model_names import model_folder
from lm_bff.optimizer import BiasCorrectedAfterEpsilon, linear_decay
from lm_bff.outcome import measure
from lm_bff.run import spread
from lm_bff.settings import TrialSettings
from lm_bff.similarity import embedder, text_of
from lm_bff.tasks import TASKS, Task
from lm_bff.template import Rendered, finish, parse
from lm_bff.training import run_trial
from shared import InputError
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
MICRO_BATCH, EVALUATION_BATCH = 2, 16


class UntiedMaskedLM(torch.nn.Module):
    """The encoder, and the head over the whole vocabulary at the mask, its decoder a copy of the word embeddings."""

    def __init__(self, folder: Path):
        super().__init__()
        model = AutoModelForMaskedLM.from_pretrained(folder)
        if not hasattr(model, "lm_head"):
            raise InputError(f"model={folder}: this benchmark knows RoBERTa's head only")
        self.encoder, self.head = model.base_model, model.lm_head
        self.head.decoder.weight = torch.nn.Parameter(self.head.decoder.weight.detach().clone())

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return self.head(hidden[torch.arange(len(hidden)), batch["mask_position"]])


class ReleaseTrial:
    """The release's algorithm for one prompt-demo trial."""

    def __init__(self, folder: Path, task: Task, splits: Splits, settings: TrialSettings):
        self.model = UntiedMaskedLM(folder)
        self.task, self.splits, self.settings = task, splits, settings
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.words = label_words(self.tokenizer, task.mapping, task.labels).ids
        self.template = demonstrations.layout(parse(task.template), len(task.labels), task.num_sentences)
        self.length = task.length_limit(True)
        self.support = splits.train
        self.classes = [task.context_class(example.label) for example in self.support]

    def run(self) -> float:
        rng = np.random.RandomState(self.settings.seed)
        (test,) = self.splits.test.values()
        dev_features, test_features = self.features(self.splits.dev, rng), self.features(test, rng)
        with tempfile.TemporaryDirectory() as folder:
            self.train(dev_features, Path(folder) / "best.safetensors")
        return self.score(test_features, test)

    def features(self, examples: Sequence[Example], rng: np.random.RandomState) -> list[list[Rendered]]:
        """All draws of all examples."""
        return [[self.feature(example, rng) for example in examples] for _ in range(self.settings.draws(self.task))]

    def feature(self, example: Example, rng: np.random.RandomState, own: int = -1) -> Rendered:
        left = self.filtered(example, own)
        found: dict[int, Example] = {}
        for place in rng.permutation(len(left)):
            found.setdefault(self.classes[left[place]], self.support[left[place]])
            if len(found) == len(self.task.labels):
                break
        sentences = [*example.sentences]
        for label in range(len(self.task.labels)):
            sentences += found[label].sentences
        return self.render(sentences)

    def filtered(self, example: Example, own: int) -> list[int]:
        from sentence_transformers.util import pytorch_cos_sim

        known = embedder(self.settings.filter).known
        query = known[text_of(example)]
        candidates = [index for index in range(len(self.support)) if index != own]
        scores = {i: float(pytorch_cos_sim(query, known[text_of(self.support[i])])[0][0]) for i in candidates}
        limit = demonstrations.filter_limit(len(candidates), len(self.task.labels))
        left, counts = [], dict.fromkeys(range(len(self.task.labels)), 0)
        for index in sorted(candidates, key=scores.__getitem__, reverse=True):
            if counts[self.classes[index]] < limit:
                left.append(index)
                counts[self.classes[index]] += 1
        return left

    def render(self, sentences: Sequence[str]) -> Rendered:
        # The library remembers texts that it has tokenised; the release does not.
        from lm_bff import template

        template._CACHES.clear()
        ids, segments = self.template.tokens(
            self.tokenizer,
            sentences,
            label_word_ids=self.words,
            first_sent_limit=self.task.first_sent_limit,
            other_sent_limit=self.task.other_sent_limit,
        )
        return finish(ids, segments, self.tokenizer, 1, self.length)

    def batch(self, prompts: Sequence[Rendered]) -> dict[str, torch.Tensor]:
        """Padded to the fixed length: a row of that length goes in and is taken out again."""
        full = Rendered([self.tokenizer.pad_token_id] * self.length, 0, [0] * self.length)
        padded = collate([full, *prompts], self.tokenizer.pad_token_id, torch.device("cpu"))
        return {name: tensor[1:] for name, tensor in padded.items()}

    def logits(self, prompts: Sequence[Rendered]) -> torch.Tensor:
        return self.model(self.batch(prompts))[:, list(self.words)]

    def score(self, features: list[list[Rendered]], examples: Sequence[Example]) -> float:
        self.model.eval()
        draws = []
        with torch.no_grad():
            for prompts in features:
                parts = [
                    self.logits(prompts[start : start + EVALUATION_BATCH])
                    for start in range(0, len(prompts), EVALUATION_BATCH)
                ]
                draws.append(torch.cat(parts))
        outputs = torch.stack(draws).mean(0).numpy()
        return measure(self.task, outputs, examples)[self.task.metric]

    def train(self, dev_features: list[list[Rendered]], best_file: Path) -> None:
        settings, rng = self.settings, np.random.RandomState(self.settings.seed)
        gold = torch.tensor(class_numbers(self.task, self.support))
        parameters = list(self.model.parameters())
        optimizer = BiasCorrectedAfterEpsilon(parameters, settings.lr, weight_decay=0.0, foreach=False)
        generator = torch.Generator().manual_seed(settings.seed)
        best, order = -1.0, []
        for step in range(1, settings.max_steps + 1):
            if not order:
                order = torch.randperm(len(self.support), generator=generator).tolist()
            rows, order = order[: settings.batch_size], order[settings.batch_size :]
            optimizer.zero_grad()
            for start in range(0, len(rows), MICRO_BATCH):
                part = rows[start : start + MICRO_BATCH]
                prompts = [self.feature(self.support[row], rng, row) for row in part]
                loss = F.cross_entropy(self.logits(prompts), gold[part]) * len(part) / len(rows)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = linear_decay(settings.lr, step - 1, settings.max_steps)
            optimizer.step()
            if step % settings.eval_every == 0:
                score = self.score(dev_features, self.splits.dev)
                if score > best:
                    best = score
                    save_file({name: p.detach().clone() for name, p in self.model.named_parameters()}, best_file)
        self.model.load_state_dict(load_file(best_file), strict=False)


def contest(folder: Path, task: Task, splits: Splits, settings: TrialSettings, rounds: int) -> dict:
    """Alternating runs of both sides: seconds of every round and the metrics."""
    pretrained = Pretrained.load(folder, device="cpu")
    seconds: dict[str, list[float]] = {"release": [], "ours": []}
    parts: list[dict[str, float]] = []
    metric = {}
    for _ in range(rounds):
        start = time.perf_counter()
        metric["release"] = ReleaseTrial(folder, task, splits, settings).run()
        seconds["release"].append(time.perf_counter() - start)
        start = time.perf_counter()
        result = run_trial(pretrained, task, splits.train, splits.dev, splits.test, settings)
        seconds["ours"].append(time.perf_counter() - start)
        metric["ours"] = result.test[task.name][task.metric]
        parts.append(result.seconds)
    ratios = [theirs / ours for theirs, ours in zip(*seconds.values(), strict=True)]
    return {
        "train": len(splits.train),
        "test": len(splits.test[task.name]),
        "seconds": seconds,
        "seconds_of_ours": parts,
        "ratio": statistics.median(seconds["release"]) / statistics.median(seconds["ours"]),
        "ratio_of_each_round": ratios,
        "metric": metric,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tasks", nargs="+", default=["sst-2", "mr"])
    parser.add_argument("--test", type=int, default=500, help="test examples of tasks other than sst-2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="60 test examples, one round, no record")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-trial-speed.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options))
    folder = model_folder(options.model)
    settings = TrialSettings(
        method="prompt-demo", seed=13, lr=1e-4, max_steps=60, eval_every=10, filter="minilm", dropout=False
    )
    console = Console()
    table = Table("task", "test", "release, s", "ours, s", "times", "metric: release", "ours", title="one trial")
    results = {}
    for name in options.tasks:
        task = TASKS[name]
        splits = load_splits(task, 16, 13)
        count = 60 if options.quick else len(splits.test[name]) if name == "sst-2" else options.test
        splits = replace(splits, test={name: spread(splits.test[name], count)})
        embedder("minilm").embed([text_of(e) for e in [*splits.train, *splits.dev, *splits.test[name]]])
        found = results[name] = contest(folder, task, splits, settings, 1 if options.quick else options.rounds)
        medians = [statistics.median(found["seconds"][side]) for side in ("release", "ours")]
        table.add_row(
            name,
            str(count),
            *(f"{value:.1f}" for value in medians),
            f"{found['ratio']:.2f}",
            *(f"{found['metric'][side]:.4f}" for side in ("release", "ours")),
        )
    console.print(table)
    if options.quick and options.out is None:
        return
    record = {
        "benchmark": "trial_speed",
        "threads": torch.get_num_threads(),
        "draws": settings.draws(TASKS["sst-2"]),
        "results": results,
        "provenance": watch.record(),
    }
    write_record(record, __file__, "cpu-trial-speed", options.out)


if __name__ == "__main__":
    main()
