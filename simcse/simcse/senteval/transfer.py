"""SentEval's seven transfer tasks: logistic regression on frozen embeddings (SimCSE, appendix E).

Nested cross-validation for MR, CR, SUBJ and MPQA, cross-validation and a test set for TREC and MRPC, dev and test set
for SST2. The numbers are those of the release's SentEval: order of examples, folds, seeds, rounding and the
cumulative stopping counter included (`classifier.py`); only the order in which the classifiers are trained is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from shared import InputError
from simcse.senteval import classifier
from simcse.senteval.classifier import L2_VALUES, PROTOCOLS, SEED, Fits, Protocol, Split
from simcse.senteval.files import Encode, encode_once, normalized, read_lines, require_files, rows_of, warn_count

logger = logging.getLogger(__name__)

TRANSFER_TASKS = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
TREC_LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")

# path below data_dir -> sentences (MRPC: pairs) in the original distribution
FILES = {
    "MR": {"MR/rt-polarity.pos": 5331, "MR/rt-polarity.neg": 5331},
    "CR": {"CR/custrev.pos": 2407, "CR/custrev.neg": 1368},
    "SUBJ": {"SUBJ/subj.objective": 5000, "SUBJ/subj.subjective": 5000},
    "MPQA": {"MPQA/mpqa.pos": 3312, "MPQA/mpqa.neg": 7294},
    "SST2": {
        "SST/binary/sentiment-train": 67349,
        "SST/binary/sentiment-dev": 872,
        "SST/binary/sentiment-test": 1821,
    },
    "TREC": {"TREC/train_5500.label": 5452, "TREC/TREC_10.label": 500},
    "MRPC": {"MRPC/msr_paraphrase_train.txt": 4076, "MRPC/msr_paraphrase_test.txt": 1725},
}

Fit = Callable[[Tensor, Tensor, Sequence[Split], np.ndarray, int, Protocol], Fits]


@dataclass(frozen=True)
class Example:
    """One sentence, or for MRPC two, with its class."""

    sentences: tuple[str, ...]
    label: int


def evaluate_transfer(
    encode: Encode,
    data_dir: str | Path,
    tasks: Sequence[str] = TRANSFER_TASKS,
    protocol: str = "test",
    *,
    device: str | torch.device = "cpu",
    fit: Fit = classifier.fit,
) -> dict[str, dict[str, float]]:
    """Accuracy of a logistic regression on frozen sentence embeddings.

    Args:
        encode: list of n sentences -> (n, d) float array; called once, with the distinct sentences of all `tasks`.
        data_dir: the folder that holds `MR/`, `CR/`, `SST/` ... (SentEval's `downstream`).
        tasks: names out of MR, CR, SUBJ, MPQA, SST2, TREC, MRPC.
        protocol: "test" (10 folds, Adam; what papers report) or "fast" (5 folds, RMSprop; for a look in between).
        device: where the classifiers are trained.
        fit: trains the classifiers; `senteval.sequential.fit` is the plain form.

    Returns:
        task -> {"devacc", "acc", "ndev", "ntest"}, for MRPC also "f1". Accuracies and F1 are in PERCENT, rounded to
        two decimals as the published tables are (STS entries are on a 0-1 scale instead).

    Raises:
        InputError: unknown task or protocol, missing or unreadable files (listed with their expected counts), an
            `encode` whose result has another shape than (n, d) or is not finite.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    check_tasks(tasks)
    folder = Path(data_dir)
    require_files(folder, {name: n for task in tasks for name, n in FILES[task].items()}, "lines")
    loaded = {task: _LOADERS[task](folder) for task in tasks}
    embeddings, rows = encode_once(
        encode, (text for parts in loaded.values() for part in parts for example in part for text in example.sentences)
    )
    results = {}
    for task, parts in loaded.items():
        data = _Task(parts, embeddings, rows, torch.device(device), fit, PROTOCOLS[protocol])
        results[task] = _PROCEDURES[task](data)
        logger.info("%s (%s protocol): %s", task, protocol, results[task])
    return results


def check_tasks(tasks: Sequence[str], known: Sequence[str] = TRANSFER_TASKS) -> None:
    """Raise InputError for a task that does not exist, or none at all."""
    unknown = [task for task in tasks if task not in known]
    if unknown or not tasks:
        raise InputError(f"tasks: {', '.join(unknown) or 'none given'}; known are {', '.join(known)}")


class _Task:
    """Features and labels of all parts of a task in one matrix, with the row ranges of the parts."""

    def __init__(self, parts, embeddings, rows, device, fit: Fit, protocol: Protocol):
        self.protocol, self.fit = protocol, fit
        examples = [example for part in parts for example in part]
        sides = [embeddings[rows_of(side, rows)] for side in zip(*(e.sentences for e in examples), strict=True)]
        features = sides[0] if len(sides) == 1 else np.hstack([np.abs(sides[0] - sides[1]), sides[0] * sides[1]])
        self.labels_np = np.array([example.label for example in examples])
        self.features = torch.from_numpy(features).to(device)
        self.labels = torch.from_numpy(self.labels_np).to(device)
        self.num_classes = int(self.labels_np.max()) + 1
        ends = np.cumsum([0, *map(len, parts)])
        self.parts = [np.arange(a, b) for a, b in pairwise(ends)]

    def folds(self, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Stratified folds of `rows` as (training rows, left-out rows)."""
        cut = StratifiedKFold(self.protocol.folds, shuffle=True, random_state=SEED)
        return [(rows[train], rows[test]) for train, test in cut.split(np.zeros(len(rows)), self.labels_np[rows])]

    def over_l2(self, splits: Sequence[Split]) -> Fits:
        """Every split with every l2 value."""
        l2 = np.tile(np.array(L2_VALUES), (len(splits), 1))
        return self.fit(self.features, self.labels, splits, l2, self.num_classes, self.protocol)

    def final(self, rows: Sequence[np.ndarray], l2: Sequence[float]) -> Fits:
        """One classifier per row set, stopped on 5 % of it."""
        column = np.array(l2)[:, None]
        return self.fit(
            self.features, self.labels, [classifier.held_out(r) for r in rows], column, self.num_classes, self.protocol
        )

    def percent(self, fits: Fits, split: int, l2: int, rows: np.ndarray) -> float:
        return round(100 * fits.accuracy(self.features, self.labels, split, l2, rows), 2)


def _nested(data: _Task) -> dict[str, float]:
    """Outer folds are the test sets, inner folds choose the l2 value; all inner classifiers train together."""
    (rows,) = data.parts
    outer = data.folds(rows)
    inner = [[Split(train, dev) for train, dev in data.folds(train_rows)] for train_rows, _ in outer]
    fits = data.over_l2([split for splits in inner for split in splits])
    per_fold = fits.dev_accuracy.reshape(len(outer), data.protocol.folds, -1)
    scores = np.array([[round(100 * np.mean(column), 2) for column in fold.T] for fold in per_fold])
    best = scores.argmax(axis=1)  # the first maximum, so the smallest l2 among equals
    final = data.final([train_rows for train_rows, _ in outer], [L2_VALUES[i] for i in best])
    tests = [data.percent(final, i, 0, test_rows) for i, (_, test_rows) in enumerate(outer)]
    return {
        "devacc": round(float(np.mean(scores.max(axis=1))), 2),
        "acc": round(float(np.mean(tests)), 2),
        "ndev": len(rows),
        "ntest": len(rows),
    }


def _cross_validated(data: _Task, with_f1: bool = False) -> dict[str, float]:
    """Folds of the training part choose the l2 value; the test part is scored once."""
    train_rows, test_rows = data.parts
    fits = data.over_l2([Split(train, dev) for train, dev in data.folds(train_rows)])
    scores = [round(100 * np.mean(column), 2) for column in fits.dev_accuracy.T]
    best = int(np.argmax(scores))
    final = data.final([train_rows], [L2_VALUES[best]])
    result = {
        "devacc": float(scores[best]),
        "acc": data.percent(final, 0, 0, test_rows),
        "ndev": len(train_rows),
        "ntest": len(test_rows),
    }
    if with_f1:
        predicted = final.predict(data.features[test_rows], 0, 0).cpu().numpy()
        result["f1"] = round(100 * float(f1_score(data.labels_np[test_rows], predicted)), 2)
    return result


def _with_dev_set(data: _Task) -> dict[str, float]:
    """The dev part chooses the l2 value and stops the training, so the chosen classifier is the final one already."""
    train_rows, dev_rows, test_rows = data.parts
    fits = data.over_l2([Split(train_rows, dev_rows)])
    scores = [round(100 * float(accuracy), 2) for accuracy in fits.dev_accuracy[0]]
    best = int(np.argmax(scores))
    return {
        "devacc": scores[best],
        "acc": data.percent(fits, 0, best, test_rows),
        "ndev": len(dev_rows),
        "ntest": len(test_rows),
    }


def _ordered(examples: list[Example]) -> list[Example]:
    """By token counts, then label, stable: the order decides which example falls into which fold."""
    return sorted(examples, key=lambda e: (*(len(s.split()) for s in e.sentences), e.label))


def _two_files(task: str) -> Callable[[Path], list[list[Example]]]:
    """Loader of the tasks whose label is the file: first file label 1, second label 0."""

    def load(folder: Path) -> list[list[Example]]:
        examples = []
        for label, (name, expected) in zip((1, 0), FILES[task].items(), strict=True):
            # latin-1 even where the bytes are UTF-8: published numbers were computed on that text.
            lines = read_lines(folder / name, "latin-1")
            warn_count(name, len(lines), expected, "sentences")
            examples += [Example((normalized(line),), label) for line in lines]
        return [_ordered(examples)]

    return load


def _load_sst2(folder: Path) -> list[list[Example]]:
    return [_labelled(folder, name, n, _sst2_example) for name, n in FILES["SST2"].items()]


def _load_trec(folder: Path) -> list[list[Example]]:
    return [_labelled(folder, name, n, _trec_example, "latin-1") for name, n in FILES["TREC"].items()]


def _load_mrpc(folder: Path) -> list[list[Example]]:
    return [_labelled(folder, name, n, _mrpc_example, "utf-8-sig", header=1) for name, n in FILES["MRPC"].items()]


def _labelled(
    folder: Path,
    name: str,
    expected: int,
    parse: Callable[[str], Example],
    encoding: str = "utf-8",
    header: int = 0,
) -> list[Example]:
    examples = []
    for number, line in enumerate(read_lines(folder / name, encoding)[header:], start=header + 1):
        try:
            examples.append(parse(line))
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{folder / name}, line {number}: {line[:80]!r} is not {parse.__doc__} ({error})"
            ) from error
    warn_count(name, len(examples), expected, "examples")
    return _ordered(examples)


def _sst2_example(line: str) -> Example:
    """'sentence<TAB>0 or 1'"""
    sentence, label = line.rstrip().split("\t")
    return Example((normalized(sentence),), ("0", "1").index(label))


def _trec_example(line: str) -> Example:
    """'COARSE:fine question' with COARSE one of ABBR DESC ENTY HUM LOC NUM"""
    label, question = line.strip().split(" ", 1)
    return Example((normalized(question),), TREC_LABELS.index(label.split(":")[0]))


def _mrpc_example(line: str) -> Example:
    """'0 or 1<TAB>id<TAB>id<TAB>sentence<TAB>sentence'"""
    label, _, _, first, second = line.rstrip("\n").split("\t")
    return Example((normalized(first), normalized(second)), ("0", "1").index(label))


_LOADERS = {
    **{task: _two_files(task) for task in ("MR", "CR", "SUBJ", "MPQA")},
    "SST2": _load_sst2,
    "TREC": _load_trec,
    "MRPC": _load_mrpc,
}
_PROCEDURES: dict[str, Callable[[_Task], dict[str, float]]] = {
    **dict.fromkeys(("MR", "CR", "SUBJ", "MPQA"), _nested),
    "SST2": _with_dev_set,
    "TREC": _cross_validated,
    "MRPC": lambda data: _cross_validated(data, with_f1=True),
}
