"""Semantic textual similarity: STS12-16, STS-B and SICK-R by cosine and rank correlation (SimCSE, table 5).

No regressor and no training split: the cosine of two embeddings is compared with the gold score. "all" is one
Spearman correlation over the concatenated sub-sets, the paper's number; "mean" and "wmean" (weighted by sub-set size)
and Pearson's are there because other papers report them (SimCSE, appendix B).

Over all requested tasks each distinct sentence is encoded once: 26,083 instead of the 62,198 that the authors'
release encodes for the seven test sets, 3,833 instead of 37,110 for the two dev sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from shared import InputError
from simcse.senteval.files import Encode, encode_once, normalized, read_lines, require_files, rows_of, warn_count

STS_TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICKRelatedness")
DEV_TASKS = ("STSBenchmark", "SICKRelatedness")
MEASURES = ("all", "mean", "wmean", "pearson_all", "pearson_mean", "pearson_wmean")

# scored pairs per sub-set; a gold file has more lines where not every pair was scored
SUBSETS = {
    "STS12": {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "surprise.OnWN": 750, "surprise.SMTnews": 399},
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {"deft-forum": 450, "deft-news": 300, "headlines": 750, "images": 750, "OnWN": 750, "tweet-news": 750},
    "STS15": {"answers-forums": 375, "answers-students": 750, "belief": 375, "headlines": 750, "images": 750},
    "STS16": {"answer-answer": 254, "headlines": 249, "plagiarism": 230, "postediting": 244, "question-question": 209},
}
# split -> (path below data_dir, pairs)
BENCHMARK = {
    "train": ("STS/STSBenchmark/sts-train.csv", 5749),
    "dev": ("STS/STSBenchmark/sts-dev.csv", 1500),
    "test": ("STS/STSBenchmark/sts-test.csv", 1379),
}
SICK = {
    "train": ("SICK/SICK_train.txt", 4500),
    "dev": ("SICK/SICK_trial.txt", 500),
    "test": ("SICK/SICK_test_annotated.txt", 4927),
}

# A cosine in float32 has no digits below this: a smaller spread over all pairs is rounding noise and orders nothing.
_NO_SPREAD = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Pairs:
    """n sentence pairs with gold similarity (n,) float64, higher is more alike."""

    first: list[str]
    second: list[str]
    gold: np.ndarray

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def sentences(self) -> list[str]:
        """Both sides, 2 n sentences with repeats."""
        return self.first + self.second


def evaluate_sts(
    encode: Encode, data_dir: str | Path, tasks: Sequence[str] = STS_TASKS, split: str = "test"
) -> dict[str, dict]:
    """Correlation of embedding cosines with human similarity scores.

    Args:
        encode: list of n sentences -> (n, d) float array; called once, with the distinct sentences of all `tasks`.
        data_dir: the folder that holds `STS/` and `SICK/` (SentEval's `downstream`).
        tasks: names out of STS12 ... STS16, STSBenchmark, SICKRelatedness.
        split: "test", or "dev" for the two tasks that have one; files of other splits are not opened.

    Returns:
        task -> {"all", "mean", "wmean", "pearson_all", "pearson_mean", "pearson_wmean", "n", "subsets"}, correlations
        on a -1..1 scale ("all", "mean", "wmean" are Spearman's), "subsets": name -> {"spearman", "pearson", "n"}. A
        correlation that does not exist, because gold scores or cosines are constant, is None.

    Raises:
        InputError: unknown task or split, a task without a dev split, missing files (listed with their expected
            counts), unequal line counts of sentences and scores, a score that is not a number, an unusable `encode`
            result.
    """
    loaded = load_sts(data_dir, tasks, split)
    sentences = (text for subsets in loaded.values() for pairs in subsets.values() for text in pairs.sentences)
    embeddings, rows = encode_once(encode, sentences)
    return {task: _evaluate_subsets(subsets, embeddings, rows) for task, subsets in loaded.items()}


def evaluate_pairs(encode: Encode, pairs: Pairs) -> dict:
    """`evaluate_sts` for pairs already in memory: one entry of the same form."""
    embeddings, rows = encode_once(encode, pairs.sentences)
    return _evaluate_subsets({"all": pairs}, embeddings, rows)


def _evaluate_subsets(subsets: dict[str, Pairs], embeddings: np.ndarray, rows: dict[str, int]) -> dict:
    cosines = {
        name: cosine(embeddings[rows_of(pairs.first, rows)], embeddings[rows_of(pairs.second, rows)])
        for name, pairs in subsets.items()
    }
    details = {
        name: {
            "spearman": spearman(cosines[name], pairs.gold),
            "pearson": pearson(cosines[name], pairs.gold),
            "n": len(pairs),
        }
        for name, pairs in subsets.items()
    }
    all_cosines = np.concatenate(list(cosines.values()))
    all_gold = np.concatenate([pairs.gold for pairs in subsets.values()])
    sizes = [len(pairs) for pairs in subsets.values()]
    entry: dict = {}
    for prefix, measure, function in (("", "spearman", spearman), ("pearson_", "pearson", pearson)):
        values = [detail[measure] for detail in details.values()]
        entry[f"{prefix}all"] = function(all_cosines, all_gold)
        entry[f"{prefix}mean"] = _average(values, [1] * len(values))
        entry[f"{prefix}wmean"] = _average(values, sizes)
    return entry | {"n": len(all_gold), "subsets": details}


def _average(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """None as soon as one part is undefined: an average over the rest would be another number under the same name."""
    return None if None in values else float(np.average(values, weights=weights))


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row-wise cosine of (n, d) and (n, d) in float32; 0 where a vector is zero, as the authors' release scores it.

    One BLAS dot product per row, as in the release: where cosines tie, the last bit orders them and moves rho by up
    to 1e-5.
    """
    norms = np.sqrt(_dot(x, x)) * np.sqrt(_dot(y, y))
    return np.divide(_dot(x, y), norms, out=np.zeros_like(norms), where=norms > 0)


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.matmul(x[:, None, :], y[:, :, None])[:, 0, 0]


def spearman(predicted: np.ndarray, gold: np.ndarray) -> float | None:
    """Spearman's rho of two (n,) arrays, ties at their mean rank; None where it is undefined (a constant side)."""
    return _correlation(stats.spearmanr, predicted, gold)


def pearson(predicted: np.ndarray, gold: np.ndarray) -> float | None:
    """Pearson's r of two (n,) arrays; None where it is undefined (a constant side)."""
    return _correlation(stats.pearsonr, predicted, gold)


def _correlation(function, predicted: np.ndarray, gold: np.ndarray) -> float | None:
    if len(gold) < 2 or np.ptp(predicted) <= _NO_SPREAD or np.ptp(gold) == 0:
        return None
    value = float(function(predicted, gold).statistic)
    return value if math.isfinite(value) else None


def percent(value: float | None) -> str:
    """A correlation as tables print it: two decimals of 100 rho, "undefined" where it does not exist."""
    return "undefined" if value is None else f"{100 * value:.2f}"


def rounded_average(printed: Sequence[float | None]) -> float | None:
    """The "Avg." column: mean of the ALREADY ROUNDED percentages, rounded again.

    Args:
        printed: one value in percent per task; None for a task that was not run or is undefined.

    Returns:
        None unless every task has a number: an average over fewer tasks compares with nothing.
    """
    if not printed or None in printed:
        return None
    return float(f"{np.mean([float(f'{value:.2f}') for value in printed]):.2f}")


def load_sts(data_dir: str | Path, tasks: Sequence[str], split: str = "test") -> dict[str, dict[str, Pairs]]:
    """Read the scored pairs: task -> sub-set name -> pairs (one sub-set, named as the split, for STS-B and SICK-R).

    Args:
        data_dir: the folder that holds `STS/` and `SICK/`.
        tasks: as in `evaluate_sts`.
        split: "test", "dev" or "train"; STS12-16 are test sets only.

    Raises:
        InputError: see `evaluate_sts`.
    """
    if split not in BENCHMARK:
        raise InputError(f"split: {split!r} is not one of {', '.join(BENCHMARK)}")
    if not tasks or (unknown := [task for task in tasks if task not in STS_TASKS]):
        raise InputError(f"tasks: {', '.join(unknown) if tasks else 'none given'}; known are {', '.join(STS_TASKS)}")
    if split != "test" and (without := [task for task in tasks if task in SUBSETS]):
        raise InputError(
            f"tasks: {', '.join(without)} are test sets only; split={split} exists for {', '.join(DEV_TASKS)}"
        )
    folder = Path(data_dir)
    require_files(folder, {name: n for task in tasks for name, n in _files(task, split).items()}, "scored pairs")
    return {task: _load_task(folder, task, split) for task in tasks}


def _files(task: str, split: str) -> dict[str, int]:
    """Files that a task's split is made of, with their pair counts."""
    if task not in SUBSETS:
        name, count = (BENCHMARK if task == "STSBenchmark" else SICK)[split]
        return {name: count}
    names = {}
    for subset, count in SUBSETS[task].items():
        names[f"STS/{task}-en-test/STS.input.{subset}.txt"] = count
        names[f"STS/{task}-en-test/STS.gs.{subset}.txt"] = count
    return names


def _load_task(folder: Path, task: str, split: str) -> dict[str, Pairs]:
    if task in SUBSETS:
        return {
            name: _load_subset(folder / f"STS/{task}-en-test", name, count) for name, count in SUBSETS[task].items()
        }
    if task == "STSBenchmark":
        return {split: _load_table(folder, *BENCHMARK[split], columns=(5, 6, 4), header=0)}
    return {split: _load_table(folder, *SICK[split], columns=(1, 2, 3), header=1)}


def _load_subset(folder: Path, name: str, expected: int) -> Pairs:
    inputs, scores = folder / f"STS.input.{name}.txt", folder / f"STS.gs.{name}.txt"
    lines, golds = read_lines(inputs), read_lines(scores)
    if len(lines) != len(golds):
        raise InputError(f"{inputs} has {len(lines)} lines but {scores} has {len(golds)}; line i is scored by line i")
    first, second, gold = [], [], []
    for number, (line, score) in enumerate(zip(lines, golds, strict=True), start=1):
        if not score.strip():
            continue  # not every pair was given to the annotators
        gold.append(_score(score, scores, number))
        parts = line.split("\t")
        if len(parts) < 2:
            raise InputError(f"{inputs}, line {number}: {line[:80]!r} is not two sentences separated by a tab")
        first.append(normalized(parts[0]))
        second.append(normalized(parts[1]))
    return _checked(Pairs(first, second, np.array(gold)), scores, expected)


def _load_table(folder: Path, name: str, expected: int, columns: tuple[int, int, int], header: int) -> Pairs:
    """Tab-separated without quoting; `columns` are those of the two sentences and the score."""
    path = folder / name
    first, second, gold = [], [], []
    for number, line in enumerate(read_lines(path)[header:], start=header + 1):
        cells = line.split("\t")
        if len(cells) <= max(columns):
            raise InputError(
                f"{path}, line {number}: {len(cells)} tab-separated columns; at least {max(columns) + 1} are needed"
            )
        first.append(normalized(cells[columns[0]]))
        second.append(normalized(cells[columns[1]]))
        gold.append(_score(cells[columns[2]], path, number))
    return _checked(Pairs(first, second, np.array(gold)), path, expected)


def _checked(pairs: Pairs, path: Path, expected: int) -> Pairs:
    if not len(pairs):
        raise InputError(f"{path}: no scored pair in it; the original has {expected:,}")
    warn_count(f"{path.parent.name}/{path.name}", len(pairs), expected, "scored pairs")
    return pairs


def _score(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {number}: gold score {text.strip()!r} is not a number")
    return value
