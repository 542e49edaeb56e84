"""Where the comparisons in a paper's `bench/` leave what they measured: dated records beside the scripts."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from shared.results import write_atomic


def write_record(record: dict[str, Any], script: str | Path, name: str, out: Path | None = None) -> Path:
    """Write a comparison's record and say where; returns the file.

    Args:
        record: what JSON can hold, with the run's provenance (`shared.provenance.Watch.record`).
        script: the comparison's `__file__`; records lie in `records/` beside it.
        name: of the file behind the date, device first, such as "cpu-encode".
        out: another file instead.
    """
    path = Path(out) if out else Path(script).resolve().parent / "records" / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    Console().print(f"record: {path}", highlight=False, soft_wrap=True)
    return path
