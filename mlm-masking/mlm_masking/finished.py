"""Results of finished units of work (a grid's cell, a probed paradigm), one JSON file each, never computed twice.

A file holds the result beside the identity of the run that made it: everything the result depends on. A file that
belongs to another run is refused instead of being taken for this one's.
"""

import json
from pathlib import Path
from typing import Any

from shared import InputError
from shared.results import write_atomic


def read_finished(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result in `path`, or None where there is none.

    Raises:
        InputError: the file is not one of ours, or is of a run with another identity; the message names what differs.
    """
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, result = stored["identity"], stored["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the result of a finished part ({error}): remove it") from None
    wanted = json.loads(json.dumps(identity))
    if before != wanted:
        changed = sorted(key for key in before.keys() | wanted.keys() if before.get(key) != wanted.get(key))
        raise InputError(
            f"{path} is of a run with another {', '.join(changed)}: give another output_dir or experiment, or remove "
            "the folder"
        )
    return result


def write_finished(path: Path, identity: dict[str, Any], result: dict[str, Any]) -> None:
    """Write a result; the file appears whole or not at all."""
    write_atomic(path, json.dumps({"identity": identity, "result": result}, indent=1) + "\n")
