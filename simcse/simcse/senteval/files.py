"""Reading SentEval's files, and encoding what they hold: each distinct sentence once.

Everything here fails early and by name: a missing file with the number of lines it should have, a line that cannot be
read with its number, an encoder that returns another shape or NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from shared import InputError

logger = logging.getLogger(__name__)

Encode = Callable[[list[str]], np.ndarray]


def require_files(data_dir: Path, expected: Mapping[str, int], unit: str) -> None:
    """Check that all files exist before anything is encoded.

    Args:
        data_dir: the folder that holds `STS/`, `SICK/`, `MR/` ...
        expected: path below data_dir -> number of `unit` it holds in the original distribution.
        unit: what is counted, for the message.

    Raises:
        InputError: lists every missing file with its count.
    """
    if not data_dir.is_dir():
        raise InputError(f"data_dir: no folder {data_dir}; give the folder that holds STS/, SICK/, MR/ ... of SentEval")
    missing = [f"  {name} ({count:,} {unit})" for name, count in expected.items() if not (data_dir / name).is_file()]
    if missing:
        listing = "\n".join(missing)
        raise InputError(
            f"data_dir: {len(missing)} of {len(expected)} files are missing below {data_dir}:\n{listing}\n"
            "fetch them with `make mirror-simcse` or drop the task"
        )


def warn_count(name: str, found: int, expected: int, unit: str) -> None:
    """Say that a file is incomplete: its scores look fine and compare with nothing (the release's issue 101)."""
    if found != expected:
        logger.warning(
            "%s: %s %s, the original has %s: scores are not comparable", name, f"{found:,}", unit, f"{expected:,}"
        )


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines without their ends. Only a newline ends one: latin-1 text holds U+0085, at which str.splitlines splits.

    Raises:
        InputError: bytes that are not `encoding`, with the line.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not {encoding} ({error.reason} at byte {error.start})") from error
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def normalized(text: str) -> str:
    """Whitespace tokens re-joined by one space: what every SentEval sentence is before it reaches the encoder."""
    return " ".join(text.split())


def encode_once(encode: Encode, sentences: Iterable[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Encode each distinct sentence once, in one call.

    Args:
        encode: list of n sentences -> (n, d) float array.
        sentences: with repeats.

    Returns:
        (m, d) float32 embeddings of the m distinct sentences, and sentence -> row.

    Raises:
        InputError: nothing to encode, another shape than (m, d), or a value that is not finite.
    """
    rows = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    if not rows:
        raise InputError("sentences: none to encode")
    unique = list(rows)
    embeddings = np.asarray(encode(unique), dtype=np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(unique):
        raise InputError(
            f"encode: returned shape {embeddings.shape} for {len(unique)} sentences; it must be ({len(unique)}, d)"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        first = unique[int(np.flatnonzero(~finite)[0])]
        raise InputError(
            f"encode: {int((~finite).sum())} of {len(unique)} embeddings hold NaN or inf, first for {first[:80]!r}; "
            "the encoder has diverged or runs in a dtype too narrow for it"
        )
    return embeddings, rows


def rows_of(sentences: Sequence[str], rows: Mapping[str, int]) -> np.ndarray:
    """Row numbers of `sentences` in the matrix of `encode_once`."""
    return np.fromiter((rows[sentence] for sentence in sentences), dtype=np.int64, count=len(sentences))
