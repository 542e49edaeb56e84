"""Evaluation on SentEval's files: semantic similarity (`evaluate_sts`) and transfer (`evaluate_transfer`).

Independent of any model: `encode` is a function from a list of sentences to an (n, d) array.
"""

from simcse.senteval.graded_pairs import load_graded_pairs
from simcse.senteval.sts import STS_TASKS, evaluate_pairs, evaluate_sts, load_sts
from simcse.senteval.transfer import TRANSFER_TASKS, evaluate_transfer

__all__ = [
    "STS_TASKS",
    "TRANSFER_TASKS",
    "evaluate_pairs",
    "evaluate_sts",
    "evaluate_transfer",
    "load_graded_pairs",
    "load_sts",
]
