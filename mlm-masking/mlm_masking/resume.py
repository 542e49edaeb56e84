"""How a pre-training begins in its folder: new, from its own last checkpoint, or not at all because it is finished.

    resume=auto     unfinished: go on; finished: leave it (a cell of a sweep is never run twice)
    resume=never    refuse a folder that holds a run
    resume=restart  start over

A folder of another configuration (another rate, strategy, seed, ...) is always refused but for `restart`: going on
would mix two experiments, and starting over would lose one.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig

from shared import InputError
from shared.results import write_atomic
from shared.run_folders import changed_settings, settings_of
from shared.training import latest_checkpoint

SETTINGS = "run.json"
RESULTS = "results.json"
MODES = ("auto", "never", "restart")
# What may differ between a run and its continuation: where it is, how it is started, what is shown and kept.
FREE = (
    "output_dir",
    "resume",
    "launch",
    "stop_after_minutes",
    "forward_batch_size",
    "data_processes",
    "optim.disable_tqdm",
    "optim.dataloader_num_workers",
    "optim.save_steps",
    "optim.save_total_limit",
)
PRODUCTS = ("checkpoints", "model", "snapshots", "metrics.jsonl", "plots", RESULTS, SETTINGS)


@dataclass(frozen=True)
class Start:
    """`checkpoint`: go on from there (None = update 0). `finished`: nothing to do."""

    checkpoint: Path | None = None
    finished: bool = False

    @property
    def update(self) -> int:
        """Updates that are done already."""
        if self.checkpoint is None:
            return 0
        return int(json.loads((self.checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def decide_start(cfg: DictConfig, folder: Path) -> Start:
    """Read the folder (nothing is changed) and decide. Raises InputError where another run is in the way."""
    if cfg.resume not in MODES:
        raise InputError(f"resume={cfg.resume}: give one of {', '.join(MODES)}")
    checkpoint, finished = latest_checkpoint(folder), (folder / RESULTS).exists()
    if cfg.resume == "restart" or not (finished or checkpoint):
        return Start()  # new, or killed before its first checkpoint
    if cfg.resume == "never":
        raise InputError(f"{folder} holds a run already: give another output_dir, or resume=auto or restart")
    changed = changed_settings(settings_of(cfg, FREE), folder / SETTINGS)
    if changed is None:
        changed = [f"no readable {SETTINGS}"]
    if changed:
        raise InputError(
            f"{folder} holds {'a finished' if finished else 'an unfinished'} run of another configuration "
            f"({'; '.join(changed)}): give another experiment or output_dir, or resume=restart to start over"
        )
    return Start(finished=True) if finished else Start(checkpoint)


def agree_on_start(cfg: DictConfig, folder: Path) -> Start:
    """`decide_start` on the main process, its answer or complaint on all of them; a joint act of all ranks.

    Were each to look by itself, one could see a checkpoint that another does not see yet (the main process writes
    `trainer_state.json` last and alone, network file systems show new files late): they would begin at different
    updates and wait for each other for ever.
    """
    answer: list[Start | InputError | None] = [None]
    if PartialState().is_main_process:
        try:
            answer = [decide_start(cfg, folder)]
        except InputError as error:
            answer = [error]
    (start,) = broadcast_object_list(answer)
    if isinstance(start, InputError):
        raise start
    return start


def open_folder(cfg: DictConfig, folder: Path, start: Start) -> None:
    """Make the folder this run's own; on the main process, while the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    if start.checkpoint is None:
        for name in PRODUCTS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_atomic(folder / SETTINGS, json.dumps(settings_of(cfg, FREE), indent=1, sort_keys=True) + "\n")
