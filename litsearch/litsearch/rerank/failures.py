"""Why a question got no answer, from what a back end says of it.

Only one kind changes what is asked: a prompt that is too long is shown fewer papers. The others are for the record; the
back end has done its (bounded) waiting and trying again already, and what concerns the whole run (a key that is not
accepted, a model that is not served, nobody there) it has raised as an error at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

OVERFLOW, RATE_LIMIT, TIMEOUT, SERVER, REFUSED = "overflow", "rate limit", "timeout", "server", "refused"

# How the servers of the field say that a prompt is too long (OpenAI, Azure, vLLM, TGI, SGLang, llama.cpp, Anthropic).
TOO_LONG = re.compile(
    r"context[ _]?(?:length|window|size)|maximum (?:context|sequence|input)|max_model_len|max_(?:input_|total_)?tokens"
    r"|too (?:long|many tokens)|token limit|(?:input|prompt)\b.{0,40}\b(?:exceeds?|longer)|reduce the length",
    re.IGNORECASE,
)
HTTP = re.compile(r"HTTP (\d{3})")
TOO_LONG_STATUS = (400, 413, 422)


def kind_of(error: str) -> str:
    """The kind of a failed item's error message."""
    found = HTTP.match(error)
    status = int(found[1]) if found else None
    if status == 413 or (status in TOO_LONG_STATUS and TOO_LONG.search(error)):
        return OVERFLOW
    if status == 429:
        return RATE_LIMIT
    if "no answer within" in error or status == 408:
        return TIMEOUT
    if status is None or status >= 500:
        return SERVER
    return REFUSED


def known_overflows(journal: Path | None) -> set[str]:
    """Keys of requests that a journal shows to have been too long: asking them again would be in vain."""
    return {
        record["key"]
        for record in _records(journal)
        if "key" in record and record.get("finish_reason") == "error" and kind_of(record.get("error", "")) == OVERFLOW
    }


def answered(journal: Path | None) -> set[str]:
    """Keys of requests that a journal holds an answer to."""
    return {r["key"] for r in _records(journal) if "key" in r and r.get("finish_reason") != "error"}


def _records(journal: Path | None) -> Iterator[dict]:
    if journal is None or not journal.is_file():
        return
    with journal.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a torn end; the journal itself judges the rest
            if isinstance(record, dict):
                yield record
