"""One dev evaluation during training: what ours encodes against what the authors' release encodes.

    python simcse/bench/dev_evaluation.py --out record.json

The release encodes every split of STS-B and SICK-R, both sides, with repeats, 128 pairs in file order at a time, to
report two dev numbers. Ours encodes the distinct sentences of the two dev sets, sorted by length. Sentences are counted
on the whole data, by the function that training calls; times are taken on `--fraction` of the pairs of each split, both
forms alike, since the full set takes minutes on a CPU. The files that ours opens are recorded too: no test split may be
among them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from shared import hub
from shared.bench import write_record
from shared.provenance import Watch
from simcse.devset import DevSet, load_dev_set
from simcse.embedding import embed_sentences, load_encoder
from simcse.senteval import evaluate_pairs, load_sts
from simcse.senteval.sts import DEV_TASKS, Pairs

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "dev", "test")
BATCH_PAIRS = 128  # of the release's evaluation

Encode = Callable[[list[str]], np.ndarray]


class Counting:
    """An encoder that counts its sentences and keeps them."""

    def __init__(self, encode: Encode):
        self.encode, self.sentences = encode, []

    def __call__(self, sentences: list[str]) -> np.ndarray:
        self.sentences.extend(sentences)
        return self.encode(sentences)


def opened_files(action: Callable[[], object]) -> list[str]:
    """Files opened for reading while `action` runs."""
    names: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple) -> None:
        if listening and event == "open" and isinstance(arguments[0], str):
            names.append(arguments[0])

    sys.addaudithook(hook)  # stays installed for the life of the process, so it is switched off instead
    action()
    listening = False
    return names


def released_batches(splits: list[Pairs]) -> Iterator[list[str]]:
    """Batches as the release encodes them: first sides of 128 pairs, then their second sides."""
    for pairs in splits:
        for start in range(0, len(pairs), BATCH_PAIRS):
            yield pairs.first[start : start + BATCH_PAIRS]
            yield pairs.second[start : start + BATCH_PAIRS]


@torch.inference_mode()
def encode_padded(encoder, tokenizer, batch: list[str]) -> np.ndarray:
    """One batch in the given order, padded to its longest."""
    inputs = tokenizer(batch, padding=True, truncation=True, max_length=encoder.max_length, return_tensors="pt")
    inputs = {name: inputs[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
    return encoder.embed(**inputs).float().cpu().numpy()


def head(pairs: Pairs, fraction: float) -> Pairs:
    count = max(2, round(fraction * len(pairs)))
    return Pairs(pairs.first[:count], pairs.second[:count], pairs.gold[:count])


def count(data_dir: Path) -> dict:
    """Sentences that each form encodes, and the data files that ours opens."""
    encode = Counting(lambda sentences: np.random.RandomState(0).standard_normal((len(sentences), 8)))
    files = opened_files(lambda: load_dev_set(data_dir).scores(encode, step=0))
    every_split = [load_sts(data_dir, [task], split)[task][split] for task in DEV_TASKS for split in SPLITS]
    released = sum(len(batch) for batch in released_batches(every_split))
    return {
        "ours": len(encode.sentences),
        "ours_distinct": len(set(encode.sentences)),
        "released": released,
        "ratio": released / len(encode.sentences),
        "files_read": sorted({str(Path(f).relative_to(data_dir)) for f in files if f.startswith(str(data_dir))}),
    }


def time_both(data_dir: Path, options: argparse.Namespace) -> dict:
    """Median seconds of both forms on a fraction of the pairs, in turn, and the dev correlations of each."""
    encoder, tokenizer = load_encoder(options.model, options.pooler)
    parts = {
        (task, split): head(load_sts(data_dir, [task], split)[task][split], options.fraction)
        for task in DEV_TASKS
        for split in SPLITS
    }
    ours_encode = lambda sentences: embed_sentences(encoder, tokenizer, sentences)  # noqa: E731

    def ours() -> list[float]:
        dev = DevSet({task: parts[task, "dev"] for task in DEV_TASKS}, "dev")
        return list(dev.scores(ours_encode, step=0).values())

    def released() -> list[float]:
        vectors = {}
        for batch in released_batches(list(parts.values())):
            vectors.update(zip(batch, encode_padded(encoder, tokenizer, batch), strict=True))
        known = lambda sentences: np.stack([vectors[sentence] for sentence in sentences])  # noqa: E731
        return [evaluate_pairs(known, parts[task, "dev"])["all"] for task in DEV_TASKS]

    seconds: dict[str, list[float]] = {"ours": [], "released": []}
    scores = {}
    for _ in range(options.repeats):
        for name, form in (("ours", ours), ("released", released)):
            start = time.perf_counter()
            scores[name] = form()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": medians,
        "all_seconds": seconds,
        "ratio": medians["released"] / medians["ours"],
        "scores": scores,
        "fraction": options.fraction,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--pooler", default="avg")
    parser.add_argument("--fraction", type=float, default=0.05, help="of each split's pairs, for the times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-dir", type=Path, help="SentEval's downstream folder; default: the source `senteval`")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-dev-evaluation.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options))
    data_dir = options.data_dir or hub.locate("simcse", "senteval")
    counts, times = count(data_dir), time_both(data_dir, options)
    Console().print(
        f"sentences encoded: ours {counts['ours']:,} ({counts['ours_distinct']:,} distinct), released "
        f"{counts['released']:,}: {counts['ratio']:.1f}x\n"
        f"files read by ours: {', '.join(counts['files_read'])}\n"
        f"seconds on {options.fraction:.0%} of the pairs: ours {times['seconds']['ours']:.2f}, released "
        f"{times['seconds']['released']:.2f}: {times['ratio']:.1f}x\n"
        f"dev correlations: ours {times['scores']['ours'][:2]}, released {times['scores']['released']}"
    )
    record = {"benchmark": "dev_evaluation", "counts": counts, "times": times, "provenance": watch.record()}
    write_record(record, __file__, "cpu-dev-evaluation", options.out)


if __name__ == "__main__":
    main()
