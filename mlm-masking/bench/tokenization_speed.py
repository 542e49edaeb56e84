"""Megabytes of text per second into a token file, against the tokenizer library alone and the usual `datasets` recipe.

    python mlm-masking/bench/tokenization_speed.py                # 100 MB of the offline corpus, 2 processes, 3 rounds
    python mlm-masking/bench/tokenization_speed.py --quick        # 4 MB, one round: does it run?

Same documents, same tokenizer (RoBERTa's where it is at hand, else one trained on the text), same number of processes:

    library         `encode_batch` of the tokenizers library alone: processes are started and texts read beforehand
    library, fast   the same with `encode_batch_fast`, which leaves out the offsets
    recipe          `datasets.map` of the tokenizer, batched, then `group_texts` into blocks of 128, as transformers'
                    example scripts for language modelling do it; the data set is loaded beforehand
    ours            `tokenize_documents`: from the JSON lines on disk to the finished token file, start of processes and
                    all

The clock of ours is the strictest. The forms take turns, and medians are compared. The ids are compared too: those of
the recipe's first step and ours must be the same. Ours encodes each word once and looks it up afterwards (see
`shared.tokenization.encoding`), which is why it can be faster than the library that it calls.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mlm_masking.tokenizer import load_tokenizer, train_tokenizer
from shared import corpus, hub
from shared.bench import write_record
from shared.provenance import Watch
from shared.tokenization import json_lines, tokenize_documents
from shared.tokenization.encoding import backend

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 128
LIBRARY, FAST, RECIPE, OURS = "library", "library, fast", "recipe", "ours"


def write_corpus(path: Path, megabytes: int) -> tuple[int, int]:
    """The beginning of the offline corpus, sources too, as JSON lines; (documents, bytes of text)."""
    count = size = 0
    with path.open("w", encoding="utf-8") as out:
        for document in corpus.documents(corpus.KINDS, max_bytes=megabytes * 10**6):
            text = document.text.encode("utf-8", "replace").decode("utf-8")
            out.write(json.dumps({"text": text}) + "\n")
            count, size = count + 1, size + len(text.encode())
    return count, size


def choose_tokenizer(data: Path) -> tuple[Any, str]:
    """RoBERTa's byte-level BPE, or one trained on the first 5 MB of the text."""
    try:
        return load_tokenizer(hub.locate("mlm-masking", "roberta_tokenizer")), "RoBERTa's, 50,265 entries"
    except hub.NotAvailable:
        lines = [json.loads(line)["text"] for line in data.read_text("utf-8")[: 5 * 10**6].splitlines()[:-1]]
        return train_tokenizer(lines, 8000), "trained on the text, 8,000 entries"


def encode_share(data: str, share: int, shares: int, tokenizer: str, method: str, ready, done) -> None:
    """One process of the library's: every `shares`-th document, encoded in batches of 1,000."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    alone = Tokenizer.from_str(tokenizer)
    alone.encode_special_tokens = True
    encode = getattr(alone, method)
    with open(data, encoding="utf-8") as file:  # noqa: PTH123
        texts = [json.loads(line)["text"] for number, line in enumerate(file) if number % shares == share]
    ready.wait()
    for start in range(0, len(texts), 1000):
        encode(texts[start : start + 1000], add_special_tokens=False)
    done.wait()


def library(data: Path, tokenizer: Any, processes: int, method: str) -> float:
    """Seconds from when all processes are ready to when all have encoded their share."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(processes + 1), context.Barrier(processes + 1)
    serialized = backend(tokenizer).to_str()
    workers = [
        context.Process(target=encode_share, args=(str(data), i, processes, serialized, method, ready, done))
        for i in range(processes)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return seconds


class Recipe:
    """Tokenize and group with `datasets`, as the example scripts do."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def tokenize(self, examples: dict[str, list]) -> dict[str, list]:
        # What looks like a special token in a document is text, for all forms.
        return self.tokenizer(examples["text"], return_special_tokens_mask=True, split_special_tokens=True)

    @staticmethod
    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {key: list(chain(*values)) for key, values in examples.items()}
        total = len(joined["input_ids"]) // BLOCK * BLOCK
        return {key: [ids[i : i + BLOCK] for i in range(0, total, BLOCK)] for key, ids in joined.items()}


def recipe(data: Path, tokenizer: Any, processes: int, folder: Path) -> tuple[float, int]:
    """Seconds, and the checksum of the ids after the first step."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = Dataset.from_json(str(data), cache_dir=str(folder))
    steps = Recipe(tokenizer)
    options = {"batched": True, "num_proc": processes, "load_from_cache_file": False}
    started = time.perf_counter()
    tokenized = texts.map(steps.tokenize, remove_columns=["text"], **options)
    grouped = tokenized.map(steps.group_texts, **options)
    seconds = time.perf_counter() - started
    assert len(grouped[0]["input_ids"]) == BLOCK
    crc = 0
    for rows in tokenized.select_columns("input_ids").with_format("arrow").iter(1000):
        crc = zlib.crc32(rows["input_ids"].combine_chunks().flatten().to_numpy().astype("<u2").tobytes(), crc)
    return seconds, crc


def ours(data: Path, tokenizer: Any, processes: int, folder: Path) -> tuple[float, int]:
    """Seconds, and the checksum of the ids."""
    started = time.perf_counter()
    file = tokenize_documents(json_lines(data), tokenizer, folder / "ours", after=None, processes=processes)
    seconds = time.perf_counter() - started
    return seconds, zlib.crc32(np.asarray(file.tokens).tobytes())


def measure(data: Path, tokenizer: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round, by form."""
    seconds: dict[str, list[float]] = {LIBRARY: [], FAST: [], RECIPE: [], OURS: []}
    for _ in range(options.rounds):
        seconds[LIBRARY].append(library(data, tokenizer, options.processes, "encode_batch"))
        seconds[FAST].append(library(data, tokenizer, options.processes, "encode_batch_fast"))
        with tempfile.TemporaryDirectory(dir=data.parent) as folder:
            taken, theirs = recipe(data, tokenizer, options.processes, Path(folder))
            seconds[RECIPE].append(taken)
            taken, found = ours(data, tokenizer, options.processes, Path(folder))
            seconds[OURS].append(taken)
        if found != theirs:
            raise RuntimeError("the ids of the recipe and ours differ")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="4 MB, one round, no record unless --out")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-tokenization.json beside this script")
    options = parser.parse_args()
    if options.quick:
        options.megabytes, options.rounds = 4, 1
    watch = Watch(ROOT, config=vars(options))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "corpus.jsonl"
        documents, size = write_corpus(data, options.megabytes)
        tokenizer, described = choose_tokenizer(data)
        seconds = measure(data, tokenizer, options)
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    title = f"{documents} documents, {size / 1e6:.1f} MB, {options.processes} processes; tokenizer {described}"
    table = Table("", "seconds", "MB/s", "ours is faster by", title=title)
    for name, taken in middle.items():
        table.add_row(name, f"{taken:.1f}", f"{size / 1e6 / taken:.2f}", f"{taken / middle[OURS]:.2f}x")
    console = Console()
    console.print(table)
    targets = {LIBRARY: 0.8, RECIPE: 3.0}
    record = {
        "benchmark": "tokenization_speed",
        "data": {"documents": documents, "bytes": size, "tokenizer": described},
        "processes": options.processes,
        "seconds": seconds,
        "ratio": {name: taken / middle[OURS] for name, taken in middle.items() if name != OURS},
        "at_least": targets,
        "same_ids": True,
        "provenance": watch.record(),
    }
    if options.out or not options.quick:
        write_record(record, __file__, "cpu-tokenization", options.out)


if __name__ == "__main__":
    main()
