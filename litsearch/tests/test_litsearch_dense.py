"""Search by cosine, and the dense retriever around it."""

import numpy as np
import pytest

from litsearch import storage
from litsearch.cosine import CosineSearch
from litsearch.dense import DenseRetriever
from litsearch.keys import Keys, rank_papers
from litsearch.lexical import RandomWordVectors
from litsearch.metrics import ndcg, ndcg_released, recall_at_k
from litsearch.retrievers import Retriever, make_retriever
from litsearch.vectors import clean
from shared import InputError


def drawn(n: int, hidden: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, hidden)).astype(np.float16)


def by_float64(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What the release computes: float64 cosines of the float16 vectors; ties by ascending position."""
    v, q = vectors.astype(np.float64), queries.astype(np.float64)
    lengths = np.linalg.norm(v, axis=1)
    cosines = (q @ v.T) / np.where(lengths == 0, 1, lengths) / np.linalg.norm(q, axis=1)[:, None]
    order = np.argsort(-cosines.round(14), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, 1)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (50, 50), (1000, 1), (5000, 20), (5000, 900)])
def test_the_nearest_are_those_of_float64(n, k):
    vectors, queries = drawn(n, 48), drawn(17, 48, 1).astype(np.float32)
    positions, scores = CosineSearch(vectors).search(queries, k)
    expected, cosines = by_float64(vectors, queries, k)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, cosines, atol=1e-7)
    assert (positions.dtype, scores.dtype) == (np.int64, np.float32)


def test_agrees_with_sklearn():
    from sklearn.metrics.pairwise import cosine_similarity

    vectors, queries = drawn(3000, 64), drawn(9, 64, 1).astype(np.float32)
    positions, scores = CosineSearch(vectors).search(queries, 20)
    for row, query in enumerate(queries):
        cosines = cosine_similarity(query[None], vectors)[0]
        assert set(positions[row]) == set(np.argsort(cosines)[::-1][:20])
        np.testing.assert_allclose(scores[row], cosines[positions[row]], atol=1e-6)


def test_equal_vectors_have_equal_scores_and_come_in_ascending_position(monkeypatch):
    """Wherever they stand: blocks of a matrix product do not sum all columns in the same order."""
    from litsearch import cosine

    monkeypatch.setattr(cosine, "BLOCK_BYTES", 4 * 33 * 64)
    vectors = drawn(500, 33)
    same = np.arange(3, 500, 7)
    vectors[same] = vectors[3]
    positions, scores = CosineSearch(vectors).search(vectors[3:4].astype(np.float32), len(same))
    np.testing.assert_array_equal(positions[0], same)
    assert len(set(scores[0].tolist())) == 1


def test_more_ties_than_any_slack_are_still_broken_by_position():
    vectors = np.ones((4000, 8), np.float16)
    vectors[:1000] = drawn(1000, 8)
    positions, scores = CosineSearch(vectors).search(np.ones((2, 8), np.float32), 5)
    np.testing.assert_array_equal(positions, [[*range(1000, 1005)]] * 2)
    np.testing.assert_allclose(scores, 1)


def test_near_ties_that_float32_cannot_tell_apart_are_ranked_by_float64():
    """Pairs of vectors whose cosines differ in the ninth digit."""
    draw = np.random.default_rng(0)
    query = draw.standard_normal((1, 256)).astype(np.float32)
    base = draw.standard_normal((400, 256)).astype(np.float32)
    vectors = np.concatenate([base, base * np.float32(1 + 2**-9)]).astype(np.float16)
    positions, _ = CosineSearch(vectors).search(query, 300)
    np.testing.assert_array_equal(positions, by_float64(vectors, query, 300)[0])


@pytest.mark.parametrize("keep", [0, 2**30])
def test_memory_mapped_vectors_in_blocks_give_the_same(tmp_path, monkeypatch, keep):
    from litsearch import cosine

    vectors, queries = drawn(3000, 40), drawn(7, 40, 1).astype(np.float32)
    whole = CosineSearch(vectors).search(queries, 30)
    np.save(tmp_path / "vectors.npy", vectors)
    monkeypatch.setattr(cosine, "BLOCK_BYTES", 4 * 40 * 100)
    monkeypatch.setattr(cosine, "KEEP_BYTES", keep)
    monkeypatch.setattr(cosine, "QUERIES", 2)
    search = CosineSearch(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    for _ in range(2):
        for found, expected in zip(search.search(queries, 30), whole, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_zero_vectors_are_near_nothing():
    vectors = drawn(10, 4)
    vectors[4] = 0
    positions, scores = CosineSearch(vectors).search(drawn(1, 4, 1).astype(np.float32), 10)
    [place] = np.flatnonzero(positions[0] == 4)
    assert scores[0][place] == 0


def test_vectors_of_another_width_are_refused():
    with pytest.raises(InputError, match="indexed vectors have 8 dimensions"):
        CosineSearch(drawn(5, 8)).search(drawn(1, 7).astype(np.float32), 1)


# --------------------------------------------------------------------------------------------------- storing in float16


def test_nan_and_infinity_become_zero_vectors_and_are_counted():
    vectors = np.array([[1, 2], [np.nan, 1], [0, 0], [np.inf, 0], [1e-9, 0]], np.float32)
    stored, not_finite, zero = clean(vectors)
    assert stored.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert (not_finite, zero) == (2, 2)


def test_what_float16_cannot_hold_is_scaled_which_no_cosine_sees():
    stored, not_finite, zero = clean(np.array([[3e6, 4e6], [3, 4]], np.float32))
    assert (not_finite, zero) == (0, 0)
    np.testing.assert_allclose(stored[0].astype(float), [0.6, 0.8], atol=1e-3)
    assert stored[1].tolist() == [3, 4]


# ------------------------------------------------------------------------------------------------------------ retriever


class WordEmbedder:
    """Averages of random word vectors, with questions and keys to break on request."""

    def __init__(self, broken: dict[str, float] | None = None, hidden: int = 32) -> None:
        self.words, self.broken, self.seen, self.hidden = RandomWordVectors(hidden=hidden), broken or {}, [], hidden

    def encode_keys(self, texts):
        self.seen.extend(texts)
        vectors = self.words.encode_keys(texts).astype(np.float32)
        for i, text in enumerate(texts):
            if text in self.broken:
                vectors[i] = self.broken[text]
        return vectors

    encode_queries = encode_keys

    def metadata(self):
        return {"model": "words"}


KEYS = [f"paper about topic{i} and topic{i % 7}" for i in range(50)]


@pytest.fixture
def indexed() -> DenseRetriever:
    retriever = DenseRetriever(embedder=WordEmbedder())
    retriever.index(iter(KEYS))
    return retriever


def test_it_is_a_retriever(indexed):
    assert isinstance(indexed, Retriever)
    positions, scores = indexed.search([KEYS[30], KEYS[4]], 3)
    assert positions[:, 0].tolist() == [30, 4]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-3)
    assert (np.diff(scores) <= 0).all()
    assert indexed.search([], 3)[0].shape == (0, 3)


def test_a_question_is_encoded_once_however_deep_the_search_goes(indexed):
    indexed.embedder.seen.clear()
    owners = np.repeat(np.arange(10), 5)
    positions, _ = rank_papers(indexed.search, owners, ["topic3", "topic4"], 9)
    assert all(len(found) == 9 for found in positions)
    assert indexed.embedder.seen == ["topic3", "topic4"]


def test_an_unusable_key_is_counted_and_an_unusable_question_is_an_error(caplog):
    embedder = WordEmbedder({KEYS[3]: np.nan, KEYS[4]: 0.0, "nan": np.nan, "zero": 0.0})
    retriever = DenseRetriever(embedder=embedder)
    retriever.index(KEYS)
    assert retriever.counts == {"not_finite": 1, "zero": 1}
    assert "of 50 vectors" in caplog.text
    positions, _ = retriever.search([KEYS[10]], 50)
    assert {3, 4} <= set(positions[0].tolist())
    for question, said in (("nan", "'nan' has NaN"), ("zero", "'zero' is zero")):
        with pytest.raises(InputError, match=said):
            retriever.search([question], 1)


@pytest.mark.parametrize("place", [None, "index"])
def test_a_model_that_gives_nothing_but_nan_is_an_error_and_leaves_no_index(tmp_path, place):
    folder = tmp_path / place if place else None
    retriever = DenseRetriever(embedder=WordEmbedder(dict.fromkeys(KEYS[:3], np.nan)), folder=folder)
    with pytest.raises(InputError, match="all 3 vectors are zero or not finite"):
        retriever.index(KEYS[:3])
    assert not (tmp_path / "index").exists()


def test_indexing_twice_counts_once():
    retriever = DenseRetriever(embedder=WordEmbedder({KEYS[3]: np.nan}))
    for _ in range(2):
        retriever.index(KEYS)
    assert retriever.counts == {"not_finite": 1, "zero": 0}


@pytest.mark.parametrize(
    ("queries", "k", "said"),
    [
        (["a"], 0, "k=0"),
        (["a"], 51, "k=51 is more than the 50 keys"),
        ([" "], 1, r"queries\[0\]"),
        ("a", 1, "one text"),
    ],
)
def test_searches_that_cannot_be_answered_are_refused(indexed, queries, k, said):
    with pytest.raises(InputError, match=said):
        indexed.search(queries, k)


def test_nothing_indexed_is_an_error(tmp_path):
    retriever = DenseRetriever(embedder=WordEmbedder())
    with pytest.raises(InputError, match="nothing is indexed yet"):
        retriever.search(["a"], 1)
    with pytest.raises(InputError, match="nothing is indexed yet"):
        retriever.save(tmp_path / "index")
    with pytest.raises(InputError, match="nothing to index"):
        retriever.index([])


def test_a_saved_index_gives_the_same_and_refuses_another_retriever(indexed, tmp_path):
    indexed.save(tmp_path / "index", {"corpus": "abc"})
    metadata = storage.read_metadata(tmp_path / "index", {"corpus": "abc"})
    assert (metadata["keys"], metadata["hidden"], metadata["zero"]) == (50, 32, 0)
    again = DenseRetriever(embedder=WordEmbedder())
    again.load(tmp_path / "index")
    for found, expected in zip(again.search(["topic3"], 9), indexed.search(["topic3"], 9), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert isinstance(storage.open_array(tmp_path / "index", "vectors"), np.memmap)
    other = DenseRetriever(key="full_paper", embedder=WordEmbedder())
    with pytest.raises(InputError, match="made with key='title_abstract', but key='full_paper' is asked for"):
        other.load(tmp_path / "index")


def test_vectors_that_do_not_fit_their_metadata_are_refused(indexed, tmp_path):
    indexed.save(tmp_path / "index")
    np.save(tmp_path / "index" / "vectors.npy", drawn(50, 31))
    with pytest.raises(InputError, match=r"holds float16 \(50, 31\), but metadata.json says float16 \(50, 32\)"):
        DenseRetriever(embedder=WordEmbedder()).load(tmp_path / "index")
    (tmp_path / "index" / "vectors.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="cannot be read"):
        DenseRetriever(embedder=WordEmbedder()).load(tmp_path / "index")


def test_unknown_options_are_named(config):
    with pytest.raises(InputError, match=r"retriever=e5: .*prefix"):
        make_retriever({"name": "e5", "kind": "dense", "model": "minilm", "prefix": "x"})


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.mirror
def test_random_word_vectors_score_as_in_the_reference(mini_corpus, mini_queries):
    retriever = DenseRetriever("random", embedder=WordEmbedder(hidden=300))
    retriever.index(Keys(mini_corpus.papers))
    positions, _ = retriever.search([query.query for query in mini_queries], 20)
    found = [[mini_corpus.papers[i].corpusid for i in row] for row in positions]
    rows = {}
    for breadth in ("broad", "specific"):
        some = [(r, list(q.corpusids)) for r, q in zip(found, mini_queries, strict=True) if q.breadth == breadth]
        scores = [
            np.mean([100 * recall_at_k(r, gold, 5) for r, gold in some]),
            np.mean([100 * recall_at_k(r, gold, 20) for r, gold in some]),
            np.mean([100 * ndcg_released(r[:10], gold) for r, gold in some]),
            np.mean([100 * ndcg(r, gold, 10) for r, gold in some]),
        ]
        rows[breadth] = np.round(scores, 4).tolist()
    assert rows == {"broad": [2.2222, 15.5556, 1.3889, 2.1031], "specific": [9.8901, 13.7363, 5.2564, 6.7530]}
