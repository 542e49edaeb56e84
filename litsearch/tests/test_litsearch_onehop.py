"""Expansion of candidates by what they cite."""

import pytest
from rich.console import Console

from litsearch.data import Corpus, Paper, Query
from litsearch.onehop import expand, expand_run, onehop
from litsearch.runs import Run, RunRecord, read_run, run_metadata, write_run
from shared import InputError

QUERY = Query("inline_acl", "Which papers?", 1, 2, (7,))


def corpus_of(citations: dict[int, list[int]], ids=range(1000)) -> Corpus:
    return Corpus([Paper(i, f"title {i}", "", tuple(citations.get(i, ()))) for i in ids])


def test_citations_join_in_rank_order_without_repetition():
    corpus = corpus_of({3: [9, 1, 8, 9], 1: [8, 7]})
    found = expand([3, 1, 2], corpus, cutoff_count=2, total_count=100)
    assert found.retrieved == [3, 1, 9, 8, 7]  # 2 is beyond the cutoff; 1 and 8 are there already
    assert (found.added, found.outside) == (3, 0)


def test_expansion_stops_after_the_paper_that_fills_the_list_and_cuts_there():
    corpus = corpus_of({0: [10, 11, 12], 1: [20, 21, 22], 2: [30]})
    assert expand([0, 1, 2], corpus, 3, 6).retrieved == [0, 1, 2, 10, 11, 12]
    assert expand([0, 1, 2], corpus, 3, 7).retrieved == [0, 1, 2, 10, 11, 12, 20]
    assert expand([0, 1, 2], corpus, 3, 9).retrieved == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert expand([0, 1, 2], corpus, 3, 10).retrieved == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30]


def test_the_defaults_are_fifty_papers_and_two_hundred_candidates():
    corpus = corpus_of({i: [100 + 5 * i + j for j in range(5)] for i in range(60)})
    found = expand(range(60), corpus)
    assert found.retrieved[:50] == list(range(50))
    assert found.retrieved[50:] == list(range(100, 250))
    assert len(found.retrieved) == 200


def test_citations_outside_of_the_corpus_are_left_out_and_counted():
    corpus = corpus_of({0: [5000, 1, 5001, 5000]}, range(10))
    found = expand([0], corpus, 1, 2)
    assert (found.retrieved, found.outside) == ([0, 1], 2)


@pytest.mark.parametrize(
    ("cutoff", "total", "said"),
    [
        (0, 10, "cutoff_count=0"),
        (10, 0, "total_count=0"),
        (True, 10, "cutoff_count=True"),
        (20, 10, "nothing could be added"),
    ],
)
def test_counts_that_cannot_work_are_refused(cutoff, total, said):
    with pytest.raises(InputError, match=said):
        expand([0], corpus_of({}), cutoff, total)


def test_a_run_keeps_what_came_in_and_says_what_was_done():
    corpus = corpus_of({0: [1, 2], 5: [6, 9999]})
    run = Run([RunRecord(QUERY, [0, 5, 4], [3.0, 2.0, 1.0])], run_metadata(corpus, [QUERY], stages=["bm25"]))
    new = expand_run(run, corpus, 2, 100)
    [record] = new.records
    assert record.retrieved == [0, 5, 1, 2, 6]
    assert record.extra["original_retrieved"] == [0, 5, 4]
    assert record.scores is None
    assert new.metadata["stages"] == ["bm25", "onehop"]
    assert {k: v for k, v in new.metadata["onehop"].items() if k != "input"} == {
        "cutoff_count": 2, "total_count": 100, "added": 3, "outside": 1,
    }  # fmt: skip


@pytest.fixture
def overrides(tmp_path, corpus, queries, corpus_file, query_file):
    """Command line of a run of the four questions over the six papers of conftest."""
    found = [[30, 10, 20], [20, 40, 10], [60, 10, 20], [10, 60, 40]]
    records = [RunRecord(query, retrieved) for query, retrieved in zip(queries, found, strict=True)]
    write_run(tmp_path / "first.jsonl", Run(records, run_metadata(corpus, queries, stages=["bm25"], key="full_paper")))
    data = ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}"]
    return [*data, f"run={tmp_path / 'first.jsonl'}", f"output_dir={tmp_path / 'out'}"]


def test_from_the_command_line_a_new_run_is_written_and_its_ceiling_reported(overrides, config, capsys):
    out = onehop(config(*overrides, "cutoff_count=1", name="onehop"), Console(soft_wrap=True))
    run = read_run(out)
    assert out.name == "first.onehop.jsonl"
    assert run.retrieved == [[30, 10, 20, 50], [20], [60, 40], [10, 30, 40]]
    assert run.system == "bm25+onehop"
    printed = capsys.readouterr().out
    assert "6 citations joined 4 questions (1 to 4 candidates each); 1 lead out of the corpus" in printed
    assert "37.5% of the first 1, 100.0% after expansion, 50.0% of all that were retrieved" in printed


def test_a_result_of_another_run_is_not_overwritten(overrides, config, tmp_path):
    onehop(config(*overrides, name="onehop"))
    onehop(config(*overrides, "cutoff_count=1", name="onehop"))  # the same input: made anew
    other = read_run(tmp_path / "first.jsonl")
    other.records[0].retrieved.reverse()
    write_run(tmp_path / "first.jsonl", other)
    with pytest.raises(InputError, match="was made from another run"):
        onehop(config(*overrides, name="onehop"))


def test_a_run_of_another_corpus_is_refused(overrides, config, corpus_file):
    corpus_file.write_text(corpus_file.read_text().replace("Translating", "Reciting"))
    with pytest.raises(InputError, match="was made with another corpus"):
        onehop(config(*overrides, name="onehop"))


def test_a_run_that_does_not_exist_or_holds_pairs_is_refused(overrides, config, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl does not exist"):
        onehop(config(*overrides, "run=nowhere.jsonl", name="onehop"))
    line = (tmp_path / "first.jsonl").read_text().replace("[30, 10, 20]", "[[30, 1], [10, 2]]")
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"a \(paper, paragraph\) pair"):
        onehop(config(*overrides, f"run={tmp_path / 'pairs.jsonl'}", name="onehop"))
