"""How a training run begins in its folder: new, from a checkpoint of its own, from another's, or not at all.

`resume` says what may happen where the folder holds an earlier run:

    auto     unfinished and of the same configuration: go on; finished: leave it; another configuration: refuse if
             unfinished (its checkpoint would be lost), start over if finished
    never    refuse any folder that holds a run
    restart  start over

Initial weights are another matter (`model`, `init_from`): a model folder that happens to hold a trainer state never
makes a run resume. Only `resume_from` and the run's own folder do.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from safetensors import safe_open
from torch import nn
from transformers import TrainingArguments

from shared import InputError
from shared.results import write_atomic
from shared.run_folders import changed_settings, settings_of
from shared.training import latest_checkpoint

log = logging.getLogger(__name__)

CONFIG = "config.json"
RESULTS = "results.json"
# What may differ between a run and its continuation: where it is, how it is started, what is shown.
FREE = ("output_dir", "resume", "resume_from", "launch", "optim.disable_tqdm", "optim.dataloader_num_workers")
PRODUCTS = ("checkpoints", "model", "scratch", "best.safetensors", "metrics.jsonl", RESULTS, CONFIG)


@dataclass(frozen=True)
class Start:
    """`checkpoint`: go on from there (None = step 0). `finished`: nothing to do. `clear`: empty the folder."""

    checkpoint: Path | None = None
    finished: bool = False
    clear: bool = False

    @property
    def step(self) -> int:
        """The step the run goes on from."""
        if self.checkpoint is None:
            return 0
        return int(json.loads((self.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def decide_start(cfg: DictConfig, folder: Path) -> Start:
    """Read the folder (nothing is changed) and decide.

    Raises:
        InputError: a run is in the way, or `resume_from` is not a checkpoint.
    """
    if cfg.resume not in ("auto", "never", "restart"):
        raise InputError(f"resume={cfg.resume}: give auto, never or restart.")
    if cfg.resume_from is not None:
        return Start(_checkpoint(Path(cfg.resume_from).expanduser()), clear=cfg.resume == "restart")
    if cfg.resume == "restart":
        return Start(clear=True)
    checkpoint, finished = latest_checkpoint(folder), (folder / RESULTS).exists()
    if not finished and checkpoint is None:
        return Start(clear=True)  # killed before its first checkpoint, or new
    if cfg.resume == "never":
        raise InputError(f"{folder} holds a run already. Use another output_dir, resume=auto or resume=restart.")
    changed = changed_settings(settings_of(cfg, FREE), folder / CONFIG)
    if changed is None:
        changed = [f"no readable {CONFIG}"]
    if finished:
        return Start(clear=True) if changed else Start(finished=True)
    if changed:
        raise InputError(
            f"{folder} holds an unfinished run of another configuration ({'; '.join(changed)}). Use the same options "
            f"to go on with it, another output_dir, or resume=restart."
        )
    return Start(checkpoint)


def _checkpoint(path: Path) -> Path:
    if not (path / "trainer_state.json").exists():
        inner = latest_checkpoint(path) if path.is_dir() else None
        hint = f" Did you mean {inner}?" if inner else ""
        raise InputError(f"resume_from={path} is not a training checkpoint: it has no trainer_state.json.{hint}")
    return path.resolve()


def open_folder(cfg: DictConfig, folder: Path, start: Start, args: TrainingArguments) -> None:
    """Make the folder this run's own, on process 0 while the others wait."""
    with args.main_process_first(local=False, desc="run folder"):
        if args.process_index == 0:
            folder.mkdir(parents=True, exist_ok=True)
            if start.clear:
                _clear(folder, keep=start.checkpoint)
            write_atomic(folder / CONFIG, json.dumps(settings_of(cfg, FREE), indent=1, sort_keys=True))


def _clear(folder: Path, keep: Path | None) -> None:
    for name in PRODUCTS:
        path = folder / name
        if keep is not None and keep.is_relative_to(path):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_weights_fit(checkpoint: Path, model: nn.Module) -> None:
    """Refuse a checkpoint of another model before Trainer loads half of it. Raises InputError with one difference."""
    file = checkpoint / "model.safetensors"
    if not file.exists():  # DeepSpeed's own format, checked by DeepSpeed
        return
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with safe_open(file, "pt") as stored:
        theirs = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise InputError(
                f"{checkpoint} is of another model: {name} is {theirs.get(name, 'missing')} there and "
                f"{mine.get(name, 'missing')} here. Resume with the model the run was started with."
            )
