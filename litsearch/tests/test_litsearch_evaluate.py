"""From runs to the paper's table: groups, averages over questions, intervals, tests, and the paper's own values."""

import csv
import json

import numpy as np
import pytest

from litsearch import scoring, tables
from litsearch.data import Query
from litsearch.evaluate import evaluate, main, read_runs, score
from litsearch.locations import Benchmark
from litsearch.runs import Run, RunRecord, run_metadata, write_run
from shared import InputError
from shared.paper import load_paper

GROUP_SIZES = {"inline_broad": 120, "inline_specific": 231, "author_broad": 35, "author_specific": 211}


@pytest.fixture
def whole_benchmark():
    """597 questions in the released sets' sizes, each with the answer 1."""
    sizes = [("inline_acl", 0, 32), ("inline_acl", 1, 66), ("inline_nonacl", 0, 88), ("inline_nonacl", 1, 165)]
    sizes += [("manual_acl", 0, 25), ("manual_acl", 1, 130), ("manual_iclr", 0, 10), ("manual_iclr", 1, 81)]
    return [
        Query(query_set, f"{query_set} {specificity} {i}?", specificity, 1 + i % 2, (1,))
        for query_set, specificity, count in sizes
        for i in range(count)
    ]


def run_with_recalls(queries, found: dict[str, float], **metadata) -> Run:
    """A run in which the given part of each group's questions has its answer at rank 1, the others none."""
    records, seen = [], dict.fromkeys(found, 0)
    for query in queries:
        group = f"{query.group}_{query.breadth}"
        seen[group] += 1
        hit = seen[group] <= round(found[group] * GROUP_SIZES[group])
        records.append(RunRecord(query, [1 if hit else 2, *range(10, 120)]))
    return Run(records, {"key": "title_abstract", "stages": ["bm25"], **metadata})


@pytest.fixture
def run_files(tmp_path, corpus, queries):
    """Two runs over the six papers: good.jsonl and poor.jsonl."""
    lists = {
        "good": [[10, 30], [20, 10], [40, 20], [30, 10]],
        "poor": [[20, 10], [10, 20], [20, 40], [10, 20]],
    }
    paths = {}
    for name, found in lists.items():
        records = [RunRecord(query, row) for query, row in zip(queries, found, strict=True)]
        metadata = run_metadata(corpus, queries, key="title_abstract", stages=[name], top_k=2)
        paths[name] = write_run(tmp_path / f"{name}.jsonl", Run(records, metadata))
    return paths


def test_groups_have_the_papers_sizes_and_averages_are_over_questions(whole_benchmark):
    groups = scoring.question_groups(whole_benchmark)
    assert {name: len(groups[name]) for name in GROUP_SIZES} == GROUP_SIZES
    assert (len(groups["avg_broad"]), len(groups["avg_specific"]), len(groups["all"])) == (155, 442, 597)
    found = {"inline_broad": 0.5, "author_broad": 0.2, "inline_specific": 1.0, "author_specific": 0.0}
    runs = {"bm25": run_with_recalls(whole_benchmark, found)}
    row = evaluate(runs, score(runs), resamples=0)["runs"]["bm25"]
    assert row["avg_broad"]["R@20"] == pytest.approx(100 * (60 + 7) / 155)
    assert row["avg_specific"]["R@5"] == pytest.approx(100 * 231 / 442)
    assert row["inline_acl_broad"]["n"] == 32 and row["quality_1_broad"]["n"] + row["quality_2_broad"]["n"] == 155


def test_the_papers_averages_follow_from_its_columns():
    """Its table is consistent with averages over questions: what the table stores agrees with its own columns."""
    cells = {(c.row, c.key): c.paper for c in load_paper("litsearch").cells("table3")}
    for row in {row for row, _ in cells}:
        for breadth, metric, weights in (
            ("broad", "R@20", (120, 35)),
            ("specific", "R@5", (231, 211)),
            ("specific", "R@20", (231, 211)),
        ):
            columns = [cells[row, f"{group}_{breadth}.{metric}"] for group in ("inline", "author")]
            mean = np.average(columns, weights=weights)
            assert cells[row, f"avg_{breadth}.{metric}"] == pytest.approx(mean, abs=0.11)


def test_paper_values_and_differences_stand_beside_a_whole_run(whole_benchmark):
    run = run_with_recalls(whole_benchmark, dict.fromkeys(GROUP_SIZES, 0.4))
    runs = {"bm25": run}
    printed = tables.paper_values(load_paper("litsearch"), run)
    ours = tables.our_row("bm25", evaluate(runs, score(runs), resamples=0)["runs"]["bm25"])
    rows = tables.rows_with_paper(ours, printed, differences=True)
    assert [row.kind for row in rows] == ["ours", "paper", "difference"]
    assert [rows[1].values[column] for column in scoring.COLUMNS] == [
        37.4,
        38.5,
        55.8,
        48.6,
        62.6,
        73.5,
        39.9,
        50,
        64.2,
    ]
    assert rows[2].values["inline_broad", "R@20"] == pytest.approx(40 - 37.4)
    assert [row.kind for row in tables.rows_with_paper(ours, printed, differences=False)] == ["ours", "paper"]


@pytest.mark.parametrize(
    ("stages", "row"),
    [
        (["grit"], "grit"),
        (["bm25", "rerank:gpt-4o"], "bm25_rerank"),
        (["grit", "onehop", "rerank:gpt-4o"], "grit_onehop"),
        ([], None),
    ],
)
def test_a_run_is_matched_with_the_papers_row_by_its_stages(stages, row):
    assert tables.paper_row(Run([], {"stages": stages})) == row


def test_full_paper_runs_are_laid_beside_table_5():
    printed = tables.paper_values(load_paper("litsearch"), Run([], {"stages": ["bm25"], "key": "full_paper"}))
    assert printed == {("inline_specific", "R@5"): 23.8, ("author_specific", "R@5"): 71.6}


def test_intervals_are_repeatable_and_hold_the_mean(whole_benchmark):
    runs = {"bm25": run_with_recalls(whole_benchmark, dict.fromkeys(GROUP_SIZES, 0.4))}
    scores = score(runs)
    first, second = (evaluate(runs, scores, seed=0)["runs"]["bm25"] for _ in range(2))
    assert first == second
    low, high = first["author_broad"]["intervals"]["R@20"]
    assert low < 40 < high and 25 < high - low < 40  # 35 questions: a standard error of 8 points


def test_runs_are_compared_question_by_question(whole_benchmark):
    runs = {
        "better": run_with_recalls(whole_benchmark, dict.fromkeys(GROUP_SIZES, 0.6)),
        "worse": run_with_recalls(whole_benchmark, dict.fromkeys(GROUP_SIZES, 0.4)),
        "same": run_with_recalls(whole_benchmark, dict.fromkeys(GROUP_SIZES, 0.4)),
    }
    tests = {(t["first"], t["second"], t["group"], t["metric"]): t for t in evaluate(runs, score(runs))["paired"]}
    assert len(tests) == 9
    clear = tests["better", "worse", "avg_specific", "R@5"]
    assert clear["difference"] == pytest.approx(20, abs=0.5) and clear["p_holm"] < 0.01
    assert clear["low"] < clear["difference"] < clear["high"]
    none = tests["worse", "same", "avg_broad", "R@20"]
    assert (none["difference"], none["p_randomization"], none["p_holm"]) == (0, 1, 1)


def test_answers_are_counted_by_rank(queries):
    lists = [[10, 1, 2, 3, 4, 30], [1], [*range(100, 300), 40], [30]]
    counts = scoring.rank_histogram(Run([RunRecord(q, found) for q, found in zip(queries, lists, strict=True)]))
    assert counts["1"] == 2 and counts["6-10"] == 1 and counts["over 200"] == 1 and counts["not found"] == 1
    assert sum(counts.values()) == 5


def test_short_lists_are_scored_with_a_warning(queries, caplog):
    runs = {"short": Run([RunRecord(query, [10]) for query in queries])}
    assert score(runs)["short"]["R@20"].tolist() == [50, 0, 0, 0]
    assert "4 questions have fewer than 100 retrieved papers" in caplog.text


@pytest.mark.parametrize("recalls", [[0], [-5], [True], [2.5]])
def test_a_recall_below_one_is_refused(recalls):
    with pytest.raises(InputError, match="recalls holds"):
        scoring.metric_functions(recalls)


# ---------------------------------------------------------------------------------------------------------- run files


def test_runs_are_labelled_by_what_made_them(run_files):
    assert list(read_runs(list(run_files.values()), None, {})) == ["good", "poor"]
    assert list(read_runs(list(run_files.values()), None, {"poor.jsonl": "baseline"})) == ["good", "baseline"]


def test_runs_in_another_order_are_aligned(run_files):
    lines = run_files["poor"].read_text().splitlines()
    run_files["poor"].write_text("\n".join(lines[::-1]) + "\n")
    run_files["poor"].with_name("poor.meta.json").unlink()
    runs = read_runs(list(run_files.values()), None, {})
    assert runs["poor"].queries == runs["good"].queries


def test_runs_of_other_questions_corpora_or_the_same_file_are_refused(run_files, corpus, queries, tmp_path):
    good = run_files["good"]
    partial = Run([RunRecord(query, [10]) for query in queries[:3]], {"stages": ["partial"]})
    with pytest.raises(InputError, match="partial and good differ in 1 questions"):
        read_runs([good, write_run(tmp_path / "partial.jsonl", partial)], None, {})
    other = Run([RunRecord(query, [10]) for query in queries], {"stages": ["other"], "corpus": "0" * 64})
    with pytest.raises(InputError, match="other was made with another corpus than good"):
        read_runs([good, write_run(tmp_path / "other.jsonl", other)], None, {})
    with pytest.raises(InputError, match="is given twice"):
        read_runs([good] * 5, None, {})
    with pytest.raises(InputError, match="'x' is given to two runs"):
        read_runs(list(run_files.values()), None, {"good.jsonl": "x", "poor.jsonl": "x"})


def test_a_partial_run_of_a_benchmark_needs_to_be_asked_for(corpus, queries, tmp_path):
    benchmark = Benchmark("six", corpus, queries)
    metadata = run_metadata(corpus, queries, stages=["partial"])
    path = write_run(tmp_path / "p.jsonl", Run([RunRecord(query, [10]) for query in queries[:3]], metadata))
    with pytest.raises(InputError, match="answers 3 of the 4 questions"):
        read_runs([path], benchmark, {})
    assert len(read_runs([path], benchmark, {}, allow_partial=True)["partial"]) == 3


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_the_table_in_every_form(run_files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    runs = ",".join(map(str, run_files.values()))
    monkeypatch.setattr("sys.argv", ["evaluate", f"runs=[{runs}]", f"output_dir={out}", "resamples=200"])
    main()
    shown = capsys.readouterr().out
    assert "good" in shown and "poor" in shown and "results.json" in shown
    result = json.loads((out / "results.json").read_text())
    assert result["metrics"]["runs"]["good"]["avg_specific"]["R@5"] == 100
    assert result["metrics"]["runs"]["good"]["inline_broad"]["intervals"]["R@20"] == [100, 100]
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["good", "poor"]
    assert rows[1]["inline_broad.R@20"] == "50.0" and rows[1]["inline_broad.R@20 low"] == "50.0"
    table = json.loads((out / "table.json").read_text())
    assert list(table[0]["values"]) == [f"{group}.{metric}" for group, metric in scoring.COLUMNS]
    assert "| good | 100.0 [100.0, 100.0] |" in (out / "table.md").read_text()
    with (out / "questions.csv").open() as file:
        questions = list(csv.DictReader(file))
    assert len(questions) == 8 and questions[0]["ranks"] == "1 2" and questions[4]["ranks"] == "2 -"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[]"], "give one or more run files"),
        (["runs=[nowhere.jsonl]"], "nowhere.jsonl does not exist"),
        (["compare=sometimes"], "compare='sometimes'"),
        (["resamples=-1"], "resamples=-1"),
        (["recalls=[0]"], "recalls holds 0"),
        (["runs=[x.trec]"], "is a TREC run"),
    ],
)
def test_the_command_refuses_bad_input_with_status_2(run_files, monkeypatch, capsys, words, message):
    monkeypatch.setattr("sys.argv", ["evaluate", f"runs=[{run_files['good']}]", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_every_data_and_retriever_configuration_composes(config):
    for data in ("auto", "mini", "full", "s2orc", "offline"):
        assert config(f"data={data}").data.source
    for retriever in ("bm25", "tfidf", "lsa", "random"):
        assert config(f"retriever={retriever}").retriever.name == retriever
    assert config("scale=paper").data.source == "release"
    assert config("runs=[a]", name="evaluate").get("data") is None


@pytest.mark.mirror
def test_the_real_questions_fall_into_the_inline_columns(mini_queries):
    groups = scoring.question_groups(mini_queries)
    assert (len(groups["inline_broad"]), len(groups["inline_specific"])) == (45, 91)
    assert "author_broad" not in groups
