"""Where a run's files are, and whether a folder holds a run of the same configuration. Loads no torch."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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


def settings_of(cfg: DictConfig, free: Collection[str] = ()) -> dict[str, Any]:
    """Every option that decides a run, as {dotted name: value}.

    Args:
        free: options, or groups of them, that may differ between a run and its continuation.
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    walk(OmegaConf.to_container(cfg, resolve=True), "")
    return {name: value for name, value in flat.items() if not any(name == f or name.startswith(f"{f}.") for f in free)}


def changed_settings(settings: dict[str, Any], file: Path) -> list[str] | None:
    """How `settings` differ from those that a folder's run was made with: "name: before -> now", sorted.

    None where the file is lost or cannot be read.
    """
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    now = json.loads(json.dumps(settings))
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]
