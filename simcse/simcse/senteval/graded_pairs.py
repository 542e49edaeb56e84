"""The project's own graded sentence pairs: a small similarity set that is there without any download.

231 pairs written for this project, scored 0-5 by STS-B's guidelines (`simcse/data/README.md`). They stand in for
STS-B dev where SentEval's files are missing; their numbers compare with each other and with nothing in the paper.
"""

from pathlib import Path

import numpy as np

from shared import InputError
from simcse.senteval.files import normalized, read_lines
from simcse.senteval.sts import Pairs

GRADED_PAIRS = Path(__file__).resolve().parents[2] / "data" / "graded_pairs.tsv"
_HEADER = "score\tsentence1\tsentence2"


def load_graded_pairs(path: str | Path = GRADED_PAIRS) -> Pairs:
    """Read graded pairs: a header line, then `score<TAB>sentence1<TAB>sentence2` with scores in 0-5.

    Args:
        path: the project's file, or another one of the same form.

    Raises:
        InputError: no such file, another header, a row of another form, a score outside 0-5; with the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"graded pairs: no file {path}; it is part of the repository (simcse/data/graded_pairs.tsv)")
    lines = read_lines(path)
    if not lines or lines[0] != _HEADER:
        raise InputError(f"{path}, line 1: the header must be {_HEADER.split(chr(9))}, separated by tabs")
    rows = [_row(line, path, number) for number, line in enumerate(lines[1:], start=2)]
    if not rows:
        raise InputError(f"{path}: no pair below the header")
    gold, first, second = zip(*rows, strict=True)
    return Pairs(list(first), list(second), np.array(gold))


def _row(line: str, path: Path, number: int) -> tuple[float, str, str]:
    cells = line.split("\t")
    try:
        score, first, second = float(cells[0]), normalized(cells[1]), normalized(cells[2])
    except (ValueError, IndexError):
        raise InputError(
            f"{path}, line {number}: {line[:80]!r} is not score, sentence and sentence, tab-separated"
        ) from None
    if len(cells) != 3 or not 0 <= score <= 5 or not first or not second:
        raise InputError(
            f"{path}, line {number}: {line[:80]!r} must be a score in 0-5 and two sentences, tab-separated"
        )
    return score, first, second
