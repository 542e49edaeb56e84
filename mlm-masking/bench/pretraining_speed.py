"""Pre-training tokens per second against transformers' own recipe: same model, text, blocks, batch, optimiser, threads.

    python mlm-masking/bench/pretraining_speed.py                 # tiny and mini, 4,096 and 50,265 ids, 40 %
    python mlm-masking/bench/pretraining_speed.py --quick

Theirs: Trainer with `RobertaPreLayerNormForMaskedLM` and `DataCollatorForLanguageModeling(mlm_probability=0.4)`. Ours:
`mlm_masking.pretrain`'s own trainer. Both read the same blocks of 128 tokens (tokenised beforehand), train in fp32 with
AdamW and without clipping, log and save nothing. The 50,265 ids are RoBERTa's tokenizer, where it is at hand.

A run's clock starts after its third update and stops after its last. Sides alternate; speeds are medians, and `ratio`
is ours over theirs (1.4 is the aim). The same ratio by processor time stands beside it: it changes less where other
programs share the machine.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import (
    DataCollatorForLanguageModeling,
    RobertaPreLayerNormForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)
from mlm_masking.model import model_config
from mlm_masking.pretrain import Text, load_text, train
from shared import hub
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 3


class Clock(TrainerCallback):
    """Wall and processor seconds between the end of the warm-up and the end of the last update."""

    def __init__(self):
        self.begun = self.ended = (0.0, 0.0)
        self.updates = 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended, self.updates = (time.perf_counter(), time.process_time()), state.global_step - WARM_UP
        if state.global_step == WARM_UP:
            self.begun = self.ended

    def speed(self, tokens: int) -> dict[str, float]:
        wall, processor = (end - begin for begin, end in zip(self.begun, self.ended, strict=True))
        return {
            "tokens_per_second": tokens * self.updates / wall,
            "processor_seconds_per_update": processor / self.updates,
        }


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(ROOT / "mlm-masking" / "configs"), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def configuration(model: str, tokenizer: str | None, options: argparse.Namespace) -> DictConfig:
    """Our side as a user's command."""
    return compose(
        f"model={model}",
        f"data.tokenizer={tokenizer or 'null'}",
        f"data.block_length={options.block_length}",
        f"batch_size={options.batch}",
        f"masking.rate={options.rate}",
        "optimizer=adamw",
        f"optim.max_steps={options.updates}",
        "optim.logging_steps=100000",
        "+optim.save_strategy=no",
        "optim.disable_tqdm=true",
        "eval.steps=null",
        "eval.blocks=2",
    )


def ours(cfg: DictConfig, text: Text, folder: Path) -> dict[str, float]:
    clock = Clock()
    train(cfg, folder, text, on_trainer=lambda trainer: trainer.add_callback(clock))
    return clock.speed(cfg.batch_size * cfg.data.block_length)


class Blocks(torch.utils.data.Dataset):
    """The same blocks as a data set of Trainer's."""

    def __init__(self, text: Text):
        (self.stream,) = text.streams

    def __len__(self) -> int:
        return len(self.stream) - 1  # the last is shorter

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.stream[index]["input_ids"]}


def theirs(cfg: DictConfig, text: Text, folder: Path) -> dict[str, float]:
    torch.manual_seed(cfg.seed)
    model = RobertaPreLayerNormForMaskedLM(model_config(cfg.model, "pre", len(text.tokenizer)))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=cfg.batch_size,
        max_steps=cfg.optim.max_steps,
        learning_rate=cfg.optim.learning_rate,
        weight_decay=cfg.optim.weight_decay,
        adam_beta2=cfg.optim.adam_beta2,
        adam_epsilon=cfg.optim.adam_epsilon,
        max_grad_norm=0.0,
        logging_steps=100000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
    )
    clock = Clock()
    collator = DataCollatorForLanguageModeling(text.tokenizer, mlm_probability=cfg.masking.rate)
    Trainer(model, arguments, data_collator=collator, train_dataset=Blocks(text), callbacks=[clock]).train()
    return clock.speed(cfg.batch_size * cfg.data.block_length)


def compare(model: str, tokenizer: str | None, options: argparse.Namespace, folder: Path) -> dict:
    """Alternate the two sides on one model and vocabulary."""
    cfg = configuration(model, tokenizer, options)
    text = load_text(cfg)
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    sides = {"ours": ours, "theirs": theirs}
    for repetition in range(options.repetitions):
        for side in ("ours", "theirs") if repetition % 2 == 0 else ("theirs", "ours"):
            with contextlib.redirect_stdout(io.StringIO()):
                runs[side].append(sides[side](cfg, text, folder / side))
    speed, processor = (
        {side: statistics.median(run[what] for run in made) for side, made in runs.items()}
        for what in ("tokens_per_second", "processor_seconds_per_update")
    )
    return {
        "model": model,
        "vocabulary": len(text.tokenizer),
        "runs": runs,
        "tokens_per_second": speed,
        "processor_seconds_per_update": processor,
        "ratio": speed["ours"] / speed["theirs"],
        "processor_ratio": processor["theirs"] / processor["ours"],
    }


def print_table(rows: list[dict], options: argparse.Namespace) -> None:
    table = Table(title=f"pre-training tokens/s, {options.batch} x {options.block_length}, {options.rate:.0%}")
    for name in ("model", "vocabulary", "ours", "transformers", "ratio", "by processor time"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        speed = row["tokens_per_second"]
        table.add_row(
            *(row["model"], f"{row['vocabulary']:,}", f"{speed['ours']:,.0f}", f"{speed['theirs']:,.0f}"),
            *(f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}"),
        )
    Console().print(table)


def vocabularies() -> list[str | None]:
    """One trained on the corpus, and RoBERTa's where it is at hand."""
    try:
        hub.locate("mlm-masking", "roberta_tokenizer")
    except hub.NotAvailable:
        return [None]
    return [None, "roberta_tokenizer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "mini"])
    parser.add_argument("--updates", type=int, default=23, help=f"per run, {WARM_UP} of them warm-up")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--block-length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny, 4,096 ids, 8 updates, once")
    parser.add_argument("--out", type=Path, help="default: mlm-masking/bench/records/<date>-<device>-pretraining.json")
    options = parser.parse_args()
    sizes = vocabularies()
    if options.quick:
        options.models, options.updates, options.repetitions, sizes = ["tiny"], 8, 1, [None]
    if options.updates <= WARM_UP:
        parser.error(f"give --updates above {WARM_UP}")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    watch = Watch(ROOT, config=vars(options) | {"out": None}, seed=1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("REPRO_RUNS", temporary)
        rows = [compare(model, size, options, Path(temporary)) for model in options.models for size in sizes]
    print_table(rows, options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = {
        "benchmark": "pretraining_speed",
        "rows": rows,
        "threads": torch.get_num_threads(),
        "provenance": watch.record(),
    }
    write_record(record, __file__, f"{device}-pretraining", options.out)


if __name__ == "__main__":
    main()
