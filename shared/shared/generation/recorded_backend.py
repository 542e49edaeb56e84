"""Answers from a file: replay of an earlier run, or of answers that were made elsewhere.

A record is one JSON line with `text` and a `key` (any journal is a recording) or an `id` (files written by other
programs), and optionally the other fields of `Completion`. With a key the answer belongs to that very prompt and
decoding; with an id alone it is taken on trust.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from shared import InputError
from shared.generation.generator import Generator
from shared.generation.requests import Completion, Request


class RecordedGenerator(Generator):
    """Replays `path`, a .jsonl or .jsonl.gz file. Memory grows with the answers asked for, not with the file."""

    backend = "recorded"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise InputError(f"path={path} is not a file: give a .jsonl or .jsonl.gz of recorded answers")
        self.model = self.path.name

    @cached_property
    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def binding(self) -> dict[str, Any]:
        return {"backend": self.backend, "sha256": self._sha256}

    def _answer(self, items: Sequence[Request]) -> Iterator[Completion]:
        by_key = {request.key: request for request in items}
        by_id = {request.id: request for request in items}
        found: dict[str, Completion] = {}
        changed: set[str] = set()
        for number, record in self._records():
            if record.get("finish_reason") == "error":
                continue
            if "key" in record:
                request = by_key.get(record["key"])
                if request is None and record.get("id") in by_id:
                    changed.add(record["id"])
            else:
                request = by_id.get(record.get("id"))
                if request is not None and request.id in found:
                    raise InputError(f"{self.path}, line {number}: a second answer for {request.id!r}")
            if request is not None:
                found.setdefault(request.id, self._completion(record, request, number))
        self._require_all(items, found, changed)
        yield from (found[request.id] for request in items)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            with gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise InputError(f"{self.path}, line {number} is not a JSON object")
                    if "journal" not in record:
                        yield number, record
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self.path} is a broken gzip file after line {number} ({error}): fetch it again"
            ) from error
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{self.path}, line {number} is not JSON in UTF-8: {error}") from error

    def _completion(self, record: dict[str, Any], request: Request, number: int) -> Completion:
        if not isinstance(record.get("text"), str):
            raise InputError(f"{self.path}, line {number}: the answer for {request.id!r} has no text")
        scored = record.get("candidate_logprobs") or {}
        unscored = [candidate for candidate in request.candidates if candidate not in scored]
        if unscored:
            raise InputError(f"{self.path}, line {number}: no log-probability of {unscored[0]!r} for {request.id!r}")
        return Completion.from_record({"finish_reason": "stop", **record}, request.id)

    def _require_all(self, items: Sequence[Request], found: dict[str, Completion], changed: set[str]) -> None:
        missing = [request.id for request in items if request.id not in found]
        if missing:
            what = "was recorded for another prompt or decoding" if missing[0] in changed else "has no recorded answer"
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(
                f"item {missing[0]!r}{others} {what} in {self.path}: record it, or leave it out of the data"
            )
