"""Where a run's files are. Apart from `shared.training`, which loads torch: most programs have no use for it."""

import os
from pathlib import Path

from shared import InputError


def runs_root() -> Path:
    """The folder of all runs: $REPRO_RUNS, else `runs/` beside the papers' folders."""
    root = os.environ.get("REPRO_RUNS")
    return Path(root).expanduser().resolve() if root else Path(__file__).resolve().parents[2] / "runs"


def run_folder(paper: str, scale: str, experiment: str, output_dir: str | Path | None = None) -> Path:
    """The folder of one run: `output_dir` if given, else `runs/<paper>/<scale>/<experiment>`. Not created here."""
    if output_dir is not None:
        folder = Path(output_dir).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"output_dir={output_dir} is a file. Give a folder, new or from an earlier run.")
        return folder
    return runs_root() / paper / scale / experiment
