"""`python -m mezo.replay base=facebook/opt-13b traj=run.mzt out=folder`: a fine-tuned model from its list of numbers.

    base model -> the mode that the trajectory's header names -> every record applied, in order -> `out`

With mode=full of a causal model `out` is a plain model folder with its tokenizer; else it holds the trained tensors
alone (`mezo.modes.load_trained` puts them on the base). The folder appears whole or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from mezo.models import family_of, folder_of
from mezo.modes import save_trained
from mezo.probe import load_rows, write_rows
from mezo.problem import causal_model, masked_model
from mezo.scales import EpochScales
from mezo.trajectory import Header, read, replay
from shared import InputError
from shared.launch import entrypoint

log = logging.getLogger(__name__)


def rebuild(cfg: DictConfig) -> tuple[nn.Module, int]:
    """Write `out`; returns the model and the number of records applied.

    Raises:
        InputError: no such file, a broken one, one of another base, or an `out` that is there already.
    """
    for name in ("traj", "out"):
        if cfg[name] is None:
            raise InputError(f"{name} is missing: python -m mezo.replay base=<model> traj=<file> out=<folder>")
    out = Path(cfg.out).expanduser()
    if out.exists():
        raise InputError(f"out={cfg.out} is there already; give a new folder")
    path = Path(cfg.traj).expanduser()
    header, _ = read(path)
    run = run_of(header, cfg)
    folder = folder_of(run.model)
    masked = family_of(folder, run.family) == "masked"
    build, about = (masked_model if masked else causal_model)(run, folder)
    model = build()
    if run.probe_first:
        rows = Path(cfg.probe).expanduser() if cfg.probe else path.with_name("probe.safetensors")
        if not rows.exists():
            raise InputError(f"the run started from linear probing, and {rows} is not there; give probe=<file>")
        write_rows(model, load_rows(rows))
    again = header.extra.get("scales") == "a function"
    scales = EpochScales.of_a_run(path.with_name("scales.jsonl"), header.names) if again else None
    count = replay(model, path, check_base=cfg.check_base, steps=cfg.steps, scales=scales)
    write(model, out, None if masked or run.mode.kind != "full" else about.tokenizer, header)
    return model, count


def run_of(header: Header, cfg: DictConfig) -> DictConfig:
    """The run's configuration as the header has it, with the base that was asked for."""
    about = header.extra.get("about") or {}
    if "mode.kind" not in about:
        raise InputError(
            f"traj={cfg.traj} was written by a program of its own and names no mode; replay it in Python with "
            "mezo.trajectory.replay(model, file)"
        )
    run = OmegaConf.create({})
    for name, value in about.items():
        OmegaConf.update(run, name, value)
    if cfg.base is not None:
        run.model = cfg.base
    run.device = cfg.device
    return run


def write(model: nn.Module, out: Path, tokenizer, header: Header) -> None:
    """The folder, under another name until it is whole."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if tokenizer is not None:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        else:
            save_trained(model, partial, {"base": header.base, "base_sha256": header.base_sha256})
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@entrypoint(config_name="replay")
def main(cfg: DictConfig) -> None:
    _, count = rebuild(cfg)
    Console().print(f"{count} steps of {cfg.traj} applied: {cfg.out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
