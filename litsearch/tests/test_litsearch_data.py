"""Papers and questions: every format, every configuration, and every mistake that would silently cost a score."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from litsearch.data import Corpus, Paper, check_answers, iter_papers, load_corpus, load_queries
from litsearch.locations import open_benchmark
from litsearch.offline import papers_of, questions_of
from litsearch.own_papers import load_own_papers, split_text
from shared import InputError
from shared.corpus import Document

PAPER = {"corpusid": 1, "title": "T", "abstract": "A", "citations": [2], "full_paper": "F"}
QUERY = {"query_set": "inline_acl", "query": "Which?", "specificity": 1, "quality": 2, "corpusids": [1]}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_papers(tmp_path, corpus, suffix):
    records = [
        {
            "corpusid": p.corpusid,
            "title": p.title,
            "abstract": p.abstract,
            "citations": list(p.citations),
            "full_paper": p.full_paper,
        }
        for p in corpus.papers
    ]
    path = tmp_path / f"papers{suffix}"
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(records) if suffix == ".json" else lines)
    read = load_corpus(path)
    assert read.papers == corpus.papers
    assert read.fingerprint == corpus.fingerprint


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path, jsonl):
    jsonl(tmp_path / "full-00001.jsonl", [PAPER | {"corpusid": 2}])
    jsonl(tmp_path / "full-00000.jsonl", [PAPER])
    assert [paper.corpusid for paper in iter_papers(tmp_path)] == [1, 2]


def test_positions_follow_the_file_and_unknown_ids_are_refused(corpus):
    assert [corpus.position(p.corpusid) for p in corpus.papers] == list(range(6))
    assert 30 in corpus and 31 not in corpus
    with pytest.raises(InputError, match="31 is not in the corpus of 6 papers"):
        corpus.position(31)


def test_the_fingerprint_sees_every_field_and_the_order(corpus):
    papers = corpus.papers
    changed = [
        [*papers[:-1], Paper(60, "A benchmark of poetry questions", "Questions about poems, written by hand.", (40,))],
        [*papers[:-1], Paper(60, papers[-1].title, papers[-1].abstract, papers[-1].citations, "text")],
        papers[::-1],
        papers[:-1],
    ]
    assert len({corpus.fingerprint, *(Corpus(list(some)).fingerprint for some in changed)}) == 5


def test_full_texts_may_stay_in_the_file(tmp_path, jsonl):
    path = jsonl(tmp_path / "corpus.jsonl", [PAPER, PAPER | {"corpusid": 2, "full_paper": ""}])
    light, whole = load_corpus(path, full_papers=False), load_corpus(path)
    assert light.papers[0].full_paper == ""
    assert light.fingerprint == whole.fingerprint
    assert list(light.stream()) == whole.papers
    assert light.facts()["without_full_text"] == whole.facts()["without_full_text"] == 1


def test_empty_papers_and_citations_outside_are_allowed_and_counted(corpus):
    facts = corpus.facts()
    assert (facts["without_text"], facts["citations"], facts["citations_outside"]) == (1, 8, 1)


def test_null_texts_are_empty(tmp_path, jsonl):
    path = jsonl(tmp_path / "c.jsonl", [PAPER | {"abstract": None, "citations": None}])
    assert load_corpus(path).papers[0] == Paper(1, "T", "", (), "F")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpusid": "1"}, r"line 1: corpusid is the text '1'; it must be a whole number \(write it without quotes\)"),
        ({"corpusid": 1.0}, "corpusid is float 1.0"),
        ({"corpusid": True}, "corpusid is the truth value True"),
        ({"title": 3}, "title is int 3; it must be text"),
        ({"citations": "2"}, "citations is the text '2'; it must be a list"),
        ({"citations": ["2"]}, "citations holds the text '2'"),
    ],
)
def test_papers_with_wrong_fields_are_named(tmp_path, jsonl, change, message):
    with pytest.raises(InputError, match=message):
        load_corpus(jsonl(tmp_path / "c.jsonl", [PAPER | change]))


def test_a_missing_field_is_named_with_those_that_are_there(tmp_path, jsonl):
    record = {name: value for name, value in PAPER.items() if name != "abstract"}
    with pytest.raises(InputError, match="no field 'abstract'; it has corpusid, title"):
        load_corpus(jsonl(tmp_path / "c.jsonl", [record]))


def test_a_repeated_corpusid_is_refused_with_both_places(tmp_path, jsonl):
    with pytest.raises(InputError, match="corpusid 1 appears twice, at positions 0 and 2"):
        load_corpus(jsonl(tmp_path / "c.jsonl", [PAPER, PAPER | {"corpusid": 3}, PAPER]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": " "}, "query is empty"),
        ({"query_set": "web_acl"}, "query_set is 'web_acl'; it must start with inline_ or manual_"),
        ({"specificity": 2}, r"specificity is 2; it must be 0 \(broad\) or 1"),
        ({"specificity": "1"}, "specificity is the text '1'"),
        ({"corpusids": 1}, "corpusids is int 1; it must be a list"),
        ({"corpusids": []}, "corpusids is empty"),
        ({"corpusids": [1, 1]}, "repeats an id"),
        ({"quality": None}, "quality is null"),
    ],
)
def test_questions_with_wrong_fields_are_named(tmp_path, jsonl, change, message):
    with pytest.raises(InputError, match=message):
        load_queries(jsonl(tmp_path / "q.jsonl", [QUERY | change]))


def test_a_repeated_question_is_refused(tmp_path, jsonl):
    with pytest.raises(InputError, match="1 questions appear more than once, the first is 'Which\\?'"):
        load_queries(jsonl(tmp_path / "q.jsonl", [QUERY, QUERY | {"quality": 1}]))


def test_answers_outside_the_corpus_are_listed_and_counted(corpus, tmp_path, jsonl):
    path = jsonl(tmp_path / "q.jsonl", [QUERY | {"corpusids": [10, 7, 8]}])
    with pytest.raises(InputError, match=r"2 answers are not in the corpus of 6 papers \(7, 8\)"):
        load_queries(path, corpus)
    with pytest.raises(InputError, match="2 answers"):
        check_answers(load_queries(path), corpus)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"corpusid": 1,\n', "line 1 is not JSON"),
        ("c.jsonl", b"[1]\n", "a record must be an object"),
        ("c.jsonl", b"\xff\n", "line 1 is not"),
        ("c.json", b"{}", "must hold a list"),
        ("c.json", b"{}\n{}\n", "call it .jsonl"),
        ("c.parquet", b"PAR1", "cannot be read as parquet"),
        ("c.csv", b"a,b", "is none of .parquet"),
        ("c.jsonl", b"", "holds no papers"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_corpus(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------- S2ORC


def s2orc(**annotations) -> dict:
    text = "A Title\nAn abstract of it.\nThe body."
    return {"corpusid": 5, "externalids": {}, "content": {"source": {}, "text": text, "annotations": annotations}}


def test_s2orc_texts_are_cut_by_the_first_span_and_citations_come_from_the_bibliography(tmp_path, jsonl):
    bibliography = [
        {"start": 0, "end": 1, "attributes": {"matched_paper_id": 12}},
        {"start": 1, "end": 2, "attributes": {}},
        {"start": 2, "end": 3, "attributes": {"matched_paper_id": "13"}},
        {"start": 3, "end": 4, "attributes": {"matched_paper_id": 12}},
    ]
    record = s2orc(
        title=json.dumps([{"start": 0, "end": 7}, {"start": 8, "end": 10}]),
        abstract=json.dumps([{"start": 8, "end": 26}]),
        bibentry=json.dumps(bibliography),
    )
    paper = load_corpus(jsonl(tmp_path / "s.jsonl", [record])).papers[0]
    assert paper == Paper(5, "A Title", "An abstract of it.", (12, 13), record["content"]["text"])


@pytest.mark.parametrize("title", [None, "", "not json", "[]", '[{"start": 1}]', "3", '[{"start": "x", "end": 2}]'])
def test_s2orc_annotations_that_cannot_be_used_give_empty_texts(tmp_path, jsonl, title):
    paper = load_corpus(jsonl(tmp_path / "s.jsonl", [s2orc(title=title)])).papers[0]
    assert (paper.title, paper.abstract, paper.citations) == ("", "", ())


def test_s2orc_records_without_text_are_refused(tmp_path, jsonl):
    with pytest.raises(InputError, match="content must be an object with the paper's `text`"):
        load_corpus(jsonl(tmp_path / "s.jsonl", [{"corpusid": 5, "content": {"annotations": {}}}]))


# ---------------------------------------------------------------------------------------------------- one's own papers


def test_own_papers_from_json_lines_need_no_ids(tmp_path, jsonl):
    records = [{"title": "One", "abstract": "First."}, {"text": "Two\n\nAbstract\nSecond.\n1 Introduction\nBody."}]
    corpus = load_own_papers(jsonl(tmp_path / "mine.jsonl", records))
    assert [(p.corpusid, p.title, p.abstract) for p in corpus.papers] == [(0, "One", "First."), (1, "Two", "Second.")]


def test_own_papers_from_a_folder_of_texts(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("# A heading\n" + "word " * 300)
    (tmp_path / "a.md").write_text("Title\nAbstract: It is short.\n\n1. Introduction\nMore.")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    corpus = load_own_papers(tmp_path)
    assert [p.source for p in corpus.papers] == ["a.md", "b/x.txt"]
    assert corpus.papers[0].abstract == "It is short."
    assert corpus.papers[1].title == "A heading" and len(corpus.papers[1].abstract.split()) == 200


def test_an_abstract_without_an_introduction_is_cut_at_200_words():
    title, abstract = split_text("T\nABSTRACT\n" + "w " * 900)
    assert title == "T" and abstract.split() == ["w"] * 200


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"title": " "}], "there is no text"),
        ([{"title": "a", "corpusid": 1}, {"title": "b"}], "some records have a corpusid and some have none"),
        ([{"title": "a", "corpusid": 1}, {"title": "b", "corpusid": 1}], "appears twice"),
    ],
)
def test_own_papers_that_cannot_be_used_are_refused(tmp_path, jsonl, records, message):
    with pytest.raises(InputError, match=message):
        load_own_papers(jsonl(tmp_path / "mine.jsonl", records))


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no file that ends in \.txt"):
        load_own_papers(tmp_path)


# --------------------------------------------------------------------------------------------------------- benchmarks


def document(title: str, summary: str, text: str, kind: str = "docstring") -> Document:
    return Document(text, title, summary, "", kind, "package")


def test_offline_questions_are_summaries_and_citations_are_references():
    found = [
        document("p.m.sort", "Sort the items of a list.", "See `p.m.merge` and :func:`other`.\n\nMore."),
        document("p.m.merge", "Merge two lists that are sorted.", "It is linear.\n\nSee also: sort\n"),
        document("p.n.other", "Sort the items of a list.", "Another way."),
        document("q", "A package for all kinds of lists.", "Text.", "description"),
        document("r", "Too short.", "Text."),
    ]
    papers, queries = papers_of(found), questions_of(found)
    assert [paper.citations for paper in papers[:3]] == [(1, 2), (0,), ()]
    assert papers[0].abstract == "See `p.m.merge` and :func:`other`."
    broad, description, specific = queries
    assert (broad.breadth, broad.corpusids, broad.group) == ("broad", (0, 2), "inline")
    assert (description.breadth, description.group) == ("specific", "author")
    assert specific.corpusids == (1,)


def test_files_are_opened_by_the_data_group(corpus_file, query_file, config):
    cfg = config("data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}")
    benchmark = open_benchmark(cfg.data)
    assert (benchmark.name, len(benchmark.corpus), len(benchmark.queries)) == ("files", 6, 4)
    with pytest.raises(InputError, match=r"data\.queries is missing"):
        open_benchmark({"source": "files", "corpus": corpus_file})


def test_the_release_names_how_to_get_it_where_it_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="make mirror-litsearch"):
        open_benchmark({"source": "release"})


@pytest.mark.mirror
def test_the_real_small_corpus_is_as_described(mini_corpus, mini_queries):
    assert len(mini_corpus) == 7636
    assert [sum(q.specificity == s for q in mini_queries) for s in (0, 1)] == [45, 91]
    assert {q.group for q in mini_queries} == {"inline"}
