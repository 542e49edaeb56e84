"""From a Hydra configuration to transformers' `TrainingArguments`: run folders, seeds, resume, the metrics log.

The engine of every paper is transformers' Trainer, so DeepSpeed, FSDP, bf16, progress bars, TensorBoard and W&B are the
library's. What is here is the small rest: where a run's files are, a strict reading of options (a misspelt one is an
error, not silence), which checkpoint of a killed run is whole, and metrics as JSON lines that stay a straight sequence
over kills and resumptions.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import TrainerCallback, TrainingArguments, set_seed

from shared import InputError
from shared.results import write_atomic
from shared.run_folders import run_folder as run_folder
from shared.run_folders import runs_root as runs_root


def training_arguments(
    options: Mapping[str, Any] | DictConfig, output_dir: Path, *, launch: DictConfig | None = None, **overrides: Any
) -> TrainingArguments:
    """Build `TrainingArguments` from a configuration group.

    Args:
        options: any of TrainingArguments' own names; what is not given keeps the library's default, except that nothing
            is reported to outside services (`report_to: none`).
        output_dir: the run's folder; checkpoints are written into `<output_dir>/checkpoints`.
        launch: the `launch` group; with a `zero_stage` it becomes the DeepSpeed configuration.
        overrides: values that the code decides, over `options`.

    Raises:
        InputError: an unknown option (with the nearest name), or a value TrainingArguments refuses.
    """
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    merged = {"report_to": "none", **options, **overrides}
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name in merged:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(
                f"training option {name!r} is not known to transformers. "
                + (f"Did you mean {near[0]!r}?" if near else "")
            )
    if launch is not None and launch.get("zero_stage") is not None:
        merged["deepspeed"] = deepspeed_config(launch.zero_stage, launch.get("offload", "none"))
    try:
        return TrainingArguments(output_dir=str(output_dir / "checkpoints"), **merged)
    except (ValueError, TypeError) as error:
        raise InputError(f"transformers refuses the training options: {error}") from error


def deepspeed_config(zero_stage: int, offload: str = "none") -> dict[str, Any]:
    """A ZeRO configuration whose batch, precision and schedule follow TrainingArguments ("auto").

    The optimiser is torch's own AdamW on CPU ranks: DeepSpeed's fused one is compiled at first use by a toolchain that
    a laptop may lack.
    """
    import torch

    if zero_stage not in (0, 1, 2, 3):
        raise InputError(f"launch.zero_stage={zero_stage}: give 0, 1, 2 or 3.")
    if offload not in ("none", "cpu"):
        raise InputError(f"launch.offload={offload}: give none or cpu.")
    zero: dict[str, Any] = {"stage": zero_stage}
    if offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    adamw = {
        "lr": "auto",
        "betas": "auto",
        "eps": "auto",
        "weight_decay": "auto",
        "torch_adam": not torch.cuda.is_available(),
    }
    return {
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": adamw},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below a run's folder (or its `checkpoints/`), or None.

    Trainer writes weights, optimiser and random states first and `trainer_state.json` last, so a checkpoint is whole
    when that file parses. One that a kill left half-written is passed over.
    """
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    whole = []
    for state_file in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            step = int(json.loads(state_file.read_text(encoding="utf-8"))["global_step"])
        except (ValueError, KeyError, OSError):
            continue
        whole.append((step, state_file.parent))
    return max(whole)[1] if whole else None


class MetricsLog(TrainerCallback):
    """Writes what Trainer logs as JSON lines: `{"step", "epoch", "seconds", ...}`, losses and scores as plain numbers.

    On a resumed run the lines past the checkpoint are dropped before the first new one, so that a step appears once.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started = time.monotonic()
        self.seconds_before = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        kept = (
            [line for line in read_metrics(self.path) if line["step"] <= state.global_step] if state.global_step else []
        )
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.started = time.monotonic()
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            self.append(state.global_step, state.epoch, logs)

    def append(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        """Add one line (from the main process only)."""
        seconds = round(self.seconds_before + time.monotonic() - self.started, 3)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, "seconds": seconds, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics log; a last line torn by a kill is left out."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}.")
    set_seed(seed)
