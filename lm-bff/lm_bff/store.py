"""The result store: one JSON line per finished trial, in a file that many processes may append to at once.

    store = Store(runs / "trials.jsonl")
    store.get(key)                      # the record of a finished trial, or None: such a trial is never run again
    store.append(record, outputs)       # outputs (n, classes) by name lie beside it, outputs/<key>.npz, for ensembles

A line is written by one system call under a lock and flushed to the disk; the outputs are there before the line is.
So a trial has a whole line or none, whatever kills the process. A line torn by a full disk is passed over.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import InputError
from shared.results import plain, write_atomic

log = logging.getLogger(__name__)


class Store:
    """A file of trials. Reading sees what other processes have appended since."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(f"store={path} is a folder: give a file such as trials.jsonl")
        self._read_to = 0
        self._records: dict[str, dict[str, Any]] = {}

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """Every trial, first ones first; with keywords those whose fields have these values, `task="mr", seed=13`."""
        self._refresh()
        return [r for r in self._records.values() if all(r.get(name) == value for name, value in wanted.items())]

    def get(self, key: str) -> dict[str, Any] | None:
        """The finished trial of this key, or None."""
        self._refresh()
        return self._records.get(key)

    def append(self, record: Mapping[str, Any], outputs: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Add a finished trial; `record["key"]` names it. If it is there already, the line that is there stays.

        Raises InputError for a value that JSON cannot hold (NaN, ...), named by its path; nothing is written then.
        """
        line = {**plain(dict(record), "trial")}
        if outputs:
            line["outputs"] = f"outputs/{line['key']}.npz"
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **outputs)
            write_atomic(self.path.parent / line["outputs"], buffer.getvalue())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if (present := self.get(line["key"])) is not None:
                return present
            end = file.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
            os.write(file.fileno(), (b"\n" if torn else b"") + text.encode())
            os.fsync(file.fileno())
        return line

    def outputs(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The (n, classes) outputs of a trial by name: "dev", and "test:<name>" for every test set."""
        path = self.path.parent / str(record.get("outputs"))
        if not path.is_file():
            raise InputError(f"trial {record.get('key')} has no outputs at {path}: run it again with save_outputs=true")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def _refresh(self) -> None:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # what follows the last line end is still being written
        self._read_to += len(whole)
        for number, text in enumerate(whole.split(b"\n")[:-1]):
            try:
                record = json.loads(text)
                self._records.setdefault(record["key"], record)
            except (ValueError, KeyError, TypeError):
                if text.strip():
                    log.warning("%s: line %d of the last read is no trial and is passed over", self.path, number + 1)
