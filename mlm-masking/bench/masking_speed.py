"""Masked sequences per CPU-second: our Masker against Hugging Face's collator and the release's per-example sampler.

    python mlm-masking/bench/masking_speed.py
    python mlm-masking/bench/masking_speed.py --quick

Blocks of 128 tokens, RoBERTa's 50,265 ids, 15, 40 and 80 %, mask-only and 80-10-10. Every contestant takes the same
blocks as they come out of a data set, one array each, and gives input, labels and (ours and the collator, where it is
given dictionaries) the attention mask, as torch tensors.

- `collator`: DataCollatorForLanguageModeling, the faster of the two ways to call it: dictionaries with a ready
  special_tokens_mask, which its documentation recommends, or bare arrays.
- `collator, masking only`: its `torch_mask_tokens` on a ready tensor with a ready mask of special tokens: what is left
  of it when collating costs nothing. Not one of the targets; it says how much of the ratio is collating.
- `per example`: the release's procedure as this package has it (`fairseq_mask`, the random ids by a remembered running
  sum), called once per example.
- `per example, as released`: twice per example, for input and target, and random ids by a weighted `choice`.

Process time, one thread, contestants in turn, medians over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mlm_masking.fairseq_compat import fairseq_mask, fairseq_seed
from mlm_masking.masker import Vocabulary, build_masker
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
LENGTH, VOCAB_SIZE, MASK_ID, PAD_ID = 128, 50265, 50264, 1
SCHEMES = {"mask-only": (0.0, 0.0), "80-10-10": (0.1, 0.1)}
OURS, COLLATOR, COLLATOR_CORE, PER_EXAMPLE, RELEASED = (
    "ours",
    "collator",
    "collator, masking only",
    "per example",
    "per example, as released",
)
TARGETS = {COLLATOR: 3.0, PER_EXAMPLE: 20.0, RELEASED: 20.0}


def as_released(block: np.ndarray, rate: float, index: int, p_same: float, p_random: float) -> tuple:
    """Input and target by two calls that seed anew, random ids by `choice` over a weight per id."""

    def draw(target: bool) -> np.ndarray:
        random = np.random.RandomState(fairseq_seed(1, 1, index))
        masked = np.zeros(LENGTH, bool)
        masked[random.choice(LENGTH, int(rate * LENGTH + random.rand()), replace=False)] = True
        if target:
            return np.where(masked, block, PAD_ID)
        out, replaced, drawn = block.copy(), masked, None
        if p_same + p_random > 0:
            changed = masked & (random.rand(LENGTH) < p_same + p_random)
            kept = changed & (random.rand(LENGTH) < p_same / (p_same + p_random))
            replaced, drawn = masked & ~kept, changed & ~kept
        out[replaced] = MASK_ID
        if drawn is not None and drawn.any():
            out[drawn] = random.choice(VOCAB_SIZE, drawn.sum(), p=WEIGHTS)
        return out

    return draw(False), draw(True)


WEIGHTS = np.r_[np.zeros(4), np.ones(VOCAB_SIZE - 4)] / (VOCAB_SIZE - 4)


def tokenizer() -> object:
    """A tokenizer of the right size and special ids; only these are asked of it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    special |= {"bos_token": "<s>", "eos_token": "</s>"}
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{each}" for each in range(4, MASK_ID)), "<mask>"]
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def collator_ways(rate: float, scheme: str, blocks: np.ndarray) -> dict[str, Callable[[int, int], object]]:
    """The collator's masking of rows [start, stop): with dictionaries, with bare arrays, and on a ready tensor."""
    from transformers import DataCollatorForLanguageModeling

    p_same, p_random = SCHEMES[scheme]
    collate = DataCollatorForLanguageModeling(
        TOKENIZER, mlm_probability=rate, mask_replace_prob=1 - p_same - p_random, random_replace_prob=p_random
    )
    special = (blocks < 4).astype(np.int64)
    dictionaries = [
        {"input_ids": row.tolist(), "special_tokens_mask": mask.tolist(), "attention_mask": [1] * LENGTH}
        for row, mask in zip(blocks, special, strict=True)
    ]
    rows, ready, ready_special = list(blocks), torch.from_numpy(blocks), torch.from_numpy(special)
    return {
        "dictionaries": lambda start, stop: collate(dictionaries[start:stop]),
        "arrays": lambda start, stop: collate(rows[start:stop]),
        COLLATOR_CORE: lambda start, stop: collate.torch_mask_tokens(
            ready[start:stop].clone(), ready_special[start:stop]
        ),
    }


def contestants(rate: float, scheme: str, blocks: np.ndarray) -> dict[str, Callable[[int, int], object]]:
    """Name -> a function that masks rows [start, stop) of the blocks."""
    p_same, p_random = SCHEMES[scheme]
    replace = {"p_same": p_same, "p_random": p_random}
    masker = build_masker({"masking": {"rate": rate}, "replace": replace}, Vocabulary(VOCAB_SIZE), seed=1)
    rows = list(blocks)
    options = {"p_same": p_same, "p_random": p_random, "mask_id": MASK_ID, "pad_id": PAD_ID, "vocab_size": VOCAB_SIZE}

    def per_example(start: int, stop: int) -> object:
        done = [fairseq_mask(rows[i], rate=rate, seed=1, epoch=1, index=i, **options) for i in range(start, stop)]
        return [torch.from_numpy(np.stack(each)) for each in zip(*done, strict=True)]

    def released(start: int, stop: int) -> object:
        done = [as_released(rows[i], rate, i, p_same, p_random) for i in range(start, stop)]
        return [torch.from_numpy(np.stack(each)) for each in zip(*done, strict=True)]

    return {
        OURS: lambda start, stop: masker(np.stack(rows[start:stop]), np.arange(start, stop), 0),
        **collator_ways(rate, scheme, blocks),
        PER_EXAMPLE: per_example,
        RELEASED: released,
    }


def measure(ways: dict[str, Callable], batch: int, total: int, rounds: int) -> dict[str, list[float]]:
    """Sequences per CPU-second of every way, per round; slow ways mask a part of the blocks."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    counts = {name: min(total, batch if "per example" in name else total) for name in ways}
    for mask in ways.values():
        mask(0, min(8, batch))
    for _ in range(rounds):
        for name, mask in ways.items():
            begin = time.process_time()
            for start in range(0, counts[name], batch):
                mask(start, min(start + batch, counts[name]))
            speeds[name].append(counts[name] / (time.process_time() - begin))
    return speeds


def compare(rate: float, scheme: str, blocks: np.ndarray, batch: int, rounds: int) -> dict:
    """One cell: medians, and the ratios that have a target."""
    speeds = measure(contestants(rate, scheme, blocks), batch, len(blocks), rounds)
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    way = max(("dictionaries", "arrays"), key=medians.__getitem__)
    medians[COLLATOR] = medians[way]
    ratios = {name: medians[OURS] / medians[name] for name in (*TARGETS, COLLATOR_CORE)}
    return {
        "rate": rate,
        "scheme": scheme,
        "collator_called_with": way,
        "sequences_per_cpu_second": medians,
        "ratios": ratios,
        "met": all(ratios[name] >= target for name, target in TARGETS.items()),
        "rounds": speeds,
    }


def show(cells: list[dict]) -> None:
    table = Table(title=f"masked sequences of {LENGTH} tokens per CPU-second", title_justify="left")
    for name in ("rate", "replacement", "ours", *(f"{name} (x)" for name in (*TARGETS, COLLATOR_CORE)), "targets"):
        table.add_column(name, justify="right")
    for cell in cells:
        speeds, ratios = cell["sequences_per_cpu_second"], cell["ratios"]
        others = [f"{speeds[name]:,.0f} ({ratios[name]:.1f}x)" for name in (*TARGETS, COLLATOR_CORE)]
        met = "met" if cell["met"] else "missed"
        table.add_row(f"{cell['rate']:.0%}", cell["scheme"], f"{speeds[OURS]:,.0f}", *others, met)
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="sequences per call")
    parser.add_argument("--total", type=int, default=8192, help="sequences per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.15, 0.4, 0.8])
    parser.add_argument("--quick", action="store_true", help="2,048 sequences, 3 rounds")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-masking.json beside this script")
    options = parser.parse_args()
    if options.quick:
        options.total, options.rounds = 2048, 3
    torch.set_num_threads(1)
    watch = Watch(ROOT, config=vars(options))
    blocks = np.random.default_rng(0).integers(4, VOCAB_SIZE - 4, (options.total, LENGTH))
    blocks[:, 0] = 0
    cells = [
        compare(rate, scheme, blocks, options.batch, options.rounds) for scheme in SCHEMES for rate in options.rates
    ]
    show(cells)
    record = {"benchmark": "masking_speed", "targets": TARGETS, "cells": cells, "provenance": watch.record()}
    write_record(record, __file__, "cpu-masking", options.out)


TOKENIZER = tokenizer()

if __name__ == "__main__":
    main()
