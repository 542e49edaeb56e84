"""What `make plan-<paper>` is made of: GPUs, the experiment files as they would run, and what this machine lacks.

A paper's own `plan.py` holds its formulas (tokens, FLOPs, memory, hours); here is what all plans share. The settings
are read by composing the paper's configurations, so a plan is of what would run.
"""

import contextlib
import copy
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import shared.launch  # noqa: F401 (puts the shared configurations on Hydra's search path)
from shared import InputError, hub
from shared.results import write_atomic
from shared.sources import human_bytes, sources


@dataclass(frozen=True)
class GPU:
    """Dense bf16 (fp16 where there is no bf16) tensor peak in TFLOP/s with fp32 accumulation, memory in GB and its
    bandwidth in GB/s, from the vendors' data sheets."""

    tflops: float
    memory_gb: float
    bandwidth_gbs: float


GPUS = {
    "V100": GPU(125, 32, 900),
    "RTX3090": GPU(71, 24, 936),
    "RTX4090": GPU(165, 24, 1008),
    "L4": GPU(121, 24, 300),
    "L40S": GPU(362, 48, 864),
    "A100": GPU(312, 80, 2039),
    "H100": GPU(989, 80, 3350),
    "H200": GPU(989, 141, 4800),
    "B200": GPU(2250, 180, 8000),
}


def chosen_gpu(name: str) -> GPU:
    """The GPU of that name. Raises InputError with the names there are."""
    if name not in GPUS:
        raise InputError(f"gpu={name} is not listed; known: {', '.join(GPUS)}")
    return GPUS[name]


def check_numbers(cfg: DictConfig, fractions: Iterable[str] = (), counts: Iterable[str] = ()) -> None:
    """Refuse a plan's fractions outside (0, 1] and counts that are no whole number of at least 1 (InputError)."""
    for name in fractions:
        if not _is_number(cfg[name], int | float) or not 0 < cfg[name] <= 1:
            raise InputError(f"{name}={cfg[name]}: give a fraction of the peak in (0, 1]")
    for name in counts:
        if not _is_number(cfg[name], int) or cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]}: give a whole number of at least 1")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


# -------------------------------------------------------------------------------------------- reading the experiments


@contextlib.contextmanager
def composing(configs: Path) -> Iterator[None]:
    """Hydra set up on a paper's `configs` folder; inside an entrypoint it is set up already."""
    if GlobalHydra.instance().is_initialized():
        yield
    else:
        with hydra.initialize_config_dir(str(configs), version_base="1.3"):
            yield


def experiment_files(configs: Path) -> list[str]:
    """The names of the experiment files, in alphabetical order."""
    return sorted(path.stem for path in (configs / "experiment").glob("*.yaml"))


def chosen_experiments(configs: Path, names: Iterable[str] | None) -> list[str]:
    """`names`, or all experiment files for None. Raises InputError for a name that is no file."""
    files = experiment_files(configs)
    if names is None:
        return files
    names = list(names)
    if unknown := sorted(set(names) - set(files)):
        raise InputError(f"experiments: there is no {', '.join(unknown)}; there are {', '.join(files)}")
    return names


def runs_of(
    configs: Path, experiment: str, overrides: tuple[str, ...] = (), config_name: str = "config"
) -> list[DictConfig]:
    """The configuration of every run of an experiment file: one, or at scale paper one per point of its sweep."""
    return [run for run, _ in counted_runs_of(configs, experiment, overrides, config_name)]


def counted_runs_of(
    configs: Path,
    experiment: str,
    overrides: tuple[str, ...] = (),
    config_name: str = "config",
    alike: frozenset[str] = frozenset(),
) -> list[tuple[DictConfig, int]]:
    """`runs_of`, where runs that differ only in the swept keys `alike` (seeds, rates) are one with their number."""
    base = [f"experiment={experiment}", *overrides]
    with composing(configs):
        whole = hydra.compose(config_name, base, return_hydra_config=True)
        sweep = OmegaConf.to_container(whole.hydra.sweeper, resolve=False).get("params") or {}
        OmegaConf.set_struct(whole, False)
        del whole["hydra"]
        if not sweep or whole.scale != "paper":
            return [(whole, 1)]
        parser = OverridesParser.create()
        axes, count = [], 1
        for key, choices in sweep.items():
            (override,) = parser.parse_overrides([f"{key}={choices}"])
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [choices]
            if key in alike:
                count *= len(values)
                values = values[:1]
            axes.append([f"{key}={value}" for value in values])
        points = list(itertools.product(*axes))
        if any((configs / key).is_dir() for key in sweep):  # choosing a group's file needs Hydra
            return [(hydra.compose(config_name, [*base, *point]), count) for point in points]
        return [(_with_values(whole, parser.parse_overrides(list(point))), count) for point in points]


def _with_values(whole: DictConfig, overrides: list[Override]) -> DictConfig:
    """A copy with plain values set as Hydra sets them: ten times faster than composing again."""
    cfg = copy.deepcopy(whole)
    for override in overrides:
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


# --------------------------------------------------------------------------------------------------- what is at hand


def availability(paper: str, names: Iterable[str]) -> dict[str, str | None]:
    """For each needed source: None if it is on this machine (mirror or cache), else what would have to be done."""
    known = sources(paper)
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # a plan looks, it downloads nothing
    try:
        return {name: _missing(paper, name, known) for name in sorted(set(names))}
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def _missing(paper: str, name: str, known: dict[str, Any]) -> str | None:
    if name not in known:
        return f"no download listed in {paper}/sources.yaml: prepare it and give its path"
    try:
        hub.locate(paper, name)
    except hub.NotAvailable:
        size, origin = human_bytes(known[name].bytes), known[name].origin
        return f"{size} from {origin}: make mirror-{paper} ARGS={name}"
    return None


def download_bytes(paper: str, missing: dict[str, str | None]) -> int:
    """The listed sizes of what is missing, summed."""
    known = sources(paper)
    return sum(known[name].bytes or 0 for name, what in missing.items() if what and name in known)


def machine_lacks(gpu_name: str, gpus: int, download: int) -> list[str]:
    """What this machine lacks in general: the GPUs, disk for the downloads."""
    import torch

    lacks = []
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here < gpus:
        lacks.append(f"GPU: {here} here, {gpus} x {gpu_name} planned")
    free = shutil.disk_usage(Path.home()).free
    if free < 2 * download:  # an archive lies beside what is unpacked from it
        lacks.append(f"disk: {human_bytes(free)} free, {human_bytes(2 * download)} wanted for the downloads")
    return lacks


# -------------------------------------------------------------------------------------------------------------- output


def print_lacks(console: Console, general: Iterable[str], missing: dict[str, str | None]) -> None:
    """What the machine lacks and what is missing of data and models, a line each."""
    for line in general:
        console.print(f"  lacking: {line}", style="yellow", highlight=False)
    for name, what in missing.items():
        if what:
            console.print(f"  missing: {name}: {what}", style="yellow", highlight=False, soft_wrap=True)


def deliver(
    cfg: DictConfig,
    estimates: list[dict[str, Any]],
    missing: dict[str, str | None],
    general: list[str],
    assumptions: dict[str, Any],
    show: Callable[[], None],
) -> None:
    """The plan as `output` says (JSON, or the table that `show` prints), and as plan.json in `output_dir` if given.

    Raises:
        InputError: an `output` that is neither.
    """
    assumptions = {"gpu": cfg.gpu, **asdict(chosen_gpu(cfg.gpu)), **assumptions}
    missing = {name: what for name, what in missing.items() if what}
    whole = {"estimates": estimates, "assumptions": assumptions, "missing": missing, "machine_lacks": general}
    text = json.dumps(whole, indent=1) + "\n"
    if cfg.output == "json":
        print(text, end="")
    elif cfg.output == "table":
        show()
    else:
        raise InputError(f"output={cfg.output}: give table or json")
    if cfg.output_dir is not None:
        write_atomic(Path(cfg.output_dir).expanduser() / "plan.json", text)
