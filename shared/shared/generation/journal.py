"""One line per finished item: what lets a killed run go on where it was.

The first line names what the answers depend on beside the requests (back end, model, its weights' fingerprint): the
`binding`. Every further line is one answer under its request's key. So a journal may serve many calls of one run (the
stages of a judge, the turns of a loop): a question asked before is answered from the file, and an answer to a question
that is no longer asked is simply not read. A journal of another model is refused.

Durability: a line is written and flushed to the operating system before its answer is used, so it survives a SIGKILL of
the process; fsync every FSYNC_EVERY_S seconds and at the end, so a crash of the machine costs at most that much work
(fsync per line would cost 1-10 ms each, more than a small model's token). A torn last line is cut off when the file is
next opened.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared import InputError
from shared.generation.requests import Completion, Request

logger = logging.getLogger(__name__)
FORMAT = "generation-journal-1"
HEADER_START = json.dumps({"journal": FORMAT}).encode()[:-1]
FSYNC_EVERY_S = 5.0


class Journal:
    """An append-only JSONL file, locked by one run at a time; use as a context manager.

    Raises InputError for a journal bound to something else, held by another process, or corrupt before its last line.
    """

    def __init__(self, path: Path, binding: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            end = self._check(binding)
            self._file.truncate(end)
            if end == 0:
                self._append({"journal": FORMAT, "binding": dict(binding)})
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def answers(self, wanted: Mapping[str, Request]) -> dict[str, Completion]:
        """{key: recorded answer} for the wanted keys; failures are left out, so that they are asked again."""
        found = {}
        self._file.seek(0)
        for line in self._file:
            record = json.loads(line)
            if record.get("key") in wanted and record["finish_reason"] != "error":
                found[record["key"]] = Completion.from_record(record)
        return found

    def write(self, request: Request, completion: Completion) -> None:
        """Append one finished (or failed) item."""
        self._append({"key": request.key, **completion.to_record()})
        if time.monotonic() - self._synced > FSYNC_EVERY_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"journal {self.path} is in use by another run: wait for it, or name another file"
            ) from error

    def _check(self, binding: Mapping[str, Any]) -> int:
        """The length of the intact part, 0 for a new file. A torn end is whatever follows the last complete line."""
        end, size = 0, self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                if end + len(line) < size:
                    raise InputError(
                        f"journal {self.path}, line {number} is not a JSON object: delete that line or the file"
                    )
                if number == 1 and not HEADER_START.startswith(line[: len(HEADER_START)]):
                    self._refuse_other({}, {})
                logger.warning("%s: dropping a torn last line (%d bytes)", self.path, len(line))
                break
            if number == 1:
                self._refuse_other(record, dict(binding))
            end += len(line)
        return end

    def _refuse_other(self, header: Mapping[str, Any], binding: dict[str, Any]) -> None:
        if header.get("journal") != FORMAT:
            raise InputError(f"{self.path} is not a journal of this program (no {FORMAT!r} header): name another file")
        was = header.get("binding", {})
        differing = [name for name in {**was, **binding} if was.get(name) != binding.get(name)]
        if differing:
            parts = "; ".join(f"{name} was {was.get(name)!r}, is {binding.get(name)!r}" for name in differing)
            raise InputError(
                f"journal {self.path} belongs to another run ({parts}): name another file, or delete this one"
            )
