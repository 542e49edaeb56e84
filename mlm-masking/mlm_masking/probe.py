"""What a pre-trained encoder knows without being fine-tuned: minimal pairs, or linear probes on its frozen layers.

    python -m mlm_masking.probe task=blimp ckpt=runs/mlm-masking/laptop/<name>/model
    python -m mlm_masking.probe task=linear ckpt=... task.of=[sst2,cola]

A finished part (a paradigm, a probed task) is kept in the run's folder and not computed again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from mlm_masking import glue, linear_probe
from mlm_masking.blimp import VARIANTS, overall, read_paradigms, score_paradigm
from mlm_masking.classification import prepare
from mlm_masking.encoders import load_model, load_tokenizer, locate_model, model_name
from mlm_masking.finished import read_finished, write_finished
from mlm_masking.weight_files import fingerprint
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import Run
from shared.training import run_folder

PAPER = "mlm-masking"


class Parts:
    """Finished parts of a probe.

    Args:
        folder: where they are. identity: what every part depends on; parts of another run are refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part's result, read or computed. Raises InputError where the folder is of another run."""
        path = self.folder / f"{name}.json"
        result = read_finished(path, self.identity)
        if result is None:
            result = compute()
            write_finished(path, self.identity, result)
        return result


def probe_blimp(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Accuracy on every paradigm at hand."""
    if cfg.task.variant not in VARIANTS:
        raise InputError(f"task.variant={cfg.task.variant}: give one of {', '.join(VARIANTS)}")
    data = Path(cfg.task.folder).expanduser() if cfg.task.folder else hub.locate(PAPER, "blimp")
    names = None if cfg.task.paradigms is None else list(cfg.task.paradigms)
    paradigms = read_paradigms(data, names, cfg.task.pairs)
    model = load_model(cfg.ckpt, "masked_lm", device=cfg.device)
    tokenizer = load_tokenizer(cfg.ckpt, model.config.vocab_size)
    options = {"variant": cfg.task.variant, "batch_tokens": cfg.batch_tokens}
    identity = {"model": fingerprint(locate_model(cfg.ckpt)), "variant": cfg.task.variant, "pairs": cfg.task.pairs}
    parts = Parts(folder / "paradigms", identity)
    results = {
        paradigm.name: parts.get(paradigm.name, lambda one=paradigm: score_paradigm(model, tokenizer, one, **options))
        for paradigm in tqdm(paradigms, desc="BLiMP", unit=" paradigms", disable=not cfg.progress)
    }
    found = overall(results)
    # What else is known of a paradigm is in its part; results.json keeps what is compared.
    return found | {"paradigms": {name: one["accuracy"] for name, one in found["paradigms"].items()}}


def probe_linear(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Probes of every layer on every task, the same on a random encoder, and the majority class."""
    if not cfg.task.of:
        raise InputError("task.of is empty: give GLUE tasks, as in task.of=[sst2,cola]")
    model = load_model(cfg.ckpt, "none", device=cfg.device)
    layers = None if cfg.task.layers is None else list(cfg.task.layers)
    identity = {
        "model": fingerprint(locate_model(cfg.ckpt)),
        "seed": cfg.seed,
        **{key: _plain(cfg.task[key]) for key in ("pooling", "layers", "size", "random_twin")},
    }
    parts = Parts(folder / "tasks", identity)
    options = {"pooling": cfg.task.pooling, "layers": layers, "seed": cfg.seed}

    def probe(name: str) -> dict[str, Any]:
        prepared = prepare(cfg.ckpt, glue.load_task(name), size=cfg.task.size)
        result = {"data": prepared.origin, "metric": prepared.task.metric, "majority": linear_probe.baseline(prepared)}
        result |= linear_probe.probe_encoder(model, prepared, **options)
        if cfg.task.random_twin:
            result["random"] = linear_probe.probe_encoder(
                linear_probe.random_twin(model, cfg.seed), prepared, **options
            )
        return result

    return {"tasks": {name: parts.get(name, lambda one=name: probe(one)) for name in cfg.task.of}}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def print_blimp(metrics: dict[str, Any], console: Console) -> None:
    """Accuracy by paradigm, in percent."""
    table = Table(title="BLiMP, pseudo-log-likelihood", title_justify="left")
    table.add_column("paradigm")
    table.add_column("accuracy", justify="right")
    for name, accuracy in metrics["paradigms"].items():
        table.add_row(name, f"{100 * accuracy:.1f}")
    table.add_section()
    table.add_row(f"mean of {len(metrics['paradigms'])} of BLiMP's 67 paradigms", f"{100 * metrics['accuracy']:.1f}")
    console.print(table)


def print_linear(metrics: dict[str, Any], console: Console) -> None:
    """The score of every layer, times 100, beside the majority's."""
    for name, one in metrics["tasks"].items():
        table = Table(title=f"{name} ({one['data']}): {one['metric']} x 100 by layer", title_justify="left")
        for column in ("layer", "encoder", *(["random encoder"] if "random" in one else [])):
            table.add_column(column, justify="right")
        dev = next(iter(one["majority"]))
        for layer in one["layers"]:
            sides = [one, *([one["random"]] if "random" in one else [])]
            table.add_row(layer, *(f"{100 * side['layers'][layer][dev][one['metric']]:.1f}" for side in sides))
        console.print(table)
        console.print(f"majority class: {100 * one['majority'][dev][one['metric']]:.1f}")


PROBES = {"minimal_pairs": (probe_blimp, print_blimp), "linear_probe": (probe_linear, print_linear)}


@entrypoint(config_path="../configs", config_name="probe")
def main(cfg: DictConfig) -> None:
    """Probe one encoder."""
    if cfg.task.kind not in PROBES:
        raise InputError(
            f"task={cfg.task.name} is a task of mlm_masking.finetune; probe takes task=blimp or task=linear"
        )
    probe, show = PROBES[cfg.task.kind]
    name = cfg.name or f"probe_{model_name(cfg.ckpt)}_{cfg.task.name}"
    folder = run_folder(PAPER, cfg.scale, name, cfg.output_dir)
    run = Run(PAPER, name, cfg.scale, cfg.output_dir, config=cfg, seed=cfg.seed)
    run.metrics |= {"model": model_name(cfg.ckpt), **probe(cfg, folder)}
    console = Console()
    show(run.metrics, console)
    run.finish(console)


if __name__ == "__main__":
    main()
