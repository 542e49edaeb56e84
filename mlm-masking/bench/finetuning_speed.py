"""Fine-tuning examples per second against batches in random order, each padded to its longest row.

    python mlm-masking/bench/finetuning_speed.py                  # tiny and mini encoders, 50 updates, 3 repetitions
    python mlm-masking/bench/finetuning_speed.py --quick

Every side does the same number of updates on the same number of examples, with the same model, optimiser and schedule,
in the same loop (`mlm_masking.fitting`); only what a batch is and how it is laid differs:

    random    random examples padded to the longest of them (the release, and most recipes)
    packed    the same random examples without padding: the same updates, dropout's random numbers apart
    bucketed  examples of like length, padded to the longest of them: other batches

and beside them transformers' Trainer with its padding collator. Sides alternate; speeds are medians over repetitions,
and `ratio` is against `random` (1.5 is the aim). Processor time stands beside it, since it changes less where other
programs share the machine. Quality is the dev accuracy after the given epochs over several seeds: mean and standard
deviation of each side. Text is SST-2's (sentences of 24 words on average) where the mirror has it, else sentences of
the offline corpus labelled by whether they contain a digit.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    DataCollatorWithPadding,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
    Trainer,
    TrainingArguments,
)

from mlm_masking import glue
from mlm_masking.classification import Prepared, finetune, loss_function, prepare
from mlm_masking.encoders import load_model, load_tokenizer
from mlm_masking.fitting import BATCHINGS, Settings, fit
from mlm_masking.length_buckets import epoch_batches, padded_share
from mlm_masking.tokenizer import train_tokenizer
from shared import hub
from shared.bench import write_record
from shared.corpus import documents
from shared.provenance import Watch
from shared.results import over_seeds
from shared.training import seed_everything

ROOT = Path(__file__).resolve().parents[2]
ENCODERS = {"tiny": (3, 96, 4), "mini": (4, 256, 4)}
BATCH = 32


def write_data(folder: Path) -> tuple[str, list[str]]:
    """Write train.jsonl and dev.jsonl; returns where the text is from, and the training texts."""
    task = glue.load_task("sst2")
    try:
        data = glue.load_data(task, source="sst2_sentences")
        sets = {"train": data.train, "dev": data.dev["dev"]}
        rows = {name: list(zip(found.text_a, found.labels.tolist(), strict=True)) for name, found in sets.items()}
        origin = "SST-2 by sentences"
    except hub.NotAvailable:
        texts = [
            line
            for document in documents(max_bytes=3_000_000)
            for line in document.text.split("\n")
            if 20 < len(line) < 300
        ]
        labelled = [(text, int(any(character.isdigit() for character in text))) for text in texts[:8000]]
        rows, origin = (
            {"train": labelled[1000:], "dev": labelled[:1000]},
            "offline corpus, lines with a digit or without",
        )
    for name, found in rows.items():
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in found]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return origin, [text for text, _ in rows["train"]]


def write_encoder(name: str, texts: list[str], folder: Path) -> Path:
    """A pre-LayerNorm encoder with random weights and a tokenizer trained on the texts."""
    layers, hidden, heads = ENCODERS[name]
    tokenizer = train_tokenizer(texts, 4096)
    config = RobertaPreLayerNormConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip
    seed_everything(1)
    RobertaPreLayerNormForMaskedLM(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return folder / name


@contextmanager
def timed(found: dict[str, float]) -> Iterator[None]:
    """Wall and processor seconds of the block, added to `found`."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    found["seconds"] = time.perf_counter() - wall
    found["processor_seconds"] = time.process_time() - processor


def ours(batching: str, encoder: Path, prepared: Prepared, updates: int) -> dict[str, float]:
    """Speed of `updates` updates in our loop; the first five are not counted."""
    settings = Settings(lr=1e-4, batch_size=BATCH, epochs=1, batching=batching)
    examples = prepared.train.offsets[: updates * BATCH + 1]
    part = type(prepared.train)(prepared.train.ids[: examples[-1]], examples)
    seed_everything(1)
    model = load_model(encoder, "classification", outputs=2, device="cpu")
    marks: dict[int, tuple[float, float]] = {}

    def mark(update: int) -> None:
        marks[update] = (time.perf_counter(), time.process_time())

    fit(model, part, loss_function(prepared.task, prepared.train_labels), settings, seed=1, on_update=mark)
    (wall, processor), (wall_end, processor_end) = marks[5], marks[updates]
    counted = (updates - 5) * BATCH
    return {
        "examples_per_second": counted / (wall_end - wall),
        "processor_seconds_per_example": (processor_end - processor) / counted,
    }


def trainers(encoder: Path, prepared: Prepared, updates: int, folder: Path) -> dict[str, float]:
    """Speed of transformers' Trainer with its padding collator, evaluation and checkpoints off."""
    tokenizer = load_tokenizer(encoder)
    rows = [
        {"input_ids": prepared.train[row].tolist(), "labels": int(prepared.train_labels[row])}
        for row in range(updates * BATCH)
    ]
    seed_everything(1)
    model = load_model(encoder, "classification", outputs=2, device="cpu")
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=updates, learning_rate=1e-4,
        weight_decay=0.1, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no", use_cpu=True,
        max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer))
    found: dict[str, float] = {}
    with timed(found):
        trainer.train()
    return {
        "examples_per_second": updates * BATCH / found["seconds"],
        "processor_seconds_per_example": found["processor_seconds"] / (updates * BATCH),
    }


def compare(name: str, encoder: Path, prepared: Prepared, options: argparse.Namespace, folder: Path) -> dict:
    """Alternate the sides; medians and ratios."""
    sides: dict[str, Callable[[], dict[str, float]]] = {
        kind: lambda kind=kind: ours(kind, encoder, prepared, options.updates)
        for kind in ("random", "packed", "bucketed")
    }
    sides["trainer"] = lambda: trainers(encoder, prepared, options.updates, folder / "trainer")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for repetition in range(options.repetitions):
        for side in list(sides) if repetition % 2 == 0 else reversed(list(sides)):
            runs[side].append(sides[side]())
    speed, processor = (
        {side: statistics.median(one[what] for one in found) for side, found in runs.items()}
        for what in ("examples_per_second", "processor_seconds_per_example")
    )
    return {
        "encoder": name,
        "runs": runs,
        "examples_per_second": speed,
        "ratio": {side: speed[side] / speed["random"] for side in sides},
        "processor_ratio": {side: processor["random"] / processor[side] for side in sides},
    }


def quality(encoder: Path, prepared: Prepared, options: argparse.Namespace) -> dict[str, dict]:
    """Dev accuracy over seeds of every way of batching, the same updates each."""
    found = {}
    for batching in BATCHINGS:
        settings = Settings(lr=options.lr, batch_size=BATCH, epochs=options.epochs, batching=batching)
        scores = [
            finetune(encoder, prepared.task, seed=seed, settings=settings, prepared=prepared, device="cpu")["score"]
            for seed in range(1, options.seeds + 1)
        ]
        found[batching] = over_seeds(scores)
    return found


def print_tables(rows: list[dict], origin: str) -> None:
    console = Console()
    table = Table(title=f"fine-tuning, batch {BATCH}, {origin}: examples/s (ratio to random)", title_justify="left")
    table.add_column("encoder")
    sides = list(rows[0]["ratio"])
    for side in sides:
        table.add_column(side, justify="right")
    for row in rows:
        cells = (f"{row['examples_per_second'][side]:,.0f} ({row['ratio'][side]:.2f})" for side in sides)
        table.add_row(row["encoder"], *cells)
        table.add_row("  processor time", *(f"({row['processor_ratio'][side]:.2f})" for side in sides), style="dim")
        if "quality" in row:
            scores = (row["quality"].get(side) for side in sides)
            cells = (f"{100 * s['mean']:.1f} ± {100 * (s['std'] or 0):.1f}" if s else "" for s in scores)
            table.add_row("  dev accuracy", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--updates", type=int, default=50, help="of a timed run, the first five not counted")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the quality comparison (the first encoder only)")
    parser.add_argument("--epochs", type=int, default=2, help="of the quality comparison")
    parser.add_argument("--lr", type=float, default=5e-4, help="of the quality comparison")
    parser.add_argument("--quick", action="store_true", help="tiny encoder, 20 updates, one repetition, one seed")
    parser.add_argument("--out", type=Path, help="default: mlm-masking/bench/records/<date>-cpu-finetuning-speed.json")
    options = parser.parse_args()
    if options.quick:
        options.encoders, options.updates, options.repetitions, options.seeds, options.epochs = ["tiny"], 20, 1, 1, 1
    if options.updates <= 5 or options.repetitions < 1 or options.seeds < 1:
        parser.error("give --updates above 5, --repetitions and --seeds of at least 1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    watch = Watch(ROOT, config=vars(options) | {"out": None}, seed=1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        origin, texts = write_data(folder)
        for number, name in enumerate(options.encoders):
            encoder = write_encoder(name, texts, folder)
            files = {part: str(folder / f"{part}.jsonl") for part in ("train", "dev")}
            prepared = prepare(encoder, glue.load_task("sst2"), **files)
            row = compare(name, encoder, prepared, options, folder)
            if number == 0:
                row["quality"] = quality(encoder, prepared, options)
            rows.append(row)
        lengths = prepared.train.lengths
        padding = {
            order: padded_share(lengths, epoch_batches(lengths, BATCH, order, 1, 0)) for order in ("random", "bucketed")
        }
    print_tables(rows, origin)
    record = {
        "benchmark": "finetuning_speed",
        "text": origin,
        "mean_length": float(np.mean(lengths)),
        "padding_share": padding,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "provenance": watch.record(),
    }
    write_record(record, __file__, "cpu-finetuning-speed", options.out)


if __name__ == "__main__":
    main()
