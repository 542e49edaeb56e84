"""The dev set of a training run: which one there is, its scores, and where its sentences stand on the sphere.

STS-B dev and SICK-R trial where SentEval's files are; else the graded pairs that come with this project, under a name
of their own, because their numbers compare with nothing in the paper. Every distinct sentence is encoded once per
evaluation: 3,833 for the two dev sets, where the authors' release encodes 37,110 (all splits, both sides, repeats).
No test file is opened.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from shared import hub
from simcse.alignment import POSITIVE_ABOVE, alignment, uniformity
from simcse.senteval import evaluate_pairs, load_graded_pairs, load_sts
from simcse.senteval.files import encode_once, rows_of
from simcse.senteval.sts import Pairs

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[str]], np.ndarray]


class DevSet:
    """Sentence pairs with gold scores under short names, the first of which decides which weights are the best.

    `main_metric` is the name of the deciding score; `source` says in words what was measured on.
    """

    def __init__(self, sets: dict[str, Pairs], source: str):
        self.sets, self.source = sets, source
        self.main_metric = f"eval_{next(iter(sets))}_spearman"
        self._vectors: tuple[int, np.ndarray, dict[str, int]] | None = None

    def scores(self, encode: Encode, step: int) -> dict[str, float | None]:
        """`eval_<set>_spearman` on a -1..1 scale, and with both STS sets `eval_avg_sts`, the mean. None: undefined."""
        vectors, rows = self._encoded(encode, step)
        values = {
            name: evaluate_pairs(lambda texts: vectors[rows_of(texts, rows)], pairs)["all"]
            for name, pairs in self.sets.items()
        }
        scores = {f"eval_{name}_spearman": value for name, value in values.items()}
        if set(values) == {"stsb", "sickr"}:
            scores["eval_avg_sts"] = None if None in values.values() else float(np.mean(list(values.values())))
        return scores

    def geometry(self, encode: Encode, step: int) -> dict[str, float]:
        """Alignment of the first set's pairs with gold > 4 and uniformity of its sentences (SimCSE, Fig. 2)."""
        vectors, rows = self._encoded(encode, step)
        pairs = next(iter(self.sets.values()))
        first, second = (torch.from_numpy(vectors[rows_of(side, rows)]) for side in (pairs.first, pairs.second))
        close = torch.from_numpy(np.asarray(pairs.gold) > POSITIVE_ABOVE)
        return {
            "eval_alignment": alignment(first[close], second[close]),
            "eval_uniformity": uniformity(torch.cat([first, second])),
        }

    def _encoded(self, encode: Encode, step: int) -> tuple[np.ndarray, dict[str, int]]:
        # Scores and geometry of one step share the vectors: nothing is encoded twice.
        if self._vectors is None or self._vectors[0] != step:
            sentences = [sentence for pairs in self.sets.values() for sentence in pairs.sentences]
            self._vectors = (step, *encode_once(encode, sentences))
        return self._vectors[1:]

    def forget(self) -> None:
        """Drop the vectors of the last step: the weights have changed without a step."""
        self._vectors = None


def load_dev_set(data_dir: str | Path | None = None) -> DevSet:
    """STS-B dev and SICK-R trial from `data_dir` or the source `senteval`; else the project's graded pairs.

    Raises:
        InputError: `data_dir` was given and is incomplete.
    """
    if data_dir is None:
        try:
            data_dir = hub.locate("simcse", "senteval")
        except hub.NotAvailable:
            log.warning("no STS data on this machine: the dev set is the project's own graded pairs")
            return DevSet({"graded": load_graded_pairs()}, "the project's graded pairs")
    loaded = load_sts(data_dir, ["STSBenchmark", "SICKRelatedness"], "dev")
    return DevSet(
        {"stsb": loaded["STSBenchmark"]["dev"], "sickr": loaded["SICKRelatedness"]["dev"]}, "STS-B dev, SICK-R trial"
    )
