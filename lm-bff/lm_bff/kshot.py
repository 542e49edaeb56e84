"""`python -m lm_bff.kshot k=16 seeds=[100,13,21,42,87]`: draw the few-shot splits from the full data, and verify them.

For every seed and task: seed numpy, shuffle the training lines, group them by label in order of appearance; the first k
of every label are train, the next k (10 k with mode=k-shot-10x) dev. The test set is the original dev set (GLUE) or
test set, the same for all seeds. STS-B counts two classes: scores below 2.5, and the rest.

The authors published the md5 sums of their K=16 files (data/kshot_md5.txt); what is made here is compared with them
before anything is written. One trap: the release shuffles CoLA, which has no header, in place, so that its split for a
seed depends on the seeds before it. Only the order 100, 13, 21, 42, 87 (or its beginning) gives the published files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from lm_bff.data import MODES, PAPER, few_shot_folder, read_label, split_class
from lm_bff.tasks import TASKS, Task, get_task
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import write_atomic

log = logging.getLogger(__name__)

SEED_ORDER = (100, 13, 21, 42, 87)
PUBLISHED_K = 16
MD5_FILE = Path(__file__).resolve().parents[1] / "data" / "kshot_md5.txt"
CONVERTED = "CONVERTED"  # marks a task's original files that were not the authors', whose md5 sums cannot match
# The original file that becomes the test file of that name, the first that is there.
TEST_ORIGINS = {
    "test.tsv": ("dev.tsv", "test.tsv"),
    "test.csv": ("test.csv",),
    "test_matched.tsv": ("dev_matched.tsv", "test_matched.tsv"),
    "test_mismatched.tsv": ("dev_mismatched.tsv", "test_mismatched.tsv"),
}


@dataclass(frozen=True)
class Line:
    """A training line as it is written again, and the class it counts for."""

    text: str
    label: str | int


@cache
def published_md5() -> dict[tuple[str, str, int | None], str]:
    """(folder, file, seed) -> md5 of the published K=16 files; seed None for test files, the same for all seeds."""
    sums = {}
    for row in MD5_FILE.read_text("utf-8").splitlines():
        if row.startswith("#"):
            continue
        folder, file, *entries = row.split()
        if entries[0] == "ALL":
            sums[folder, file, None] = entries[1]
        else:
            sums |= {(folder, file, int(seed)): md5 for seed, md5 in (entry.split(":") for entry in entries)}
    return sums


def read_lines(path: Path, task: Task) -> tuple[str, list[Line]]:
    """(header or "", training lines) of an original file.

    Raises:
        InputError: no such file, a wrong label or too few columns (with the line number).
    """
    if not path.is_file():
        raise InputError(f"{path} is not there: give the original data of task {task.name} (original=<folder>)")
    text = path.read_text("utf-8")
    if task.reader.format == "csv":
        raw = [(_csv_line(row), row) for row in csv.reader(io.StringIO(text, newline="")) if row]
    else:
        raw = [(line + "\n", line.rstrip().split("\t")) for line in text.split("\n") if line]
    header = raw.pop(0)[0] if task.reader.header and raw else ""
    lines = []
    for number, (line, columns) in enumerate(raw, start=2 if header else 1):
        where = f"{path}, line {number}"
        try:
            label = columns[task.reader.label]
        except IndexError:
            raise InputError(
                f"{where}: {len(columns)} columns, but the label is in column {task.reader.label}"
            ) from None
        lines.append(Line(line, split_class(task, read_label(task, label, where))))
    if not lines:
        raise InputError(f"{path} has no examples")
    return header, lines


def _csv_line(row: Sequence[str]) -> str:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerow(row)
    return written.getvalue()


def draw(
    lines: list[Line], task: Task, k: int, seed: int, dev_shots: int, allow_short: bool = False
) -> tuple[str, str]:
    """(train, dev) as texts without header. `lines` is shuffled in place.

    Raises InputError where a class has fewer than k + dev_shots lines, unless `allow_short`.
    """
    np.random.RandomState(seed).shuffle(lines)
    groups: dict[str | int, list[str]] = {}
    for line in lines:
        groups.setdefault(line.label, []).append(line.text)
    for label in task.labels:
        if (count := len(groups.get(label, ()))) < k + dev_shots and not allow_short:
            raise InputError(
                f"task={task.name}: class {label!r} has {count} training examples, but k={k} needs {k} for train and "
                f"{dev_shots} for dev; lower k, or set allow_short=true to take what there is"
            )
    train = "".join(text for group in groups.values() for text in group[:k])
    dev = "".join(text for group in groups.values() for text in group[k : k + dev_shots])
    return train, dev


def make_task(
    task: Task, original: Path, k: int, seeds: Sequence[int], mode: str = "k-shot", allow_short: bool = False
) -> dict[tuple[str, int | None], str]:
    """{(file, seed): content} of one task's train and dev files of all seeds and its test files (seed None)."""
    folder = original / task.folder
    header, lines = read_lines(folder / task.files["train"], task)
    in_place = not header and task.reader.format == "tsv"
    files: dict[tuple[str, int | None], str] = {}
    for seed in seeds:
        shuffled = lines if in_place else list(lines)
        train, dev = draw(shuffled, task, k, seed, 10 * k if mode == "k-shot-10x" else k, allow_short)
        files[task.files["train"], seed] = header + train
        files[task.files["dev"], seed] = header + dev
    for file in task.tests.values():
        origin = next((folder / name for name in TEST_ORIGINS[file] if (folder / name).is_file()), None)
        if origin is None:
            log.warning(
                "%s: no %s in %s: this test set is left out", task.name, " or ".join(TEST_ORIGINS[file]), folder
            )
            continue
        text = origin.read_text("utf-8")
        if task.reader.format == "csv":
            text = "".join(_csv_line(row) for row in csv.reader(io.StringIO(text, newline="")) if row)
        files[file, None] = text
    return files


def check_seed_order(task: Task, seeds: Sequence[int]) -> None:
    """Raise InputError for CoLA with seeds in an order that would give other splits than the published ones."""
    if task.name == "cola" and tuple(seeds) != SEED_ORDER[: len(seeds)]:
        raise InputError(
            f"seeds={list(seeds)} with task cola: its splits depend on the seeds before them, and only the beginning "
            f"of {list(SEED_ORDER)} gives the published ones. Use it, leave out cola, or set allow_seed_order=true"
        )


def check_md5(task: Task, file: str, seed: int | None, content: bytes) -> bool:
    """Whether the file is one of the published ones. Raises InputError where it should be, and differs."""
    expected = published_md5().get((task.folder, file, seed))
    if expected is None:
        return False
    found = hashlib.md5(content).hexdigest()
    if found != expected:
        of = "" if seed is None else f" of seed {seed}"
        raise InputError(
            f"task={task.name}: {file}{of} has md5 {found}, but the published file has {expected}: the original data "
            "are others than the authors' (verify=false makes the splits all the same)"
        )
    return True


def verify_folder(root: Path, tasks: Sequence[Task], seeds: Sequence[int] = SEED_ORDER) -> tuple[int, int]:
    """(files that match the published md5 sums, files that are absent) below a few-shot folder.

    Test files lie in every seed's folder or once beside them; they count once per seed, as in the published list.
    Raises InputError at the first file that differs.
    """
    matched = absent = 0
    for task in tasks:
        for seed in seeds:
            folder = root / task.folder / f"{PUBLISHED_K}-{seed}"
            wanted = [(task.files["train"], seed), (task.files["dev"], seed)]
            for file, key in [*wanted, *((file, None) for file in task.tests.values())]:
                path = next((p for p in (folder / file, folder.parent / file) if p.is_file()), None)
                if path is None:
                    absent += 1
                else:
                    matched += check_md5(task, file, key, path.read_bytes())
    return matched, absent


def make(cfg: DictConfig) -> Path:
    """Make (or with verify_only check) the splits; returns their folder. Nothing is written before all is verified."""
    tasks = [get_task(name) for name in (cfg.tasks or list(TASKS))]
    console = Console()
    if cfg.mode not in MODES:
        raise InputError(f"mode={cfg.mode}: give one of {', '.join(MODES)}")
    if cfg.verify_only:
        root = few_shot_folder(cfg.output_dir)
        matched, absent = verify_folder(root, tasks)
        console.print(f"{matched} files match the published md5 sums, {absent} are not there: {root}", soft_wrap=True)
        return root
    seeds = list(cfg.seeds)
    if not isinstance(cfg.k, int) or cfg.k < 1 or not seeds:
        raise InputError(f"k={cfg.k}, seeds={seeds}: give k of 1 or more, and at least one seed")
    original = Path(cfg.original).expanduser() if cfg.original else hub.locate(PAPER, "original")
    output = Path(cfg.output_dir).expanduser() if cfg.output_dir else original.parent / cfg.mode
    for task in tasks:
        if not cfg.allow_seed_order:
            check_seed_order(task, seeds)
    made = {task.name: make_task(task, original, cfg.k, seeds, cfg.mode, cfg.allow_short) for task in tasks}
    published = cfg.verify and cfg.k == PUBLISHED_K and cfg.mode == "k-shot"
    checked = 0
    for task in tasks:
        theirs = not (original / task.folder / CONVERTED).is_file()
        if published and theirs and not (task.name == "cola" and tuple(seeds) != SEED_ORDER[: len(seeds)]):
            checked += sum(check_md5(task, file, seed, text.encode()) for (file, seed), text in made[task.name].items())
    written = 0
    for task in tasks:
        for (file, seed), text in made[task.name].items():
            folder = output / task.folder if seed is None else output / task.folder / f"{cfg.k}-{seed}"
            write_atomic(folder / file, text)
            written += 1
    console.print(f"{written} files written to {output}, {checked} of them verified by md5", soft_wrap=True)
    return output


main = entrypoint(config_name="kshot")(make)

if __name__ == "__main__":
    main()
