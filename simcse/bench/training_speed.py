"""Training steps per second against sentence-transformers' trainer: same encoder, texts, batch, length and steps.

    python simcse/bench/training_speed.py                       # MiniLM and tiny, unsupervised and triplets
    python simcse/bench/training_speed.py --encoders tiny --steps 20 --repetitions 1

Both sides are what a user would run. Theirs: SentenceTransformerTrainer with MultipleNegativesRankingLoss(scale=20),
which is this objective at temperature 0.05; columns tokenised per batch, one forward per column, each padded to its
longest row. Ours: `simcse.train`'s own model, collator and trainer, without dev evaluation; text tokenised beforehand
(its time is given apart), one forward for all views in `row_chunks` chunks sorted by length. Both keep their dropout.

A run's clock starts after its second step and stops after its last, so that start-up is left out on both sides. Sides
alternate; speeds are medians, and `ratio` is ours over theirs (1.3 is the aim). The same ratio by processor time stands
beside it: it changes less where other programs share the machine. A last run per side, under torch's profiler, says
what the time goes into: both train the same encoder in fp32, so matrix products are the same work but for padding.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)
from shared import hub
from shared.bench import write_record
from shared.provenance import Watch
from simcse import train
from simcse.batches import EpochSampler
from simcse.data import Examples
from simcse.scratch import build_tiny
from simcse.text_sources import load_examples
from simcse.trainer import ContrastiveTrainer

ROOT = Path(__file__).resolve().parents[2]
WARM_UP_STEPS = 2
BATCH, MAX_LENGTH, LEARNING_RATE = 64, 32, 3e-5


class Clock(TrainerCallback):
    """Wall and processor seconds between the end of the warm-up and the end of the last step."""

    def __init__(self):
        self.begun = self.ended = (0.0, 0.0)
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended, self.steps = (time.perf_counter(), time.process_time()), state.global_step - WARM_UP_STEPS
        if state.global_step == WARM_UP_STEPS:
            self.begun = self.ended

    @property
    def speed(self) -> dict[str, float]:
        wall, processor = (end - begin for begin, end in zip(self.begun, self.ended, strict=True))
        return {"steps_per_second": self.steps / wall, "processor_seconds_per_step": processor / self.steps}


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(ROOT / "simcse" / "configs"), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def configuration(model: str, experiment: str, steps: int, folder: Path, row_chunks: int | None) -> DictConfig:
    """Our side as a user's command: the experiment's data, an encoder, `steps` steps."""
    return compose(
        f"experiment={experiment}",
        f"model={model}",
        f"output_dir={folder}",
        "pooler=avg",
        f"batch_size={BATCH}",
        f"data.max_length={MAX_LENGTH}",
        "data.max_examples=null",
        f"optim.learning_rate={LEARNING_RATE}",
        f"optim.max_steps={steps}",
        "+optim.save_strategy=no",
        "optim.disable_tqdm=true",
        "eval.steps=null",
        f"compute.row_chunks={'null' if row_chunks is None else row_chunks}",
    )


def ours(cfg: DictConfig, examples: Examples, folder: Path) -> dict[str, float]:
    """Our speed, and the seconds of tokenisation beforehand."""
    args = train.build_arguments(cfg, folder)
    train.seed_everything(cfg.seed)
    tokenizer, encoder, second = train.build_encoders(cfg, examples, folder, args)
    begun = time.perf_counter()
    collator = train.build_collator(cfg, examples, tokenizer, args)
    tokenising = time.perf_counter() - begun
    sampler = EpochSampler(collator.count, cfg.seed)
    model = train.build_model(cfg, encoder, second, args)
    clock = Clock()
    trainer = ContrastiveTrainer(
        model, args, collator, sampler, tokenizer=tokenizer, folder=folder, dev=None, callbacks=[clock]
    )
    trainer.train()
    return clock.speed | {"tokenising_seconds": tokenising}


def theirs(model: str, examples: Examples, steps: int, folder: Path) -> dict[str, float]:
    """The speed of sentence-transformers."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = Transformer(model, max_seq_length=MAX_LENGTH)
    pooling = Pooling(encoder.get_embedding_dimension(), pooling_mode="mean")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sentence_transformer = SentenceTransformer(modules=[encoder, pooling], device=device)
    columns = examples.columns if len(examples.columns) > 1 else (examples.columns[0], examples.columns[0])
    data = Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), columns, strict=False)))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    clock = Clock()
    trainer = SentenceTransformerTrainer(
        model=sentence_transformer,
        args=arguments,
        train_dataset=data,
        loss=MultipleNegativesRankingLoss(sentence_transformer, scale=20.0),
        callbacks=[clock],
    )
    trainer.train()
    return clock.speed


GROUPS = {
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "mkldnn",
        "scaled_dot_product",
        "flash_attention",
        "linear",
    ),
    "dropout": ("bernoulli", "dropout"),
    "softmax, LayerNorm, GELU": ("softmax", "layer_norm", "gelu"),
    "optimizer": ("_foreach", "_fused_adam", "adamw", "sqrt", "addcdiv", "addcmul", "lerp"),
}


def operator_shares(run: Callable[[], object]) -> dict[str, float]:
    """Share of processor time per group of torch operators in one run, backward passes included, start-up too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    seconds = dict.fromkeys([*GROUPS, "other operators"], 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        if not name.startswith(("aten::", "mkldnn", "torch::", "autograd::")):
            continue
        group = next((g for g, parts in GROUPS.items() if any(part in name for part in parts)), "other operators")
        seconds[group] += event.self_cpu_time_total
    whole = sum(seconds.values())
    return {group: taken / whole for group, taken in seconds.items()}


def compare(encoder: str, experiment: str, options: argparse.Namespace, folder: Path) -> dict:
    """Alternate the two sides on one encoder and one kind of data."""
    examples = load_examples(compose(f"experiment={experiment}").data, 42)
    if encoder == "tiny":
        texts = [text for column in examples.columns for text in column]
        model = str(build_tiny(texts, folder / f"tiny-{experiment}"))
    else:
        model = hub.model_path(encoder, "simcse")
    cfg = configuration(model, experiment, options.steps, folder / "ours", options.row_chunks)
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    run: dict[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: ours(cfg, examples, folder / "ours"),
        "theirs": lambda: theirs(model, examples, options.steps, folder / "theirs"),
    }
    for repetition in range(options.repetitions):
        for side in ("ours", "theirs") if repetition % 2 == 0 else ("theirs", "ours"):
            with contextlib.redirect_stdout(io.StringIO()):
                sides[side].append(run[side]())
    speed, processor = (
        {side: statistics.median(one[what] for one in runs) for side, runs in sides.items()}
        for what in ("steps_per_second", "processor_seconds_per_step")
    )
    shares = {}
    if options.profile:
        for side in run:
            with contextlib.redirect_stdout(io.StringIO()):
                shares[side] = operator_shares(run[side])
    return {
        "operator_shares": shares,
        "encoder": encoder,
        "experiment": experiment,
        "text": examples.source,
        "sentences_per_example": max(2, len(examples.columns)),
        "steps": options.steps,
        "runs": sides,
        "steps_per_second": speed,
        "processor_seconds_per_step": processor,
        "ratio": speed["ours"] / speed["theirs"],
        "processor_ratio": processor["theirs"] / processor["ours"],
        "tokenising_seconds": max(one["tokenising_seconds"] for one in sides["ours"]),
    }


def print_table(rows: list[dict]) -> None:
    table = Table(title=f"training steps/s, batch {BATCH}, max_length {MAX_LENGTH}", title_justify="left")
    for name in ("encoder", "data", "ours", "sentence-transformers", "ratio", "by processor time", "tokenising"):
        table.add_column(name, justify="left" if name in ("encoder", "data") else "right")
    for row in rows:
        table.add_row(
            *(row["encoder"], f"{row['experiment']} ({row['text']})"),
            *(f"{row['steps_per_second'][side]:.2f}" for side in ("ours", "theirs")),
            *(f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}", f"{row['tokenising_seconds']:.1f} s"),
        )
    Console().print(table)
    for row in rows:
        for side, shares in row["operator_shares"].items():
            parts = ", ".join(f"{group} {share:.0%}" for group, share in shares.items())
            Console(soft_wrap=True).print(f"{row['encoder']}, {row['experiment']}, {side}: {parts}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["minilm", "tiny"])
    parser.add_argument("--experiments", nargs="+", default=["unsup", "triplets"], help="whose data is trained on")
    parser.add_argument("--steps", type=int, default=22, help=f"per run, {WARM_UP_STEPS} of them warm-up")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--row-chunks", type=int, help="default: what training chooses")
    parser.add_argument("--no-profile", dest="profile", action="store_false", help="leave out the shares of operators")
    parser.add_argument("--out", type=Path, help="default: simcse/bench/records/<date>-<device>-training-speed.json")
    options = parser.parse_args()
    if options.steps <= WARM_UP_STEPS or options.repetitions < 1:
        parser.error(f"give --steps above {WARM_UP_STEPS} and --repetitions of at least 1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    watch = Watch(ROOT, config=vars(options) | {"out": None}, seed=42)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("REPRO_RUNS", temporary)  # token files too are made anew, so that their time is measured
        rows = [
            compare(encoder, experiment, options, Path(temporary))
            for encoder in options.encoders
            for experiment in options.experiments
        ]
    print_table(rows)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = {
        "benchmark": "training_speed",
        "rows": rows,
        "threads": torch.get_num_threads(),
        "provenance": watch.record(),
    }
    write_record(record, __file__, f"{device}-training-speed", options.out)


if __name__ == "__main__":
    main()
