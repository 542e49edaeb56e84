"""Evaluation on SentEval's files: semantic similarity (`evaluate_sts`) and transfer (`evaluate_transfer`).

Independent of any model: `encode` is a function from a list of sentences to an (n, d) array.
"""

from simcse.senteval.sts import evaluate_pairs, evaluate_sts, load_sts
from simcse.senteval.transfer import evaluate_transfer

__all__ = ["evaluate_pairs", "evaluate_sts", "evaluate_transfer", "load_sts"]
