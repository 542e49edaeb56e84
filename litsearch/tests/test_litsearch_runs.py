"""Run files: written, read back, exchanged with TREC's tools, and refused where they are not what they seem."""

import json

import pytest

from litsearch.keys import Keys
from litsearch.locations import Benchmark
from litsearch.retrieve import check_top_k, main, retrieve
from litsearch.retrievers import make_retriever
from litsearch.runs import (
    Run,
    RunRecord,
    metadata_path,
    read_metadata,
    read_run,
    read_trec,
    run_metadata,
    write_qrels,
    write_run,
    write_trec,
)
from shared import InputError


@pytest.fixture
def made(corpus, queries):
    lists = [[10, 30, 20], [20, 10, 30], [40, 60, 50], [60, 10]]
    records = [
        RunRecord(query, found, [3.0, 2.0, 1.0][: len(found)]) for query, found in zip(queries, lists, strict=True)
    ]
    return Run(records, run_metadata(corpus, queries, key="title_abstract", stages=["bm25"], top_k=3))


def edited(path, line: int, **changes):
    """Change fields of one line of a run file, and let its metadata fit it."""
    lines = path.read_text().splitlines()
    record = json.loads(lines[line]) | changes
    lines[line] = json.dumps({name: value for name, value in record.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")
    metadata_path(path).unlink(missing_ok=True)
    return path


def test_a_run_is_read_back_as_it_was_written(tmp_path, made, corpus, queries):
    made.records[0].extra["original_retrieved"] = [20]
    read = read_run(write_run(tmp_path / "r.jsonl", made), queries, corpus, key="title_abstract")
    assert read.records == made.records
    assert read.metadata == made.metadata
    assert (read.system, read.key) == ("bm25", "title_abstract")


def test_the_lines_are_the_releases_records(tmp_path, made):
    line = json.loads(write_run(tmp_path / "r.jsonl", made).read_text().splitlines()[0])
    assert list(line)[:6] == ["query_set", "query", "specificity", "quality", "corpusids", "retrieved"]
    assert line["retrieved"] == [10, 30, 20]


def test_a_run_of_the_release_is_read_without_metadata(tmp_path, made, caplog):
    path = write_run(tmp_path / "LitSearch.title_abstract.bm25.jsonl", made)
    metadata_path(path).unlink()
    run = read_run(path)
    assert (run.key, run.system) == ("title_abstract", "bm25")
    assert "nothing shows which corpus" in caplog.text


def test_a_run_that_was_edited_is_refused(tmp_path, made):
    path = write_run(tmp_path / "r.jsonl", made)
    path.write_text(path.read_text().replace("[10, 30, 20]", "[30, 10, 20]"))
    with pytest.raises(InputError, match=r"is not the file that r\.meta\.json describes"):
        read_run(path)


def test_a_run_of_another_corpus_or_key_is_refused(tmp_path, made, corpus):
    path = write_run(tmp_path / "r.jsonl", made)
    corpus.papers.pop()
    with pytest.raises(InputError, match=r"made with another corpus \(6 papers, .*than this one \(5 papers"):
        read_run(path, corpus=type(corpus)(corpus.papers))
    with pytest.raises(InputError, match="made with key=title_abstract, not key=full_paper"):
        read_run(path, key="full_paper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "Who?"}, "line 2: the question 'Who\\?' is not among the 4 questions"),
        ({"query": "Which papers rank papers for researchers?"}, "line 2: the question of .*line 1 appears again"),
        ({"corpusids": [30]}, "line 2: set, specificity, quality or answers differ"),
        ({"retrieved": [10, 20, 10]}, "line 2: retrieved holds 10 more than once"),
        ({"retrieved": [[10, 3]]}, r"line 2: retrieved holds \[10, 3\], a \(paper, paragraph\) pair"),
        ({"retrieved": ["10"]}, "line 2: retrieved holds '10'; corpusids are whole numbers"),
        ({"retrieved": [10, 77]}, "line 2: retrieved holds 1 ids outside the corpus, the first 77"),
        ({"retrieved": 10}, "retrieved must be a list"),
        ({"retrieved": ...}, "there is no field 'retrieved'"),
        ({"scores": [1.0]}, "scores must be a list of 3 numbers"),
        ({"specificity": 3}, "specificity is 3"),
        ({"query_set": "acl"}, "query_set is 'acl'"),
    ],
)
def test_lines_that_cannot_be_scored_are_named(tmp_path, made, corpus, queries, changes, message):
    path = edited(write_run(tmp_path / "r.jsonl", made), 1, **changes)
    with pytest.raises(InputError, match=message):
        read_run(path, queries, corpus)


def test_missing_and_empty_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_run(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_run(tmp_path / "r.jsonl")


def test_a_kill_between_run_and_metadata_leaves_no_wrong_metadata(tmp_path, made, monkeypatch):
    path = write_run(tmp_path / "r.jsonl", made)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("litsearch.runs.write_metadata", killed)
    made.records.pop()
    with pytest.raises(KeyboardInterrupt):
        write_run(path, made)
    assert len(read_run(path)) == 3 and "stages" not in read_metadata(path)


# --------------------------------------------------------------------------------------------------------------- TREC


def test_trec_files_come_back_as_the_same_run(tmp_path, made, corpus, queries):
    path = write_trec(tmp_path / "r.trec", made)
    assert path.read_text().splitlines()[0] == "0 Q0 10 1 3.0 bm25"
    read = read_trec(path, queries, corpus)
    assert (read.retrieved, read.queries, read.system) == (made.retrieved, made.queries, "bm25")


def test_ties_in_scores_keep_the_runs_order_in_trec_files(tmp_path, made, queries):
    made.records[0].scores = [1.0, 1.0, 0.5]
    assert read_trec(write_trec(tmp_path / "r.trec", made), queries).retrieved == made.retrieved


def test_a_trec_run_is_ranked_by_score(tmp_path, queries):
    path = tmp_path / "x.trec"
    path.write_text("1 Q0 20 1 0.5 x\n1 Q0 30 2 2.5 x\n\n0 Q0 10 7 1e-3 x\n")
    run = read_trec(path, queries)
    assert run.retrieved == [[10], [30, 20]] and run.queries == queries[:2]


def test_qrels_list_every_answer(tmp_path, queries):
    lines = write_qrels(tmp_path / "x.qrels", queries).read_text().splitlines()
    assert lines == ["0 0 10 1", "0 0 30 1", "1 0 20 1", "2 0 40 1", "3 0 30 1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 Q0 10 1 0.5", "line 1: expected `qid Q0 corpusid"),
        ("0 Q0 ten 1 0.5 x", "line 1: expected"),
        ("9 Q0 10 1 0.5 x", "question id 9 is not a position among the 4"),
        ("0 Q0 10 1 0.5 x\n0 Q0 10 2 0.4 x", "holds 10 more than once"),
        ("0 Q0 11 1 0.5 x", "11 is not in the corpus"),
        ("", "is empty"),
    ],
)
def test_trec_lines_that_cannot_be_used_are_named(tmp_path, corpus, queries, line, message):
    (tmp_path / "x.trec").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_trec(tmp_path / "x.trec", queries, corpus)


# ----------------------------------------------------------------------------------------------------------- retrieving


def test_retrieving_gives_a_run_that_can_be_checked(corpus, queries):
    run = retrieve(Benchmark("six", corpus, queries), make_retriever({"name": "bm25"}), top_k=4)
    assert [record.retrieved[0] for record in run] == [10, 20, 40, 30]
    assert all(len(record.retrieved) == len(record.scores) == 4 for record in run)
    assert run.metadata["corpus"] == corpus.fingerprint
    assert (run.metadata["stages"], run.metadata["key"], run.metadata["data"]) == (["bm25"], "title_abstract", "six")


def test_a_saved_index_gives_the_same_run_and_one_of_another_corpus_is_refused(tmp_path, corpus, queries):
    benchmark = Benchmark("six", corpus, queries)
    retriever = make_retriever({"name": "bm25"})
    retriever.index(Keys(corpus.papers))
    retriever.save(tmp_path / "index", {"corpus": corpus.fingerprint, "dedup_keys": False})
    fresh = make_retriever({"name": "bm25"})
    with_index = retrieve(benchmark, fresh, top_k=3, index=tmp_path / "index")
    assert with_index.retrieved == retrieve(benchmark, retriever, top_k=3).retrieved
    with pytest.raises(InputError, match="dedup_keys=True is asked for"):
        retrieve(benchmark, fresh, top_k=3, dedup_keys=True, index=tmp_path / "index")
    smaller = Benchmark("five", type(corpus)(corpus.papers[:5]), queries)
    with pytest.raises(InputError, match="was made with corpus="):
        retrieve(smaller, fresh, top_k=3, index=tmp_path / "index")


def test_collapsed_keys_retrieve_the_last_of_identical_papers(corpus, queries):
    twin = type(corpus.papers[0])(70, corpus.papers[1].title, corpus.papers[1].abstract)
    benchmark = Benchmark("seven", type(corpus)([*corpus.papers, twin]), queries)
    plain = retrieve(benchmark, make_retriever({"name": "bm25"}), top_k=3)
    collapsed = retrieve(benchmark, make_retriever({"name": "bm25"}), top_k=3, dedup_keys=True)
    assert plain.retrieved[1][:2] == [20, 70]
    assert collapsed.retrieved[1][0] == 70 and 20 not in collapsed.retrieved[1]


@pytest.mark.parametrize(("top_k", "papers"), [(0, None), (True, None), (2.0, None), (7, 6)])
def test_top_k_outside_the_corpus_is_refused(top_k, papers):
    with pytest.raises(InputError, match=f"top_k={top_k}"):
        check_top_k(top_k, papers)


def test_the_command_writes_run_and_trec_files(tmp_path, monkeypatch, capsys, corpus_file, query_file):
    words = ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}", "data.name=six", "top_k=6"]
    words += ["retriever.processes=1", "retriever.cache=false", "trec=true", f"output_dir={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["retrieve", *words])
    main()
    path = tmp_path / "out" / "six.title_abstract.bm25.jsonl"
    assert str(path) in capsys.readouterr().out
    run = read_run(path)
    assert len(run) == 4 and run.metadata["top_k"] == 6
    assert read_trec(path.with_suffix(".trec"), run.queries).retrieved == run.retrieved
    assert (tmp_path / "out" / "six.qrels").is_file()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("top_k=0", "top_k=0: give a whole number"),
        ("top_k=7", "top_k=7 is more than the corpus has papers \\(6\\)"),
        ("key=paragraphs", "the papers have no full text"),
        ("retriever.k1=-1", "k1=-1"),
        ("retriever.kind=nothing", "retriever.kind='nothing'"),
        ("topk=3", "Did you mean top_k"),
    ],
)
def test_the_command_refuses_bad_input_with_status_2(monkeypatch, capsys, corpus_file, query_file, word, message):
    words = [
        "data=files",
        f"data.corpus={corpus_file}",
        f"data.queries={query_file}",
        "top_k=6",
        "retriever.cache=false",
    ]
    monkeypatch.setattr("sys.argv", ["retrieve", *words, word])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    import re

    assert re.search(message, capsys.readouterr().err)
