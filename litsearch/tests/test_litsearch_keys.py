"""What is indexed of a paper, and papers ranked by their best key."""

import numpy as np
import pytest

from litsearch.bm25 import BM25
from litsearch.data import Paper
from litsearch.dense import DenseRetriever
from litsearch.keys import Keys, paragraphs, rank_papers, title_abstract
from litsearch.lexical import RandomWordVectors
from litsearch.ranking import top_k
from litsearch.retrievers import make_retriever
from shared import InputError

TEN = "one two three four five six seven eight nine ten"


def test_title_and_abstract_are_put_together_as_in_the_release():
    assert title_abstract(Paper(1, "A title", "An abstract.")) == "Title: A title\nAbstract: An abstract."


def test_paragraphs_are_split_at_exactly_two_newlines_and_short_ones_dropped():
    text = f"{TEN}\n\n{TEN} eleven\n\n\nstill {TEN}\n\nshort one\n{TEN[:13]}"
    assert paragraphs(text) == [TEN, f"{TEN} eleven", f"\nstill {TEN}"]


def test_keys_know_their_owners_once_they_have_been_read():
    papers = [Paper(1, "", "", (), f"{TEN} a\n\n{TEN} b"), Paper(2, "", "", (), "short"), Paper(3, "", "", (), TEN)]
    keys = Keys(papers, "paragraphs")
    with pytest.raises(RuntimeError):
        _ = keys.owners
    assert list(keys) == [f"{TEN} a", f"{TEN} b", TEN]
    assert keys.owners.tolist() == [0, 0, 2]


def test_dedup_keys_keeps_the_place_of_the_first_and_the_id_of_the_last():
    papers = [Paper(1, "a", ""), Paper(2, "b", ""), Paper(3, "a", ""), Paper(4, "c", ""), Paper(5, "a", "")]
    keys = Keys(papers, dedup_keys=True)
    assert list(keys) == [title_abstract(papers[i]) for i in (0, 1, 3)]
    assert [papers[i].corpusid for i in keys.owners] == [5, 2, 4]
    assert len(list(Keys(papers))) == 5


def test_an_unknown_key_and_papers_without_full_texts_are_refused():
    with pytest.raises(InputError, match="key='abstract' is not one of title_abstract, full_paper, paragraphs"):
        Keys([], "abstract")
    with pytest.raises(InputError, match="there is nothing to index; the papers have no full text"):
        list(Keys([Paper(1, "a", "b")], "paragraphs"))


def test_a_paper_is_as_good_as_its_best_paragraph_at_any_depth():
    rng = np.random.default_rng(3)
    owners = np.sort(rng.integers(0, 30, 400))
    scores = rng.integers(0, 50, (5, 400)).astype(np.float32)  # with ties

    def search(queries, k):
        rows = [int(query) for query in queries]
        positions = np.stack([top_k(scores[row], k) for row in rows])
        return positions, np.stack([scores[row][best] for row, best in zip(rows, positions, strict=True)])

    found, found_scores = rank_papers(search, owners, [str(i) for i in range(5)], 25)
    for row in range(5):
        best = np.array([scores[row][owners == paper].max(initial=-1) for paper in range(30)])
        present = np.unique(owners)
        assert sorted(found_scores[row], reverse=True) == list(found_scores[row])
        assert np.array_equal(best[found[row]], found_scores[row])
        assert np.array_equal(np.sort(found_scores[row]), np.sort(best[present])[-len(found[row]) :])
        assert len(set(found[row].tolist())) == len(found[row]) == 25


def test_one_long_paper_does_not_crowd_out_the_others():
    papers = [Paper(1, "", "", (), "\n\n".join(f"needle {TEN} {i}" for i in range(50))), Paper(2, "", "", (), TEN)]
    keys = Keys(papers, "paragraphs")
    bm25 = BM25(keys)
    found, _ = rank_papers(bm25.search_scored, keys.owners, ["needle"], 2)
    assert found[0].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["bm25", "tfidf", "dense", "hybrid"])
def test_every_retriever_ranks_papers_by_their_best_paragraph(name):
    """Fish are in the last paragraph of a paper on other things, and a long paper has them in none."""
    papers = [
        Paper(
            1, "", "", (), "\n\n".join(f"ships sail over the sea in any weather, and back again {i}" for i in range(30))
        ),
        Paper(2, "", "", (), f"{TEN}\n\n{TEN} eleven\n\nbelow the ice small fish swim slowly from one rock to another"),
        Paper(3, "", "", (), "fish"),  # too short to be a paragraph
        Paper(4, "", "", (), "small fish swim in circles where many larger animals hunt them every day"),
    ]
    retriever = _retriever(name)
    keys = Keys(papers, "paragraphs")
    retriever.index(keys)
    query = "fish swim slowly below the ice"
    found, scores = rank_papers(retriever.search, keys.owners, [query], 4)
    assert found[0].tolist()[:2] == [1, 3]
    assert set(found[0].tolist()) == {0, 1, 3}
    everything, all_scores = retriever.search([query], len(keys.owners))
    owners = keys.owners[everything[0]]
    np.testing.assert_allclose(scores[0], [all_scores[0][owners == paper].max() for paper in found[0]])


def _retriever(name: str):
    if name == "dense":
        words = RandomWordVectors(hidden=256)
        words.metadata = dict
        return DenseRetriever(embedder=words)
    parts = {"lexical": {"name": "bm25"}, "dense": {"name": "random", "hidden": 256}}
    return make_retriever({"name": name, **({"parts": parts} if name == "hybrid" else {})}, "paragraphs")


def test_fewer_papers_with_keys_than_asked_for_give_shorter_lists():
    keys = Keys([Paper(1, "", "", (), TEN), Paper(2, "", "")], "paragraphs")
    found, scores = rank_papers(BM25(keys).search_scored, keys.owners, ["nine"], 2)
    assert found[0].tolist() == [0] and len(scores[0]) == 1


@pytest.mark.parametrize("n", [1, 2, 50, 1000, 5000, 20_011])
@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "negative"])
def test_top_k_is_a_stable_sort(n, kind):
    rng = np.random.default_rng(n)
    scores = {
        "distinct": rng.permutation(n).astype(float),
        "ties": rng.integers(0, 4, n).astype(float),
        "zeros": np.where(rng.random(n) < 0.01, rng.random(n), 0.0),
        "negative": -rng.random(n),
    }[kind]
    for k in {1, min(3, n), min(20, n), min(700, n), n}:
        assert top_k(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()
