"""Many small pre-trainings and what is asked of each: the cells of the laptop reproduction.

A cell is one pre-training (overrides of `mlm_masking.pretrain`, one seed) and the probes of its model. Each part
leaves one JSON file when it is finished and is never computed again:

    cells/<name>/seed-<n>/training.json, order.json, blimp.json, finetune.json, model/

Cells run side by side, one per core, in processes of one thread: at these sizes a second thread gains little.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from mlm_masking import glue
from mlm_masking.blimp import Paradigm, blimp_accuracy, read_paradigms
from mlm_masking.finished import read_finished, write_finished
from shared.workers import quiet, spread

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
UNTRAINED = "untrained"
# Of a configuration: where its results go and how they are shown, which changes nothing in them.
NO_MATTER = ("output_dir", "launch", "data_processes", "resume", "experiment", "scale", "paper")


@dataclass(frozen=True)
class Probes:
    """What is asked of a model besides its held-out losses; None: not asked.

    Args:
        order: (good, bad) sentences, the bad one with two words exchanged (`mlm_masking.word_order`).
        blimp: the folder of BLiMP. pairs: of each of its paradigms.
        task: name of a GLUE task, or of the offline one with its files (train, dev).
        finetune: lr, batch_size, epochs, size.
    """

    order: Paradigm | None = None
    blimp: Path | None = None
    pairs: int = 50
    task: glue.Task | None = None
    files: tuple[Path, Path] | None = None
    finetune: dict[str, Any] | None = None


@dataclass(frozen=True)
class Cell:
    """One pre-training with one seed.

    Args:
        name: what was varied, such as "tiny/m0.40". cost: roughly, in units of the smallest cell; the dearest go first.
        probed: whether the probes are put to its model.
    """

    name: str
    seed: int
    overrides: tuple[str, ...]
    cost: float = 1.0
    probed: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a pre-training. Raises InputError-like Hydra errors for unknown overrides."""
    from hydra.core.global_hydra import GlobalHydra

    import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)

    # Inside an entrypoint Hydra is initialised already; its configuration has been handed over, so it may go.
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))


class CellRun:
    """The parts of one cell, in its folder below `root`."""

    def __init__(self, cell: Cell, root: Path, probes: Probes, final_blocks: int):
        self.cell, self.probes, self.final_blocks = cell, probes, final_blocks
        self.folder = root / "cells" / cell.name / f"seed-{cell.seed}"
        self.cfg = compose([*cell.overrides, f"seed={cell.seed}"])
        settings = OmegaConf.to_container(self.cfg, resolve=True)
        self.identity = {name: value for name, value in settings.items() if name not in NO_MATTER}
        self.identity |= {"final_blocks": final_blocks, "trained": not cell.name.endswith(UNTRAINED)}

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def part(self, name: str, compute, identity: dict[str, Any]) -> dict[str, Any]:
        """A part's result, read or computed. Raises InputError where the file is of another run."""
        path = self.folder / f"{name}.json"
        result = read_finished(path, identity)
        if result is None:
            begun = time.process_time()
            result = compute()
            result["cpu_seconds"] = time.process_time() - begun
            write_finished(path, identity, result)
        return result

    def results(self) -> dict[str, Any]:
        """Everything that is known of the cell, computing what is missing: {"training": ..., "order": ..., ...}."""
        probes = self.probes
        found = {"training": self.part("training", self._train, self.identity)}
        if not self.cell.probed:
            return found
        if probes.order is not None:
            asked = {"pairs": [len(probes.order), probes.order.good[0]]}
            found["order"] = self.part("order", self._order, self.identity | asked)
        if probes.blimp is not None:
            found["blimp"] = self.part("blimp", self._blimp, self.identity | {"pairs": probes.pairs})
        if probes.task is not None:
            asked = {"task": probes.task.name, "finetune": probes.finetune}
            found["finetune"] = self.part("finetune", self._finetune, self.identity | asked)
        return found

    def finished(self) -> bool:
        """Whether nothing is left to compute. Raises InputError where the folder is of another run."""
        wanted = ["training"]
        if self.cell.probed:
            given = {"order": self.probes.order, "blimp": self.probes.blimp, "finetune": self.probes.task}
            wanted += [name for name, value in given.items() if value is not None]
        read_finished(self.folder / "training.json", self.identity)
        return all((self.folder / f"{name}.json").is_file() for name in wanted)

    # ---------------------------------------------------------------------------------------------------- the parts

    def _train(self) -> dict[str, Any]:
        """Train, and look at more held-out text than during the run."""
        from mlm_masking.heldout import HeldOut
        from mlm_masking.masker import build_masker
        from mlm_masking.model import export
        from mlm_masking.pretrain import build_model, load_text, save_model, train

        cfg, text = self.cfg, load_text(self.cfg)
        if not self.identity["trained"]:
            export(build_model(cfg, text), self.model, text.tokenizer)
            return {}
        done = train(cfg, self.folder, text)
        own = build_masker(cfg, text.vocabulary, seed=cfg.eval.seed)
        heldout = HeldOut(
            text.heldout, text.vocabulary, own, rates=cfg.eval.rates, count=self.final_blocks, seed=cfg.eval.seed,
            rows=cfg.eval.rows,
        )  # fmt: skip
        losses = heldout.losses(done.trainer.plain_model)
        if self.cell.probed:
            save_model(done.trainer, self.model, text.tokenizer)
        kept = ("parameters", "rate", "measured", "plateau", "curve", "cost")
        unigram = {"unigram_loss": heldout.unigram_loss(text.streams)}
        return {name: done.metrics[name] for name in kept} | {"loss": losses} | unigram

    def _masked_lm(self):
        from mlm_masking.encoders import load_model, load_tokenizer

        model = load_model(self.model, "masked_lm", device="cpu")
        return model, load_tokenizer(self.model, model.config.vocab_size)

    def _order(self) -> dict[str, Any]:
        found = blimp_accuracy(*self._masked_lm(), [self.probes.order])
        return {"accuracy": found["accuracy"], "pairs": found["pairs"], "ties": found["ties"]}

    def _blimp(self) -> dict[str, Any]:
        paradigms = read_paradigms(self.probes.blimp, limit=self.probes.pairs)
        found = blimp_accuracy(*self._masked_lm(), paradigms)
        return {
            "accuracy": found["accuracy"],
            "pairs": found["pairs"],
            "paradigms": {name: one["accuracy"] for name, one in found["paradigms"].items()},
        }

    def _finetune(self) -> dict[str, Any]:
        from mlm_masking.classification import finetune, prepare
        from mlm_masking.fitting import Settings

        asked = dict(self.probes.finetune)
        size = asked.pop("size", None)
        files = {} if self.probes.files is None else dict(zip(("train", "dev"), self.probes.files, strict=True))
        files = {name: str(path) for name, path in files.items()}
        prepared = prepare(self.model, self.probes.task, size=size, sampling_seed=self.cell.seed, **files)
        settings = Settings(**asked)
        found = finetune(
            self.model, self.probes.task, seed=self.cell.seed, settings=settings, prepared=prepared, device="cpu"
        )
        majority = max((labels == label).mean() for _, labels in prepared.dev.values() for label in set(labels))
        return {
            "score": found["score"],
            "metrics": found["metrics"],
            "majority": float(majority),
            "data": prepared.origin,
            "examples": len(prepared.train),
        }


def run_cell(cell: Cell, root: Path, probes: Probes, final_blocks: int) -> None:
    """Compute what is missing of a cell, in this process. Raises InputError."""
    with quiet("mlm_masking"):
        CellRun(cell, root, probes, final_blocks).results()


def run_cells(cells: Sequence[Cell], root: Path, probes: Probes, final_blocks: int, processes: int) -> int:
    """Run what is missing of all cells, `processes` at a time; returns how many were not finished before.

    Raises:
        InputError: the first cell that cannot be run, or a folder of another run; what is finished by then is kept.
    """
    todo = [cell for cell in cells if not CellRun(cell, root, probes, final_blocks).finished()]
    todo.sort(key=lambda cell: -cell.cost)  # so that no core waits at the end
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), desc="runs", unit="run")
    run = partial(run_cell, root=root, probes=probes, final_blocks=final_blocks)
    with bar:
        for number, _ in spread(run, todo, processes):
            bar.set_postfix_str(todo[number].title)
            bar.update()
    return len(todo)


def offline_task(name: str, labels: Sequence[str]) -> glue.Task:
    """A task of one's own files with these classes."""
    return replace(glue.load_task("file"), name=name, title=name, labels=tuple(labels))
