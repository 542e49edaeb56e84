"""BM25 against rank-bm25 (to the bit), against the reference results on the real small corpus, on disk, in bounds."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from rank_bm25 import BM25Okapi

from litsearch import bm25 as module
from litsearch import postings
from litsearch.bm25 import BM25
from litsearch.generated_texts import resampled, zipf_texts
from litsearch.keys import title_abstract
from litsearch.lexical import RandomWordVectors, TfidfRetriever
from litsearch.metrics import ndcg, ndcg_released, recall_at_k
from litsearch.postings import Postings
from litsearch.retrievers import Retriever, make_retriever
from litsearch.text import Numbering, terms, tokenize
from shared import InputError

KEYS = [
    "Title: Cats and dogs\nAbstract: Cats chase dogs. Dogs chase cats.",
    "Title: Dogs\nAbstract: A dog is a dog.",
    "Title: Birds\nAbstract: Birds sing, and cats listen.",
    "",
    "Title: Birds\nAbstract: Birds sing, and cats listen.",
]


def collection(documents: int, seed: int) -> list[list[str]]:
    """Lists of terms with frequent, rare and (in all documents) omnipresent ones."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(documents):
        ids = np.minimum(rng.zipf(1.3, rng.integers(5, 60)), 400)
        made.append([f"t{i}" for i in ids] + [":"])
    return made


@pytest.mark.parametrize(("documents", "seed"), [(3, 0), (40, 1), (700, 2)])
def test_scores_are_rank_bm25s_to_the_last_bit(documents, seed):
    tokens = collection(documents, seed)
    ours, theirs = BM25.from_tokens(tokens), BM25Okapi(tokens)
    assert ours.average_idf == theirs.average_idf
    assert {term: ours.idf[i] for term, i in ours.vocabulary.items()} == theirs.idf
    assert (theirs.avgdl, theirs.doc_len) == (ours.average_length, ours.lengths.tolist())
    rng = np.random.default_rng(seed)
    for _ in range(20):
        query = [f"t{i}" for i in rng.integers(1, 420, 8)] + [":", "t1", "t1", "unknown"]
        assert np.array_equal(ours.scores(query), theirs.get_scores(query))


def test_other_parameters_are_rank_bm25s_too():
    tokens = collection(50, 3)
    ours = BM25.from_tokens(tokens, k1=0.9, b=0.4, epsilon=0.1)
    theirs = BM25Okapi(tokens, k1=0.9, b=0.4, epsilon=0.1)
    assert np.array_equal(ours.scores(["t1", "t2", ":"]), theirs.get_scores(["t1", "t2", ":"]))


@pytest.mark.parametrize("keys", [1, 20, 63, 64, 65, 1000])
@pytest.mark.parametrize("values", [2, 7, 10**6])
def test_the_best_are_those_of_a_stable_sort_whatever_ties_there_are(keys, values):
    from litsearch.term_at_a_time import keep_best

    rng = np.random.default_rng(keys * values)
    for k in {1, min(5, keys), keys}:
        scores = rng.integers(-values, values, keys) / 3
        positions, best = np.empty(k, np.int64), np.empty(k)
        keep_best(scores, positions, best)
        wanted = np.argsort(-scores, kind="stable")[:k]
        assert np.array_equal(positions, wanted) and np.array_equal(best, scores[wanted])


def test_texts_are_searched_by_their_terms():
    index = BM25(KEYS)
    positions = index.search(["Do cats chase dogs?", "singing birds"], 3)
    assert positions.shape == (2, 3) and positions.dtype == np.int64
    assert positions[0, 0] == 0
    theirs = BM25Okapi([terms(key) for key in KEYS])
    assert np.array_equal(index.scores(terms("Do cats chase dogs?")), theirs.get_scores(terms("Do cats chase dogs?")))


def test_ties_are_broken_by_ascending_position():
    index = BM25(KEYS)
    assert index.search(["birds sing"], 5)[0].tolist()[:2] == [2, 4]
    assert index.search(["nothing that is known"], 5)[0].tolist() == [0, 1, 2, 3, 4]


def test_empty_keys_are_allowed_and_keys_without_any_term_are_not():
    assert BM25(KEYS).lengths[3] == 0
    with pytest.raises(InputError, match="none of the 2 keys holds a term"):
        BM25(["", "the of and"])
    with pytest.raises(InputError, match="there is nothing to index"):
        BM25([])


@pytest.mark.parametrize("k", [0, -1, 6, 1.5, True])
def test_k_outside_the_keys_is_refused(k):
    with pytest.raises(InputError, match=f"k={k}"):
        BM25(KEYS).search(["cats"], k)
    with pytest.raises(InputError, match=f"k={k}"):
        BM25(KEYS).search_terms([["cat"]], k)


@pytest.mark.parametrize("queries", [[""], ["cats", "  "], [None], "cats"])
def test_questions_that_are_empty_or_no_texts_are_refused(queries):
    with pytest.raises(InputError, match="queries"):
        BM25(KEYS).search(queries, 1)


@pytest.mark.parametrize("parameters", [{"k1": -1}, {"b": 1.5}, {"epsilon": "x"}, {"b": float("nan")}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        BM25(KEYS, **parameters)


def test_processes_and_the_cache_do_not_change_the_index(tmp_path):
    wanted = BM25(KEYS)
    for index in (BM25(KEYS, cache=tmp_path), BM25(KEYS, cache=tmp_path, processes=2), BM25(iter(KEYS))):
        assert list(index.vocabulary) == list(wanted.vocabulary)
        assert np.array_equal(index.impacts, wanted.impacts)


# ------------------------------------------------------------------------------------------------------------- on disk


def test_a_saved_index_is_memory_mapped_and_finds_the_same(tmp_path):
    index = BM25(KEYS)
    index.save(tmp_path / "index", {"corpus": "abc"})
    loaded = BM25.load(tmp_path / "index", {"corpus": "abc"})
    assert isinstance(loaded.impacts.base, np.memmap)
    for query in ("cats and dogs", "birds"):
        assert np.array_equal(loaded.scores(terms(query)), index.scores(terms(query)))


@pytest.mark.parametrize("threshold", [10, 1000])
def test_an_index_built_on_disk_is_the_one_built_in_memory(tmp_path, monkeypatch, threshold):
    texts = list(zipf_texts(60, 80, vocabulary=500, seed=1))
    wanted = BM25(texts)
    monkeypatch.setattr(postings, "MEMORY_POSTINGS", threshold)
    monkeypatch.setattr(postings, "BLOCK_POSTINGS", 50)
    original = module.tokenize
    monkeypatch.setattr(module, "tokenize", lambda *args: original(*args, batch_characters=700))
    built = BM25(iter(texts), folder=tmp_path / "index")
    assert list(built.vocabulary) == list(wanted.vocabulary)
    for name in ("documents", "impacts", "starts", "idf", "lengths"):
        assert np.array_equal(getattr(built, name), getattr(wanted, name)), name
    assert [path.name for path in tmp_path.iterdir()] == ["index"]  # nothing temporary is left


def test_postings_are_sorted_by_term_then_document(monkeypatch):
    monkeypatch.setattr(postings, "MEMORY_POSTINGS", 30)
    monkeypatch.setattr(postings, "BLOCK_POSTINGS", 7)
    documents = [["b", "a", "b"], ["a"], [], ["c", "a", "c", "c"]] * 9
    numbering, collected = Numbering(), Postings()
    for batch in module._numbered(documents, numbering, per_batch=5):
        collected.add(batch)
    found = []
    for first, last, where, counts in collected.blocks():
        numbers = np.repeat(np.arange(first, last), collected.frequencies[first:last])
        found += list(zip(numbers.tolist(), where.tolist(), counts.tolist(), strict=True))
    collected.close()
    wanted = [(numbering[t], d, doc.count(t)) for d, doc in enumerate(documents) for t in set(doc)]
    assert found == sorted(wanted)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"corpus": "other"}, "was made with corpus='abc', but corpus='other' is asked for"),
        ({"key": "full_paper"}, "was made with key=None, but key='full_paper'"),
        ({"tokenizer": "2-x"}, "was made with tokenizer="),
        ({"kind": "dense"}, "was made with kind='bm25'"),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path, expected, message):
    BM25(KEYS).save(tmp_path / "index", {"corpus": "abc"})
    with pytest.raises(InputError, match=message):
        BM25.load(tmp_path / "index", expected)


@pytest.mark.parametrize("name", ["documents.npy", "impacts.npy", "idf.npy", "terms.txt", "metadata.json"])
def test_an_incomplete_index_is_refused(tmp_path, name):
    BM25(KEYS).save(tmp_path / "index")
    path = tmp_path / "index" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError):
        BM25.load(tmp_path / "index")
    path.unlink()
    with pytest.raises(InputError):
        BM25.load(tmp_path / "index")


def test_a_folder_that_is_no_index_is_neither_read_nor_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not an index"):
        BM25(KEYS).save(tmp_path)
    with pytest.raises(InputError, match="is not an index"):
        BM25.load(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_index_can_be_replaced(tmp_path):
    BM25(KEYS).save(tmp_path / "index")
    BM25(KEYS[:2]).save(tmp_path / "index")
    assert len(BM25.load(tmp_path / "index")) == 2


def test_a_build_that_is_killed_leaves_no_index_and_can_be_repeated(tmp_path):
    code = f"""
        import os, signal
        from litsearch.bm25 import BM25
        def keys():
            yield "Title: one"
            print("reading", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        BM25(keys(), folder={str(tmp_path / "index")!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL and "reading" in done.stdout
    assert not (tmp_path / "index").exists()
    assert len(BM25(KEYS, folder=tmp_path / "index")) == 5


# ------------------------------------------------------------------------------------------ behind the common interface


@pytest.mark.parametrize("options", [{"name": "bm25"}, {"name": "tfidf"}, {"name": "random"}])
def test_lexical_retrievers_share_an_interface(options):
    retriever = make_retriever(options)
    assert isinstance(retriever, Retriever)
    with pytest.raises(InputError, match="nothing is indexed yet"):
        retriever.search(["cats"], 1)
    retriever.index(iter(KEYS))
    positions, scores = retriever.search(["cats and dogs", "birds sing"], 3)
    assert positions.shape == scores.shape == (2, 3)
    assert (positions.dtype, scores.dtype) == (np.int64, np.float32)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert positions[1, 0] == 2  # of two equal keys the first
    assert retriever.metadata()["retriever"] == options["name"]


@pytest.mark.parametrize(
    "options", [{"name": "bm25"}, {"name": "random"}, {"name": "tfidf"}, {"name": "tfidf", "components": 3}]
)
def test_lexical_retrievers_save_and_load(tmp_path, options):
    retriever = make_retriever(options)
    with pytest.raises(InputError, match="nothing is indexed yet"):
        retriever.save(tmp_path / "index")
    retriever.index(KEYS)
    retriever.save(tmp_path / "index", {"corpus": "abc"})
    loaded = make_retriever(options)
    loaded.load(tmp_path / "index")
    for ours, theirs in zip(loaded.search(["cats"], 5), retriever.search(["cats"], 5), strict=True):
        assert np.array_equal(ours, theirs)
    with pytest.raises(InputError, match="was made with key='title_abstract', but key='full_paper'"):
        make_retriever(options, key="full_paper").load(tmp_path / "index")


def test_a_tfidf_index_whose_files_do_not_belong_together_is_refused(tmp_path):
    for name, keys in (("index", KEYS), ("other", [*KEYS, "other fish swim"])):
        retriever = TfidfRetriever()
        retriever.index(keys)
        retriever.save(tmp_path / name)
    (tmp_path / "other" / "idf.npy").replace(tmp_path / "index" / "idf.npy")
    with pytest.raises(InputError, match="its terms cannot be read"):
        TfidfRetriever().load(tmp_path / "index")
    with pytest.raises(InputError, match="made with components=None, but components=3"):
        TfidfRetriever(components=3).load(tmp_path / "index")


def test_an_index_built_in_a_folder_gets_its_metadata_when_it_is_saved_there(tmp_path):
    retriever = make_retriever({"name": "bm25", "folder": str(tmp_path / "index")})
    retriever.index(KEYS)
    retriever.save(tmp_path / "index", {"corpus": "abc"})
    assert len(BM25.load(tmp_path / "index", {"corpus": "abc", "key": "title_abstract"})) == 5


def test_retrievers_that_do_not_exist_and_options_they_do_not_take_are_refused():
    with pytest.raises(InputError, match=r"retriever\.kind='bm52' is not one of bm25"):
        make_retriever({"name": "bm52"})
    with pytest.raises(InputError, match="k2"):
        make_retriever({"name": "bm25", "k2": 1})


def test_lsa_finds_what_shares_no_word():
    keys = ["cars need fuel", "automobiles need fuel", "cars and automobiles", "poems about the sea", "sea and poems"]
    index = TfidfRetriever(components=3)
    index.index(keys * 3)
    found = index.search(["automobiles"], 15)[0][0]
    assert set(found[:9] % 5) == {0, 1, 2}
    with pytest.raises(InputError, match="allow at most"):
        TfidfRetriever(components=50).index(keys)


def test_random_word_vectors_are_the_same_everywhere():
    vector = RandomWordVectors(hidden=3).encode_keys(["Word"])[0]
    assert vector.dtype == np.float16
    assert np.allclose(vector, RandomWordVectors(hidden=3).encode_keys(["word WORD"])[0], atol=1e-3)
    assert not RandomWordVectors(hidden=3).encode_keys([" "]).any()


def test_resampled_documents_keep_lengths_and_terms():
    tokens = collection(50, 5)
    made = resampled(tokens, 120)
    assert len(made) == 120
    assert {term for document in made for term in document} <= {term for document in tokens for term in document}


# ------------------------------------------------------------------------------------------------ the real small corpus


def table(lists, queries) -> dict[str, list[float]]:
    found = {}
    for breadth in ("broad", "specific"):
        chosen = [(row, q.corpusids) for row, q in zip(lists.tolist(), queries, strict=True) if q.breadth == breadth]
        found[breadth] = [
            100 * np.mean([score(row, gold) for row, gold in chosen])
            for score in (
                lambda row, gold: recall_at_k(row, gold, 5),
                lambda row, gold: recall_at_k(row, gold, 20),
                lambda row, gold: ndcg_released(row, gold, 10),
                lambda row, gold: ndcg(row, gold, 10),
            )
        ]
    return found


@pytest.mark.mirror
def test_bm25_on_the_real_papers_gives_the_reference_results(mini_bm25, mini_queries):
    found = table(mini_bm25.search([q.query for q in mini_queries], 20), mini_queries)
    assert found["broad"] == pytest.approx([43.3333, 57.7778, 36.1323, 40.4861], abs=5e-5)
    assert found["specific"] == pytest.approx([51.6484, 62.0879, 40.9921, 44.6186], abs=5e-5)


@pytest.mark.mirror
def test_bm25s_internals_on_the_real_papers_are_the_reference_values(mini_bm25):
    assert mini_bm25.lengths.sum() == 985_287
    assert len(mini_bm25.vocabulary) == 27_609
    assert mini_bm25.average_length == pytest.approx(129.0318, abs=5e-5)
    assert mini_bm25.average_idf == pytest.approx(7.898736, abs=5e-7)
    negative = [t for t, i in mini_bm25.vocabulary.items() if mini_bm25.frequencies[i] > len(mini_bm25) / 2]
    assert sorted(negative) == sorted(["titl", ":", "model", "abstract", ".", ",", "(", ")", "use", "propos"])


@pytest.mark.mirror
def test_random_word_vectors_on_the_real_papers_give_the_reference_results(mini_corpus, mini_queries):
    index = RandomWordVectors()
    index.index([title_abstract(paper) for paper in mini_corpus.papers])
    found = table(index.search([q.query for q in mini_queries], 20)[0], mini_queries)
    assert found["broad"] == pytest.approx([2.2222, 15.5556, 1.3889, 2.1031], abs=5e-5)
    assert found["specific"] == pytest.approx([9.8901, 13.7363, 5.2564, 6.7530], abs=5e-5)


@pytest.mark.mirror
def test_rankings_of_the_real_papers_are_rank_bm25s(mini_corpus, mini_bm25, mini_queries):
    numbering = Numbering()
    batches = list(tokenize((title_abstract(paper) for paper in mini_corpus.papers), numbering))
    names, documents = list(numbering), []
    for batch in batches:
        ends = np.cumsum(batch.lengths)
        documents += [[names[i] for i in batch.ids[e - n : e]] for e, n in zip(ends, batch.lengths, strict=True)]
    theirs = BM25Okapi(documents)
    for query in mini_queries[::20]:
        assert np.array_equal(mini_bm25.scores(terms(query.query)), theirs.get_scores(terms(query.query)))
