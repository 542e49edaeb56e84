"""Listwise reranking by language models (LitSearch, section 4): prompt, replies, windows, back ends.

from litsearch.rerank import Candidates, ListwiseReranker, parse_permutation
parse_permutation("[3] > [1] > [2]", n=5, start=0, end=5)     # [2, 0, 1, 3, 4]

python -m litsearch.rerank run=RUN.jsonl llm=openai max_k=100
"""

from litsearch.rerank.listwise import Candidates, ListwiseReranker, Ranking, Settings, statistics
from litsearch.rerank.permutation import parse_permutation, read_reply

__all__ = [
    "Candidates",
    "ListwiseReranker",
    "Ranking",
    "Settings",
    "parse_permutation",
    "read_reply",
    "statistics",
]
