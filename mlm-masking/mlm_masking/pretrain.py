"""`python -m mlm_masking.pretrain masking.rate=0.4 masking.strategy=uniform`: pre-train one masked language model.

    configuration -> blocks of text -> masks -> MaskedLanguageModel -> Trainer -> model/, results.json

A run's folder holds `run.json` (its settings), `checkpoints/` (to go on from), `metrics.jsonl`, `snapshots/` if asked
for, `model/` (plain AutoModelForMaskedLM folder with tokenizer) and `results.json` (last: with it a run is finished).
It is named after what was varied, `<recipe>-<model>-<strategy>-m<rate>...`, so the same cell of two sweeps is one run:

    python -m mlm_masking.pretrain -m masking.rate=0.15,0.4,0.8 masking=uniform,span_t5 hydra/launcher=joblib
    python -m mlm_masking.pretrain -m experiment=rates_large scale=paper launch=slurm launch.wait=false

A finished cell is left as it is, a killed one goes on from its last checkpoint and ends with the same weights.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerFast, TrainingArguments

from mlm_masking.data import BlockDataset, open_blocks
from mlm_masking.encoders import load_model
from mlm_masking.heldout import HeldOut
from mlm_masking.masker import build_masker, read_rates
from mlm_masking.micro_batches import MicroBatches
from mlm_masking.model import (
    MaskedLanguageModel,
    build_backbone,
    check_length,
    export,
    model_config,
)
from mlm_masking.optimizer import KINDS
from mlm_masking.prepare import prepare_data
from mlm_masking.rates import Rates, copies_needed
from mlm_masking.resume import Start, agree_on_start, open_folder
from mlm_masking.summary import summary
from mlm_masking.tokenizer import load_tokenizer
from mlm_masking.trainer import MaskingTrainer
from mlm_masking.vocabulary import Vocabulary
from shared import InputError
from shared.launch import entrypoint, split_batch
from shared.results import Run
from shared.training import MetricsLog, deepspeed_config, run_folder, seed_everything, training_arguments

log = logging.getLogger(__name__)

PAPER = "mlm-masking"
RUN_AGAIN = 75  # the exit status of a run whose time budget is spent (EX_TEMPFAIL: the same command goes on)


@dataclass(frozen=True)
class Text:
    """What is trained on: blocks of one or more streams, held-out blocks, the tokenizer they were made with."""

    streams: tuple[BlockDataset, ...]
    heldout: BlockDataset
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Trained:
    """A run that came to its end, or (`stopped`) to the end of its time budget."""

    trainer: MaskingTrainer
    metrics: dict[str, Any]
    stopped: bool


def pretrain(cfg: DictConfig) -> Path | None:
    """Run (or go on with) one pre-training; returns its folder, or None where the time budget ended it.

    Raises:
        InputError: anything a user can get wrong, before the first update wherever it can be known then.
    """
    check_options(cfg)
    name = experiment_name(cfg)
    folder = run_folder(PAPER, cfg.scale, name, cfg.output_dir)
    args = build_arguments(cfg, folder)
    start = agree_on_start(cfg, folder)
    if start.finished:
        log.warning("%s is finished (resume=restart trains it again)", folder)
        return folder
    with args.main_process_first(local=False, desc="run folder"):
        if args.process_index == 0:
            open_folder(cfg, folder, start)
    run = Run(PAPER, name, cfg.scale, output_dir=folder, config=cfg, seed=cfg.seed)
    with args.main_process_first(local=False, desc="tokens"):
        text = load_text(cfg)
    trained = train(cfg, folder, text, start, args)
    if trained.stopped:
        log.warning("%s: the time budget is spent; the same command goes on", folder)
        return None
    save_model(trained.trainer, folder / "model", text.tokenizer)
    run.metrics |= trained.metrics
    run.finish()
    return folder


def train(
    cfg: DictConfig,
    folder: Path,
    text: Text,
    start: Start | None = None,
    args: TrainingArguments | None = None,
    on_trainer: Callable[[MaskingTrainer], None] | None = None,
) -> Trained:
    """Train on text that is open already: `pretrain` without run folder, results and their bookkeeping.

    For many small runs in one process: nothing is looked up, and with `optim.save_strategy=no` nothing but the metrics
    log is written. `on_trainer` sees the trainer before it begins. Returns the trainer with the model in it, and what
    goes into results.json.
    """
    start, args = start or Start(), args or build_arguments(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(cfg.seed)
    model = build_model(cfg, text)
    masker = build_masker(cfg, text.vocabulary)
    batches = MicroBatches(
        text.streams,
        cfg.batch_size,
        args.per_device_train_batch_size,
        args.max_steps,
        cfg.seed,
        rank=args.process_index,
        world_size=args.world_size,
    )
    heldout = HeldOut(
        text.heldout,
        text.vocabulary,
        build_masker(cfg, text.vocabulary, seed=cfg.eval.seed),
        rates=cfg.eval.rates,
        count=cfg.eval.blocks,
        seed=cfg.eval.seed,
        rows=cfg.eval.rows,
    )
    trainer = MaskingTrainer(
        model,
        args,
        batches,
        masker,
        heldout=heldout,
        optimizer_kind=cfg.optimizer,
        stop_after_minutes=cfg.stop_after_minutes,
        snapshot_every=cfg.snapshot_every,
        on_snapshot=lambda update: save_model(trainer, folder / "snapshots" / f"update-{update}", text.tokenizer),
        callbacks=[MetricsLog(folder / "metrics.jsonl")],
    )
    if cfg.compute.compile:
        for layer in model.backbone.base_model.encoder.layer:
            layer.compile()
    if on_trainer is not None:
        on_trainer(trainer)
    # Processes draw their own dropout; the same on every one would be less noise than one process has.
    seed_everything((cfg.seed + args.process_index) % 2**32)
    begun, first = time.monotonic(), start.update
    trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    if trainer.budget.stopped:
        return Trained(trainer, {}, stopped=True)
    return Trained(trainer, summary(cfg, trainer, text.streams, folder, first, begun), stopped=False)


def check_options(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is read."""
    if cfg.optimizer not in KINDS:
        raise InputError(f"optimizer={cfg.optimizer}: give one of {', '.join(KINDS)}")
    if not isinstance(cfg.optim.max_steps, int) or cfg.optim.max_steps < 1:
        raise InputError(f"optim.max_steps={cfg.optim.max_steps}: give the number of updates, 1 or more")
    for name, value in (("snapshot_every", cfg.snapshot_every), ("eval.steps", cfg.eval.steps)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: give 1 or more, or null")
    if cfg.eval.blocks is not None and cfg.eval.blocks < 1:
        raise InputError(f"eval.blocks={cfg.eval.blocks}: give 1 or more, or null for all held-out blocks")
    rates_of(cfg)


def rates_of(cfg: DictConfig) -> Rates:
    """The corruption and prediction rates of a configuration, checked."""
    return read_rates(OmegaConf.to_container(cfg.masking), OmegaConf.to_container(cfg.rates))


def most_copies(rates: Rates) -> int:
    """Rows of a masked batch per block, at most over the run."""
    return max(copies_needed(*rates.at(step / 100)) for step in range(101))


def experiment_name(cfg: DictConfig) -> str:
    """The folder's name: `experiment` if given, else `<recipe>-<model>-<strategy>-m<rate>` and what is unusual."""
    if cfg.experiment is not None:
        return str(cfg.experiment)
    rates = rates_of(cfg)
    if rates.decoupled:
        rate = f"c{_rate(rates.corruption)}-p{_rate(rates.prediction)}"
    else:
        rate = f"m{_rate(rates.corruption)}"
    parts = [cfg.recipe, cfg.model.name, cfg.masking.strategy, rate]
    if cfg.replace.name != "mask_only":
        parts.append(cfg.replace.name)
    if cfg.masking.compat != "native":
        parts.append(cfg.masking.compat)
    if cfg.norm != "pre":
        parts.append(f"{cfg.norm}ln")
    if cfg.seed != 1:
        parts.append(f"seed{cfg.seed}")
    return "-".join(str(part) for part in parts)


def _rate(schedule: Any) -> str:
    if schedule.constant:
        return f"{schedule.first:.2f}" if round(schedule.first, 2) == schedule.first else f"{schedule.first:g}"
    return f"{schedule.shape}{schedule.first:g}to{schedule.last:g}"


def build_arguments(cfg: DictConfig, folder: Path) -> TrainingArguments:
    """TrainingArguments of this run; the batch is split over processes and forward passes."""
    options = {
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_nan_inf_filter": False,  # the loss guard's business, and it would read every loss back from the GPU
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        # Not left to the library: without it, processes on a CPU do not see each other.
        "use_cpu": not torch.accelerator.is_available(),
        **OmegaConf.to_container(cfg.optim, resolve=True),
    }
    if cfg.launch.get("zero_stage") is not None:
        # Our own optimiser is sharded, not one that DeepSpeed would build.
        zero = deepspeed_config(cfg.launch.zero_stage, cfg.launch.get("offload", "none"))
        options["deepspeed"] = {name: value for name, value in zero.items() if name != "optimizer"}
    args = training_arguments(
        options,
        folder,
        seed=cfg.seed,
        eval_strategy="no" if cfg.eval.steps is None else "steps",
        eval_steps=cfg.eval.steps,
    )
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process: use launch=torchrun launch.processes={args.n_gpu}, or show "
            "one GPU (CUDA_VISIBLE_DEVICES=0)"
        )
    if args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise InputError(
            f"launched with {os.environ['WORLD_SIZE']} processes, but Trainer sees {args.world_size}: each would train "
            "alone. On processes without a GPU leave optim.use_cpu out, or true."
        )
    largest = cfg.forward_batch_size
    mine, _ = split_batch(cfg.batch_size, args.world_size)
    if largest is not None and (copies := most_copies(rates_of(cfg))) > 1:
        # As many rows reach the model as without copies: of the divisors of this process' share the largest that fits.
        largest = max(d for d in range(1, max(1, largest // copies) + 1) if mine % d == 0)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = split_batch(
        cfg.batch_size, args.world_size, largest
    )
    return args


def load_text(cfg: DictConfig) -> Text:
    """Prepare (if that has not been done) and open the data.

    Raises:
        InputError: see `prepare_data` and `open_blocks`; or data and tokenizer of different size.
    """
    prepared = prepare_data(cfg.data, processes=cfg.data_processes)
    tokenizer = load_tokenizer(prepared.tokenizer)
    length, mode, percent = cfg.data.block_length, cfg.data.mode, cfg.data.valid_percent
    if not isinstance(length, int):
        raise InputError(f"data.block_length={length}: give a whole number, 2 or more")
    streams = tuple(open_blocks(path, length, mode, "train", percent) for path in prepared.streams)
    heldout = open_blocks(prepared.streams[0], length, mode, "valid", percent)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for stream in streams:
        if stream.vocab_size != vocabulary.size:
            raise InputError(
                f"{stream.source} was made with a vocabulary of {stream.vocab_size} ids, the tokenizer "
                f"{prepared.tokenizer} has {vocabulary.size}: they do not belong together"
            )
    return Text(streams, heldout, tokenizer, vocabulary)


def build_model(cfg: DictConfig, text: Text) -> MaskedLanguageModel:
    """A new model, or (`init_from`) the weights of a pre-trained one.

    Raises:
        InputError: sizes that do not fit, blocks longer than the positions, a checkpoint of the other LayerNorm placing
            or with another vocabulary.
    """
    size = text.vocabulary.size
    if cfg.init_from is None:
        config = model_config(cfg.model, cfg.norm, size)
        backbone = build_backbone(config, cfg.seed, size, cfg.model.get("position_init", "normal"))
    else:
        backbone = load_model(cfg.init_from, "masked_lm", device="cpu")
        config = backbone.config
        norm = "pre" if config.model_type == "roberta-prelayernorm" else "post"
        if norm != cfg.norm:
            raise InputError(f"init_from={cfg.init_from} has norm={norm}, but norm={cfg.norm} is asked for")
        if config.vocab_size != size:
            raise InputError(
                f"init_from={cfg.init_from} has an embedding of {config.vocab_size} ids, the data's tokenizer {size}"
            )
    check_length(config, max(stream.max_length for stream in (*text.streams, text.heldout)))
    if cfg.compute.attention is not None:
        backbone.set_attn_implementation(cfg.compute.attention)
    return MaskedLanguageModel(backbone, size)


def save_model(trainer: MaskingTrainer, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Export the model; all ranks come here, the main one writes."""
    state = trainer.whole_state()
    if trainer.args.should_save:
        export(trainer.plain_model, folder, tokenizer, state)


@entrypoint(config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Pre-train one model."""
    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    if pretrain(cfg) is None and alone:
        sys.exit(RUN_AGAIN)


if __name__ == "__main__":
    main()
