"""What a pre-training leaves in results.json: losses, what was masked in fact, when context came in use, the cost."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PretrainedConfig

from mlm_masking.data import BlockDataset
from mlm_masking.heldout import OWN
from mlm_masking.loss import bits_and_perplexity
from mlm_masking.model import parameter_count
from mlm_masking.trainer import MaskingTrainer
from shared.training import read_metrics


def summary(
    cfg: DictConfig, trainer: MaskingTrainer, streams: Sequence[BlockDataset], folder: Path, first: int, begun: float
) -> dict[str, Any]:
    """The metrics of a finished run.

    Args:
        first: the update this process began with. begun: when, by time.monotonic().
    """
    seconds = time.monotonic() - begun
    # Every process has this history, also that of before a resumption; the metrics log is the main one's alone.
    lines = trainer.state.log_history
    ends = [line for line in lines if "eval_own" in line and line["step"] == trainer.state.global_step]
    losses = _losses_of(ends[-1]) if ends else trainer.heldout.losses(trainer.model)
    written = read_metrics(folder / "metrics.jsonl")
    logged = [line for line in lines if "loss" in line]
    updates, model = trainer.state.global_step, trainer.plain_model
    rates = trainer.masker.rates
    tokens = updates * cfg.batch_size * cfg.data.block_length
    corruption, prediction = (
        sum(schedule.at(i / 100) for i in range(101)) / 101 for schedule in (rates.corruption, rates.prediction)
    )
    shown = tokens * max(1.0, trainer.masker.copies(1.0))
    return {
        "model": cfg.model.name,
        "parameters": parameter_count(model),
        "strategy": trainer.masker.strategy,
        "replace": cfg.replace.name,
        "rate": {"corruption": corruption, "prediction": prediction},
        "measured": {name: _mean(line[name] for line in logged) for name in ("pred_rate", "corr_rate")},
        "loss": losses,
        "ppl": bits_and_perplexity(losses[OWN])[1],
        "last_train_loss": logged[-1]["loss"] if logged else None,
        "plateau": plateau(lines, trainer.heldout.unigram_loss(streams), cfg),
        "curve": curve(lines),
        "cost": {
            "updates": updates,
            "resumed_at": first,
            "tokens": tokens,
            "flops": shown * flops_per_token(model.config, prediction / trainer.masker.copies(1.0)),
            "tokens_per_second": tokens * (updates - first) / updates / seconds if updates > first else None,
            "seconds": written[-1]["seconds"] if written else None,
            "processes": trainer.args.world_size,
        },
    }


def _mean(values: Any) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _losses_of(line: dict[str, Any]) -> dict[str, float]:
    """{name: nats} of a logged evaluation."""
    names = [name.removeprefix("eval_") for name in line if name.startswith("eval_")]
    return {name: line[f"eval_{name}"] for name in names if not name.endswith(("_bits", "_ppl"))}


def curve(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The evaluations along the run: {"updates": [...], "own": [...], "15": [...], ...}, nats."""
    evaluated = [line for line in lines if "eval_own" in line]
    if not evaluated:
        return {}
    names = _losses_of(evaluated[0])
    return {"updates": [line["step"] for line in evaluated]} | {
        name: [line[f"eval_{name}"] for line in evaluated] for name in names
    }


def plateau(lines: Sequence[dict[str, Any]], unigram: float, cfg: DictConfig) -> dict[str, Any]:
    """When the model began to use context.

    `unigram` is the held-out loss of token frequencies alone, where `<s>`, at its fixed place, costs nothing;
    `left_at` the first evaluation whose loss at the lowest fixed rate lies `eval.plateau_margin` below it.
    """
    level = unigram * (cfg.data.block_length - 1) / cfg.data.block_length
    name = f"eval_{100 * min(cfg.eval.rates):g}"
    left = [line["step"] for line in lines if name in line and line[name] < level - cfg.eval.plateau_margin]
    return {"unigram_loss": level, "left_at": left[0] if left else None, "margin": cfg.eval.plateau_margin}


def flops_per_token(config: PretrainedConfig, predicted: float) -> float:
    """Floating-point operations of forward and backward pass per token of input.

    Six per weight of the layers' matrices (twelve widths squared a layer with the usual FFN), and of the head's for the
    predicted share of the tokens. Attention's products, 2 % at 128 tokens, are left out.
    """
    width, ffn = config.hidden_size, config.intermediate_size
    body = config.num_hidden_layers * (4 * width**2 + 2 * width * ffn)
    return 6 * (body + predicted * (width**2 + width * config.vocab_size))
