"""`python -m simcse.train experiment=...`: train a sentence encoder with SimCSE's objective.

    configuration -> examples -> token files -> ContrastiveModel -> Trainer -> best weights -> model/, results.json

A run's folder holds `config.json`, `checkpoints/` (to resume from), `best.safetensors` (by STS-B dev), `metrics.jsonl`,
`model/` (plain AutoModel folder with tokenizer and evaluation pooler), `results.json` (last: with it a run is done),
and `scratch/` for model=tiny. A run that was killed goes on from its last whole checkpoint when the same command is
given again, and ends with the same weights as one that was not.
"""

import logging
import os
import time
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer, TrainingArguments

from shared import InputError, hub
from shared.launch import entrypoint, split_batch
from shared.results import Run
from shared.training import (
    MetricsLog,
    read_metrics,
    run_folder,
    runs_root,
    seed_everything,
    training_arguments,
)
from simcse.augment import Augmenter, MaskedLanguageModel
from simcse.batches import Collator, EpochSampler, MaskTokens, tokenize
from simcse.data import Examples, check_examples, repeats_in_batches, sentence_numbers
from simcse.devset import load_dev_set
from simcse.model import ContrastiveModel, SentenceEncoder
from simcse.pairs import OBJECTIVES, Positives, positives
from simcse.resume import Start, check_weights_fit, decide_start, open_folder
from simcse.scratch import build_tiny
from simcse.text_sources import load_examples
from simcse.trainer import ContrastiveTrainer

log = logging.getLogger(__name__)

PAPER = "simcse"
DELETE_ONE_WORD = "delete_one_word"
# On a CPU, rows sorted by length in 8 chunks cut the padding of real text by about a quarter; more chunks gain less
# than the smaller matrix products lose. On a GPU a batch of 64 is launch-bound already.
CPU_ROW_CHUNKS = 8


def train(cfg: DictConfig) -> Path:
    """Run (or go on with) one training; returns the run's folder.

    Raises:
        InputError: anything a user can get wrong, before the first step wherever it can be known then.
    """
    check_options(cfg)
    folder = run_folder(PAPER, cfg.scale, cfg.experiment, cfg.output_dir)
    start = decide_start(cfg, folder)
    if start.finished:
        log.warning("%s is finished (resume=restart trains it again)", folder)
        return folder
    args = build_arguments(cfg, folder)
    open_folder(cfg, folder, start, args)
    run = Run(PAPER, cfg.experiment, cfg.scale, output_dir=folder, config=cfg, seed=cfg.seed)
    seed_everything(cfg.seed)
    examples = load_examples(cfg.data, cfg.seed)
    check_examples(examples, cfg.batch_size)
    check_examples_fit(cfg, examples)
    tokenizer, encoder, second = build_encoders(cfg, examples, folder, args)
    collator = build_collator(cfg, examples, tokenizer, args)
    sampler = EpochSampler(collator.count, cfg.seed)
    warn_of_repeats(cfg, examples, collator.positives, sampler)
    dev = load_dev_set(cfg.eval.data_dir)
    trainer = ContrastiveTrainer(
        build_model(cfg, encoder, second, args),
        args,
        collator,
        sampler,
        tokenizer=tokenizer,
        folder=folder,
        dev=dev,
        batch_tokens=cfg.eval.batch_tokens,
        trajectory_steps=cfg.eval.trajectory_steps,
        callbacks=[MetricsLog(folder / "metrics.jsonl")],
    )
    # Processes draw their own dropout; the same masks on every one would be less noise than one process has.
    seed_everything((cfg.seed + args.process_index) % 2**32)
    run.metrics["text"] = {"source": examples.source, "examples": collator.count, "columns": len(examples.columns)}
    run.metrics["dev_source"] = dev.source
    measure_training(trainer, start, run)
    finish(cfg, trainer, tokenizer, folder, run)
    return folder


def check_options(cfg: DictConfig) -> None:
    """Refuse what cannot work together, before anything is read."""
    if cfg.objective not in (*OBJECTIVES, DELETE_ONE_WORD):
        raise InputError(f"objective={cfg.objective}: give one of {', '.join((*OBJECTIVES, DELETE_ONE_WORD))}.")
    if cfg.objective == DELETE_ONE_WORD and cfg.augment.kind not in (None, DELETE_ONE_WORD):
        raise InputError(f"objective={DELETE_ONE_WORD} is an augmentation itself; leave out augment.kind.")
    if cfg.encoders not in (1, 2):
        raise InputError(f"encoders={cfg.encoders}: give 1 (shared) or 2 (positives get their own).")
    if cfg.mlp_only_train and cfg.pooler != "cls":
        raise InputError(f"mlp_only_train=true needs pooler=cls, the only one with an MLP; pooler is {cfg.pooler}.")
    if cfg.loss.mlm and not cfg.loss.mlm_weight > 0:
        raise InputError(f"loss.mlm_weight={cfg.loss.mlm_weight}: give a number above 0, or loss.mlm=false.")
    for name in ("steps", "trajectory_steps"):
        if cfg.eval[name] is not None and cfg.eval[name] < 1:
            raise InputError(f"eval.{name}={cfg.eval[name]}: give 1 or more, or null.")
    if unknown := set(cfg.eval.final) - {"sts", "transfer"}:
        raise InputError(f"eval.final holds {', '.join(sorted(unknown))}: give sts, transfer, or [].")
    if cfg.augment.kind == "mlm" and cfg.optim.get("dataloader_num_workers", 0):
        raise InputError("augment.kind=mlm runs a model in the collator: set optim.dataloader_num_workers=0.")


def check_examples_fit(cfg: DictConfig, examples: Examples) -> None:
    """Refuse options that the data's number of columns rules out."""
    width = len(examples.columns)
    if width < 3 and cfg.loss.hard_negative_weight != 0:
        raise InputError(
            f"loss.hard_negative_weight={cfg.loss.hard_negative_weight}, but {examples.source} has {width} column(s) "
            f"and no hard negatives. Give a third column, or set it to 0."
        )
    if width > 1 and cfg.objective != "same_sentence":
        raise InputError(f"objective={cfg.objective} is for one column of sentences; {examples.source} has {width}.")


def build_arguments(cfg: DictConfig, folder: Path) -> TrainingArguments:
    """TrainingArguments of this run; the global batch is split over the processes."""
    evaluates = cfg.eval.steps is not None
    options = {
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_nan_inf_filter": False,  # LossGuard's business, and it would read every loss back from the GPU
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        # Not left to the library: without it, processes on a CPU do not see each other.
        "use_cpu": not torch.accelerator.is_available(),
        **OmegaConf.to_container(cfg.optim, resolve=True),
    }
    args = training_arguments(
        options,
        folder,
        launch=cfg.launch,
        seed=cfg.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=cfg.eval.steps if evaluates else None,
    )
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process, whose replicas would each use their own negatives only. "
            f"Use launch=torchrun launch.processes={args.n_gpu}, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    if args.fsdp:
        raise InputError("optim.fsdp: these encoders fit one GPU; to shard optimiser states use launch=deepspeed.")
    if args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise InputError(
            f"launched with {os.environ['WORLD_SIZE']} processes, but Trainer sees {args.world_size}: each would "
            f"train alone. On processes without a GPU leave optim.use_cpu out, or true."
        )
    args.per_device_train_batch_size, args.gradient_accumulation_steps = split_batch(
        cfg.batch_size, args.world_size, cfg.forward_batch_size
    )
    # Negatives are gathered from all processes, which must hold equal numbers of them; alone, the last batch is kept.
    args.dataloader_drop_last = args.world_size > 1
    return args


def build_encoders(cfg: DictConfig, examples: Examples, folder: Path, args: TrainingArguments):
    """(tokenizer, encoder, second encoder or None). `model=tiny` is made here, from the training text."""
    name = cfg.model if cfg.init_from is None else cfg.init_from
    if name == "tiny":
        path = folder / "scratch"
        with args.main_process_first(local=False, desc="tiny encoder"):
            if not (path / "config.json").exists():
                texts = [text for column in examples.columns for text in column]
                build_tiny(texts, path, seed=cfg.seed, **cfg.scratch)
    else:
        path = Path(hub.model_path(name, PAPER))
        if (path / "trainer_state.json").exists():
            log.warning(
                "%s holds the state of a training; only its weights are used (resume_from goes on with it)", path
            )
    head = "random" if cfg.init_from is None else "load"

    def load() -> SentenceEncoder:
        encoder = SentenceEncoder.from_pretrained(
            path,
            pooler=cfg.pooler,
            head=head,
            mlp_only_train=cfg.mlp_only_train,
            mlm=cfg.loss.mlm,
            tie_mlm=cfg.loss.mlm_tied,
        )
        if cfg.compute.attention is not None:
            encoder.backbone.set_attn_implementation(cfg.compute.attention)
        return encoder

    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder = load()
    encoder.check_tokenizer(tokenizer, mlm=cfg.loss.mlm)
    if cfg.data.max_length > encoder.max_length:
        raise InputError(f"data.max_length={cfg.data.max_length}: the model has {encoder.max_length} positions.")
    return tokenizer, encoder, load() if cfg.encoders == 2 else None


def build_model(cfg: DictConfig, encoder: SentenceEncoder, second, args: TrainingArguments) -> ContrastiveModel:
    row_chunks = cfg.compute.row_chunks
    if row_chunks is None:
        row_chunks = CPU_ROW_CHUNKS if args.device.type == "cpu" else None
    return ContrastiveModel(
        encoder,
        second_encoder=second,
        temperature=cfg.loss.temperature,
        similarity=cfg.loss.similarity,
        hard_negative_weight=cfg.loss.hard_negative_weight,
        mlm_weight=cfg.loss.mlm_weight if cfg.loss.mlm else 0.0,
        dropout=cfg.dropout.p,
        fixed_mask=cfg.dropout.fixed_mask,
        row_chunks=row_chunks,
        grad_cache_chunk=cfg.compute.grad_cache_chunk,
        released_ddp_scale=cfg.compat.released_ddp_scale,
    )


def build_collator(cfg: DictConfig, examples: Examples, tokenizer, args: TrainingArguments) -> Collator:
    """Token files of every column (one process writes, the others open) and what makes batches of them."""
    cache = runs_root() / PAPER / "tokens"
    with args.main_process_first(local=True, desc="tokenise"):
        columns = tuple(tokenize(column, tokenizer, cfg.data.max_length, cache) for column in examples.columns)
    count, chosen = len(examples), None
    if len(columns) == 1:
        objective = "same_sentence" if cfg.objective == DELETE_ONE_WORD else cfg.objective
        chosen = positives(objective, examples.document, len(examples), cfg.seed)
        count = len(chosen)
    return Collator(
        columns,
        tokenizer,
        count,
        cfg.seed,
        max_length=cfg.data.max_length,
        positives=chosen,
        augment=build_augmenter(cfg),
        texts=examples.columns,
        mask=MaskTokens(tokenizer, cfg.loss.mlm_probability) if cfg.loss.mlm else None,
        pad_to_max_length=cfg.data.pad_to_max_length,
    )


def build_augmenter(cfg: DictConfig) -> Augmenter | None:
    kind = DELETE_ONE_WORD if cfg.objective == DELETE_ONE_WORD else cfg.augment.kind
    if kind is None:
        return None
    masked_lm = MaskedLanguageModel(hub.model_path(cfg.augment.mlm_model, PAPER)) if kind == "mlm" else None
    return Augmenter(kind, percent=cfg.augment.percent, sides=cfg.augment.sides, seed=cfg.seed, masked_lm=masked_lm)


def warn_of_repeats(cfg: DictConfig, examples: Examples, chosen: Positives | None, sampler: EpochSampler) -> None:
    """Say how often a sentence of the first epoch meets its own copy in a batch, as its negative."""
    if len(examples.columns) > 1:
        return
    numbers = sentence_numbers(examples.columns[0])[chosen.anchors]
    repeats, batches = repeats_in_batches(numbers, sampler.order(0), cfg.batch_size)
    if repeats:
        log.warning(
            "%d sentence(s) meet their own copy in one of %d batches of epoch 0, as false negatives. Remove repeated "
            "lines from %s.",
            *(repeats, batches, examples.source),
        )


def measure_training(trainer: ContrastiveTrainer, start: Start, run: Run) -> None:
    """Train to the end (from a checkpoint, if there is one) and note time, steps and loss."""
    if start.checkpoint is not None:
        check_weights_fit(start.checkpoint, trainer.model)
    begun, first_step = time.monotonic(), start.step
    trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    seconds = time.monotonic() - begun
    steps = trainer.state.global_step
    if steps % (trainer.args.eval_steps or steps + 1):
        trainer.evaluate()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    run.metrics["train"] = {
        "steps": steps,
        "resumed_at_step": first_step,
        "last_loss": losses[-1] if losses else None,
        "steps_per_second": (steps - first_step) / seconds if steps > first_step else None,
        "processes": trainer.args.world_size,
    }


def finish(cfg: DictConfig, trainer: ContrastiveTrainer, tokenizer, folder: Path, run: Run) -> None:
    """Best weights back, their dev scores, the model folder, test sets if asked for, and results.json last."""
    trainer.restore_best()
    step = trainer.state.global_step
    scores = trainer.dev.scores(trainer.embed, step)
    run.metrics |= named_for_results(scores) | named_for_results(trainer.dev.geometry(trainer.embed, step))
    run.metrics["best_step"] = trainer.best.step
    run.metrics["before"] = before_training(folder)
    trainer.save_encoder(folder / "model", tokenizer)
    if trainer.args.should_save:
        run.metrics |= final_tests(cfg, trainer)
        run.finish()


def before_training(folder: Path) -> dict:
    """The untrained encoder's scores, as the run (or the part of it before it was resumed) logged them."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["step"] == 0]
    return named_for_results({k: v for line in lines for k, v in line.items() if k.startswith("eval_")})


def named_for_results(scores: dict[str, float | None]) -> dict[str, float | None]:
    """Trainer's metric names as results.json has them: stsb_dev, sickr_dev, avg_dev (or graded_dev), align, uniform."""
    names = {"eval_avg_sts": "avg_dev", "eval_alignment": "align", "eval_uniformity": "uniform"}
    return {names.get(k, k.removeprefix("eval_").replace("_spearman", "_dev")): v for k, v in scores.items()}


def final_tests(cfg: DictConfig, trainer: ContrastiveTrainer) -> dict:
    """Test sets of `eval.final`, measured once on the final model; a set that is not on this machine is an error."""
    if not cfg.eval.final:
        return {}
    from simcse.evaluate import measure

    data_dir = cfg.eval.data_dir or hub.locate(PAPER, "senteval")
    return measure(trainer.embed, data_dir, list(cfg.eval.final))


@entrypoint(config_path="../configs", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one experiment."""
    train(cfg)


if __name__ == "__main__":
    main()
