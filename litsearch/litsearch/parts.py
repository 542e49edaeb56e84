"""The parts of a reproduction: each a folder with a run file and a results.json, made once, several at a time.

    parts = [Part("bm25", "retrieve", data, {"retriever": ["retriever=bm25"]}), ...]
    perform_all(parts, folder, processes=2)       # what is finished and made from the same things is left as it is
    run = read_run(run_path(folder, "bm25"))

A part is finished when its results.json is there; `made_from` in it says from what (its options, the corpus, the parts
it needs), so that a killed reproduction goes on, and one with other options makes anew what they change. Parts run in
processes of their own; what they and their engines print is in `<part>/log.txt`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm.auto import tqdm

from shared.results import Run as Result
from shared.results import load_result, write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One unit of work.

    name: its folder. work: one of `litsearch.part_work.WORK`. data: overrides of the `data` group; where papers lie,
    which decides nothing. options: of the work, JSON values. needs: names of parts whose runs it reads. made_with: what
    else decides the result (fingerprints of corpus, questions, a model). all_cores: it keeps every core busy by itself.
    """

    name: str
    work: str
    data: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    made_with: tuple[str, ...] = ()
    all_cores: bool = False


def part_folder(folder: Path, name: str) -> Path:
    return folder / "parts" / name


def run_path(folder: Path, name: str) -> Path:
    """The run file of a part."""
    return part_folder(folder, name) / f"{name}.jsonl"


def digests(parts: Sequence[Part]) -> dict[str, str]:
    """What each part is made from, those it needs included, as a sha256. Needs stand before what needs them."""
    found: dict[str, str] = {}
    for part in parts:
        made_from = [part.work, part.options, part.made_with, [found[name] for name in part.needs]]
        found[part.name] = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return found


def is_finished(folder: Path, name: str, digest: str) -> bool:
    path = part_folder(folder, name) / "results.json"
    return path.is_file() and load_result(path)["metrics"].get("made_from") == digest


def results_of(folder: Path, name: str) -> dict[str, Any]:
    """The metrics of a finished part."""
    return load_result(part_folder(folder, name) / "results.json")["metrics"]


def perform_all(parts: Sequence[Part], folder: Path, processes: int) -> list[str]:
    """Perform what is not finished, `processes` parts at a time (1: in this process), each when what it needs is there.

    Returns: names of the parts that were performed, in the order they ended.
    Raises: the first InputError of a part.
    """
    digest = digests(parts)
    done = {part.name for part in parts if is_finished(folder, part.name, digest[part.name])}
    waiting = [part for part in parts if part.name not in done]
    if processes == 1:
        for part in tqdm(waiting, desc="parts", unit="part"):
            perform(part, folder, digest[part.name])
        return [part.name for part in waiting]
    if not waiting:
        return []
    # Set before the children import torch: a set_num_threads afterwards leaves idle threads that spin on the cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    performed: list[str] = []
    with (
        ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool,
        tqdm(total=len(waiting), desc="parts", unit="part") as progress,
    ):
        running: dict[Future, Part] = {}
        while waiting or running:
            ready = [part for part in waiting if done.issuperset(part.needs)]
            for part in ready[: processes - len(running)]:
                waiting.remove(part)
                cores = processes if part.all_cores else 1
                running[pool.submit(perform, part, folder, digest[part.name], cores)] = part
            progress.set_postfix_str(", ".join(part.name for part in running.values()))
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                part = running.pop(future)
                if error := future.exception():
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise error
                done.add(part.name)
                performed.append(part.name)
                progress.update()
    return performed


def perform(part: Part, folder: Path, digest: str, cores: int = 1) -> None:
    """Perform one part in this process and write its results.json; its output goes to log.txt.

    Raises InputError, and see `litsearch.part_work`.
    """
    from litsearch.part_work import WORK

    own = part_folder(folder, part.name)
    marker = own / "made_from"
    if own.is_dir() and (not marker.is_file() or marker.read_text(encoding="utf-8") != digest):
        shutil.rmtree(own)  # what is begun with other options is of no use
    write_atomic(marker, digest)
    with OutputTo(own / "log.txt"):
        result = Result("litsearch", part.name, "laptop", own, {"options": part.options, "data": list(part.data)})
        started, cpu = time.perf_counter(), _cpu_seconds()
        result.metrics |= WORK[part.work](part, folder, cores)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu}
        result.metrics |= {"made_from": digest, **seconds}
        result.finish(Console(quiet=True))


def _cpu_seconds() -> float:
    """Of this process and the ended ones it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _end_with_parent() -> None:
    """Workers of a killed reproduction must not go on unseen."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class OutputTo:
    """Everything that this process and its children print goes to a file; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> OutputTo:
        self._flush()
        self._kept = [os.dup(number) for number in (1, 2)]
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        os.close(file)
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        for number, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
