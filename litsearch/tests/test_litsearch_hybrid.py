"""Fusion by reciprocal ranks, of retrievers and of runs."""

import numpy as np
import pytest
from rich.console import Console

from litsearch.hybrid import HybridRetriever, best, fuse, fuse_files, fuse_scored
from litsearch.keys import Keys
from litsearch.retrievers import Retriever, make_retriever
from litsearch.runs import Run, RunRecord, read_run, run_metadata, write_run
from shared import InputError

PARTS = {"lexical": {"name": "bm25", "kind": "bm25"}, "dense": {"name": "random", "kind": "random", "hidden": 8}}


def test_scores_are_sums_of_reciprocal_ranks():
    scores = fuse([[7, 3, 5], [3, 9]], k=60)
    assert scores == pytest.approx({7: 1 / 61, 3: 1 / 62 + 1 / 61, 5: 1 / 63, 9: 1 / 62})
    assert [item for item, _ in best(scores, 3)] == [3, 7, 9]


def test_weights_count_and_ties_fall_to_the_smaller_item():
    assert [item for item, _ in best(fuse([[8, 1], [2, 9]]), 4)] == [2, 8, 1, 9]
    assert [item for item, _ in best(fuse([[8, 1], [2, 9]], [2.0, 1.0]), 4)] == [8, 1, 2, 9]
    assert fuse([[4]], k=0) == {4: 1.0}


@pytest.fixture
def hybrid(corpus) -> HybridRetriever:
    retriever = HybridRetriever(parts=PARTS)
    retriever.index(Keys(corpus.papers))
    return retriever


def test_a_hybrid_is_a_retriever_that_fuses_its_parts(hybrid, queries):
    assert isinstance(hybrid, Retriever)
    questions = [query.query for query in queries]
    lists = [part.search(questions, 6) for part in hybrid.parts.values()]
    positions, scores = hybrid.search(questions, 4)
    for row in range(len(questions)):
        expected = best(fuse([found[row][scored[row] != 0].tolist() for found, scored in lists]), 4)
        assert positions[row].tolist() == [item for item, _ in expected]
        np.testing.assert_allclose(scores[row], [score for _, score in expected], rtol=1e-6)
    assert (positions.dtype, scores.dtype) == (np.int64, np.float32)


def test_what_has_no_word_of_the_question_gets_nothing_from_the_retriever_by_words():
    assert fuse_scored([([0, 1, 2], [0.0, 0.0, 0.0]), ([2, 1, 0], [0.5, 0.1, -0.3])], k=0) == {2: 1, 1: 1 / 2, 0: 1 / 3}
    assert fuse_scored([([4, 5], None), ([5, 4], [2.0, 0.0])], k=0) == {4: 1, 5: 1.5}
    retriever = HybridRetriever(parts=PARTS)
    retriever.index(["cats", "dogs", "trees", "of the"])
    positions, _ = retriever.search(["of the"], 4)  # stop words: nothing for BM25
    np.testing.assert_array_equal(positions, retriever.parts["dense"].search(["of the"], 4)[0])
    assert positions[0, 0] == 3


def test_a_stream_of_keys_is_read_once(corpus, queries):
    streamed, listed = (HybridRetriever(parts=PARTS) for _ in range(2))
    streamed.index(iter(list(Keys(corpus.papers))))
    listed.index(Keys(corpus.papers))
    question = [queries[0].query]
    np.testing.assert_array_equal(streamed.search(question, 6)[0], listed.search(question, 6)[0])


def test_a_saved_hybrid_gives_the_same(hybrid, queries, tmp_path):
    hybrid.save(tmp_path / "index", {"corpus": "abc"})
    again = HybridRetriever(parts=PARTS)
    again.load(tmp_path / "index")
    questions = [query.query for query in queries]
    for found, expected in zip(again.search(questions, 6), hybrid.search(questions, 6), strict=True):
        np.testing.assert_array_equal(found, expected)
    other = HybridRetriever(parts={"lexical": PARTS["lexical"], "other": PARTS["dense"]})
    with pytest.raises(InputError, match="was made of lexical, dense, but lexical, other are asked for"):
        other.load(tmp_path / "index")
    wider = HybridRetriever(parts={**PARTS, "dense": {**PARTS["dense"], "hidden": 16}})
    with pytest.raises(InputError, match="made with hidden=8, but hidden=16"):
        wider.load(tmp_path / "index")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": None}, "at least two retrievers"),
        ({"parts": {"one": PARTS["dense"]}}, "at least two retrievers"),
        ({"k": -1}, "k=-1"),
        ({"depth": 0}, "depth=0"),
        ({"weights": {"lexical": 1}}, "weights names lexical, but there are lexical, dense"),
        ({"weights": [1, 0]}, "weights holds 0"),
    ],
)
def test_fusions_that_cannot_work_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        HybridRetriever(**{"parts": PARTS, **options})


def test_the_configuration_fuses_bm25_and_a_dense_retriever(config):
    from litsearch.retrieve import retriever_options

    retriever = make_retriever(retriever_options(config("retriever=hybrid").retriever))
    assert {part: one.name for part, one in retriever.parts.items()} == {"lexical": "bm25", "dense": "minilm"}
    other = config("retriever=hybrid", "retriever@retriever.parts.dense=e5").retriever
    assert other.parts.dense.name == "e5"


@pytest.fixture
def run_files(tmp_path, corpus, queries):
    def write(name: str, found: list[list[int]], **metadata):
        records = [RunRecord(query, ids) for query, ids in zip(queries, found, strict=False)]
        about = run_metadata(corpus, queries, stages=[name], key="title_abstract", **metadata)
        return write_run(tmp_path / f"{name}.jsonl", Run(records, about))

    a = write("bm25", [[10, 20, 30], [20, 10], [40, 60], [30, 10]])
    b = write("e5", [[30, 10], [20, 60], [60, 40], [50, 30]])
    short = write("short", [[10]])
    return a, b, short


@pytest.fixture
def overrides(corpus_file, query_file, tmp_path):
    return ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}", f"output_dir={tmp_path / 'out'}"]


def test_runs_are_fused_as_retrievers_are(run_files, overrides, config):
    a, b, _ = run_files
    run = read_run(fuse_files(config(*overrides, f"runs=[{a},{b}]", name="hybrid"), Console(quiet=True)))
    # 10 and 30: 1/61 + 1/62 and 1/63 + 1/61; ties (40 and 60) by position in the corpus.
    assert run.retrieved == [[10, 30, 20], [20, 10, 60], [40, 60], [30, 50, 10]]
    assert run.system == "hybrid(bm25+e5)"
    assert run.key == "title_abstract"
    weighted = config(*overrides, f"runs=[{a},{b}]", "weights=[1,5]", "top_k=1", name="hybrid")
    assert read_run(fuse_files(weighted, Console(quiet=True))).retrieved == [[30], [20], [60], [30]]


def test_runs_that_do_not_belong_together_are_refused(run_files, overrides, config):
    a, b, short = run_files

    def fused(*more: str):
        fuse_files(config(*overrides, *more, name="hybrid"), Console(quiet=True))

    with pytest.raises(InputError, match="do not answer the same questions"):
        fused(f"runs=[{a},{short}]")
    with pytest.raises(InputError, match="do not answer the same questions"):
        fused(f"runs=[{short},{a}]")
    with pytest.raises(InputError, match="at least two run files"):
        fused(f"runs=[{a}]")
    with pytest.raises(InputError, match="top_k=0"):
        fused(f"runs=[{a},{b}]", "top_k=0")
    with pytest.raises(InputError, match="give 2 numbers"):
        fused(f"runs=[{a},{b}]", "weights=[1]")
    with pytest.raises(InputError, match="is one of the runs"):
        fused(f"runs=[{a},{b}]", f"out={a}")
