"""Gathering of trials into numbers, and the paper's tables made of them."""

import csv
import io
import json
import subprocess
import sys

import pytest

from lm_bff.label_words import check_mapping
from lm_bff.store import Store
from lm_bff.tables import (
    Scores,
    as_csv,
    as_markdown,
    as_metrics,
    build,
    choose,
    gather,
    matching,
    missing_points,
    paper_value,
    read_specification,
)
from lm_bff.tasks import TASKS
from lm_bff.template import parse
from shared import InputError
from shared.claims import find_metric
from shared.paper import load_paper

SEEDS = (13, 21, 42, 87, 100)
F1 = (0.9727, 0.8302, 0.0832, 0.0160, 0.9687)
ACC = (0.7148, 0.4168, 0.7330, 0.5433, 0.8075)
GRID = {"batch_size": [2, 8], "lr": [1e-5, 2e-5]}


def trial(seed=13, dev=0.5, test=0.5, batch_size=8, lr=1e-5, task="sst-2", method="prompt", metric="acc", **more):
    """A record of the store; `test` is a number, or scores by test set and metric."""
    settings = {"batch_size": batch_size, "lr": lr, "template": None, "mapping": None, "max_steps": 10, "eval_every": 5}
    settings |= more.pop("settings", {})
    tests = test if isinstance(test, dict) else {task: {metric: test}}
    base = {
        "task": task,
        "method": method,
        "k": 16,
        "seed": seed,
        "model": "m",
        "compat": "authors",
        "splits": "k-shot",
    }
    base |= {"use_dev": True, "experiment": None, "metric": metric, "dev": {} if dev is None else {metric: dev}}
    key = f"{task}-{method}-{seed}-{batch_size}-{lr}-{settings}-{more}"
    return {**base, "key": key, "settings": settings, "test": tests, **more}


def grid_of(seed, winner, **more):
    """A whole grid of trials, of which the one with the best dev score has the test scores `winner`."""
    points = [(b, lr) for b in GRID["batch_size"] for lr in GRID["lr"]]
    trials = [trial(seed, 0.1 * n, 0.0, b, lr, **more) for n, (b, lr) in enumerate(points)]
    trials[2]["dev"] = {trials[2]["metric"]: 0.9}
    trials[2]["test"] = winner
    return trials


def test_five_selected_scores_give_the_published_arithmetic():
    records = []
    for seed, f1, acc in zip(SEEDS, F1, ACC, strict=True):
        records += grid_of(seed, {"mrpc": {"f1": f1, "acc": acc}}, task="mrpc", metric="f1")
    assert gather(records, "mrpc").text(median=True) == "57.4 (43.2) (median 83.0)"
    assert gather(records, "mrpc", "acc").text(median=True) == "64.3 (14.2) (median 71.5)"


def test_the_deviation_is_that_of_the_population():
    records = [trial(seed, test=value) for seed, value in ((13, 0.5), (21, 0.7))]
    assert gather(records).std == pytest.approx(0.1)


def test_equal_dev_scores_go_to_the_trial_that_stands_first():
    records = [trial(dev=0.7, test=0.1, lr=1e-5), trial(dev=0.7, test=0.9, lr=2e-5), trial(dev=0.6, test=0.8, lr=5e-5)]
    assert choose(records)[13]["test"]["sst-2"]["acc"] == 0.1
    assert choose(records[::-1])[13]["test"]["sst-2"]["acc"] == 0.9


def test_mismatched_mnli_is_measured_on_the_trial_that_matched_dev_chose():
    better_there = trial(dev=0.5, test={"mnli": {"acc": 0.5}, "mnli-mm": {"acc": 0.9}}, task="mnli")
    chosen = trial(dev=0.6, test={"mnli": {"acc": 0.6}, "mnli-mm": {"acc": 0.4}}, task="mnli", lr=2e-5)
    assert gather([better_there, chosen], "mnli-mm").mean == 0.4


def test_several_trials_without_a_dev_score_are_refused():
    with pytest.raises(InputError, match="no dev score to choose"):
        choose([trial(dev=None), trial(dev=None, lr=2e-5)])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model": "other"}, "different model"), ({"settings": {"max_steps": 20}}, "settings.max_steps")],
)
def test_trials_that_do_not_belong_together_are_not_averaged(change, named):
    with pytest.raises(InputError, match=named):
        gather([trial(13), trial(21, **change)])


def test_nothing_to_gather_and_a_score_that_was_not_measured_are_refused():
    with pytest.raises(InputError, match="no trials"):
        gather([])
    with pytest.raises(InputError, match="no mcc on sst-2"):
        gather([trial()], metric="mcc")


def test_missing_grid_points_are_named():
    records = [one for seed in SEEDS for one in grid_of(seed, {"sst-2": {"acc": 0.9}})]
    assert missing_points(records, SEEDS, GRID) == []
    del records[5]
    assert missing_points(records, SEEDS, GRID) == ["seed=21 batch_size=2 lr=2e-05"]
    zero = [trial(seed, method="zero-shot") for seed in SEEDS[:3]]
    assert missing_points(zero, SEEDS, GRID) == ["seed=87", "seed=100"]


SPEC = {
    "title": "A table",
    "where": {"k": 16},
    "columns": ["sst-2", {"task": "mnli", "test": "mnli-mm", "label": "MNLI-mm"}],
    "rows": {
        "prompt": {
            "label": "prompt",
            "where": {"method": "prompt", "settings.mapping": None},
            "values": ["92.7 (0.9)", 70.5],
        },
        "swapped": {
            "label": "swapped",
            "where": {"method": "prompt", "settings.mapping": {"0": "great", "1": "terrible"}},
            "values": [None, None],
        },
        "quoted": {"label": "quoted", "values": ["83.2 (6.9)", None]},
    },
}


def full_records():
    records = [one for seed in SEEDS for one in grid_of(seed, {"sst-2": {"acc": 0.9 + seed / 10000}})]
    swapped = {"mapping": [["0", "great"], ["1", "terrible"]]}
    return records + [one for seed in SEEDS for one in grid_of(seed, {"sst-2": {"acc": 0.8}}, settings=swapped)]


def test_a_table_holds_ours_the_papers_and_their_difference():
    table = build("t", SPEC, full_records(), SEEDS, GRID)
    cell = table.cells["prompt", "sst-2"]
    assert cell.ours.mean == pytest.approx(0.90526)
    assert cell.difference == pytest.approx(90.526 - 92.7)
    assert cell.z == pytest.approx((90.526 - 92.7) / (((100 * cell.ours.std) ** 2 + 0.81) / 5) ** 0.5)
    assert table.cells["swapped", "sst-2"].ours.mean == 0.8
    assert table.cells["prompt", "MNLI-mm"].ours is None
    assert table.cells["quoted", "sst-2"].ours is None
    assert table.cells["quoted", "sst-2"].paper == 83.2
    assert "| prompt | 90.5 (0.3) [92.7 (0.9)] | [70.5] |" in as_markdown(table)
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert rows[0]["paper_std"] == "0.9" and rows[0]["seeds"] == "5" and rows[1]["mean"] == ""


def test_cells_with_missing_trials_are_all_listed():
    records = full_records()
    del records[3], records[-1]
    with pytest.raises(InputError) as error:
        build("t", SPEC, records, SEEDS, GRID)
    assert "t, prompt, sst-2: seed=13 batch_size=8 lr=2e-05" in str(error.value)
    assert "t, swapped, sst-2: seed=100 batch_size=8 lr=2e-05" in str(error.value)


def test_what_a_table_says_of_its_trials_goes_before_the_further_conditions():
    spec = {"title": "t", "columns": ["sst-2"], "rows": {"prompt": {"label": "prompt", "where": {"method": "prompt"}}}}
    records = [trial(seed, test=score, model=name) for seed in SEEDS for name, score in (("large", 0.9), ("bert", 0.7))]
    points, where = {"batch_size": [8], "lr": [1e-5]}, {"model": "large"}
    assert build("t", spec, records, SEEDS, points, where).cells["prompt", "sst-2"].ours.mean == pytest.approx(0.9)
    own = {**spec, "where": {"model": "bert"}}
    assert build("t", own, records, SEEDS, points, where).cells["prompt", "sst-2"].ours.mean == pytest.approx(0.7)


def test_a_tables_metrics_are_summaries_times_100_of_the_cells_that_were_run():
    metrics = as_metrics([build("t", SPEC, full_records(), SEEDS, GRID)])
    assert set(metrics["t"]) == {"prompt", "swapped"} and set(metrics["t"]["prompt"]) == {"sst_2"}
    assert metrics["t"]["prompt"]["sst_2"]["mean"] == pytest.approx(90.526)
    assert metrics["t"]["prompt"]["sst_2"]["n"] == 5


def test_every_number_of_the_paper_is_compared_with_the_cell_that_stands_for_it():
    """Each measured row of paper.yaml finds its metric among those of a store that has every trial."""
    specification, paper = read_specification(), load_paper("lm-bff")
    metrics = {}
    for name, about in specification.items():
        columns = [column.get("label", column["task"]).replace("-", "_") for column in about["columns"]]
        rows = {row: dict.fromkeys(columns, 0.0) for row, one in about["rows"].items() if "where" in one}
        metrics[name] = rows
    compared = paper.compare("tables", "paper", {"tables": metrics})
    assert len(compared) > 200 and all(row.measured == 0.0 for row in compared)
    for name, about in specification.items():
        for row, one in about["rows"].items():
            for column, value in zip(about["columns"], one.get("values") or [], strict=False):
                path = f"tables.{name}.{row}.{column.get('label', column['task']).replace('-', '_')}"
                if "where" in one and value is not None:
                    assert find_metric({"tables": metrics}, path) == 0.0
                    assert paper_value(value)[0] in [c.paper for c in compared], path


def test_conditions_compare_dotted_fields_lists_and_tiny_models():
    records = [trial(model="tiny:ab"), trial(model="roberta-large", filter="sbert")]
    assert matching(records, {"model": "tiny"}) == records[:1]
    assert matching(records, {"model": ["tiny", "roberta-large"]}) == records
    assert matching(records, {"settings.lr": 1e-5, "filter": None}) == records[:1]


def test_a_zero_shot_score_is_the_same_for_every_seed_and_has_no_deviation():
    scores = gather([trial(seed, dev=None, test=0.836, method="zero-shot") for seed in SEEDS])
    assert scores.text() == "83.6 (0.0)"
    assert isinstance(scores, Scores)


@pytest.mark.parametrize(
    ("text", "value"),
    [("92.7 (0.9)", (92.7, 0.9)), (95.0, (95.0, None)), (None, (None, None)), ("-1.5 (2.4)", (-1.5, 2.4))],
)
def test_paper_values_are_read(text, value):
    assert paper_value(text) == value


def test_a_misspelt_paper_value_is_refused():
    with pytest.raises(InputError, match="92,7"):
        paper_value("92,7")


def test_every_table_of_the_paper_names_tasks_labels_and_templates_that_exist():
    tables = read_specification()
    assert {"table2", "table3", "table4", "table5", "table7", "k_study"} <= set(tables)
    for name, table in tables.items():
        for column in table["columns"]:
            task = TASKS[column["task"]]
            assert column.get("test", task.name) in task.tests
            for row in table["rows"].values():
                where = row.get("where") or {}
                if where.get("settings.mapping"):
                    check_mapping(where["settings.mapping"], task.labels, task.name)
                if where.get("settings.template"):
                    assert parse(where["settings.template"]).num_sentences <= task.num_sentences
        build(name, table, [], SEEDS, GRID)
    assert len(tables["table3"]["columns"]) == 16


def test_the_command_writes_markdown_and_csv_and_lists_what_is_missing(tmp_path):
    store = Store(tmp_path / "trials.jsonl")
    mapping = {"settings": {"mapping": [["0", "bad"], ["1", "good"]]}}
    records = [trial(seed, test=0.9, **more) for seed in SEEDS for more in ({}, mapping)]
    for record in records[:-1]:
        store.append(record)
    command = [sys.executable, "-m", "lm_bff.tables", "table=table2", f"store={store.path}", "grid.batch_size=[8]"]
    command += ["grid.lr=[1e-5]"]
    broken = subprocess.run(command, capture_output=True, text=True)
    assert broken.returncode == 2
    assert "table2, good/bad, SST-2: seed=100 batch_size=8 lr=1e-05" in broken.stderr
    assert not (tmp_path / "tables").exists()
    store.append(records[-1])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "90.0 (0.0) [92.7 (0.9)]" in (tmp_path / "tables" / "table2.md").read_text()
    result = json.loads((tmp_path / "tables" / "results.json").read_text())
    assert (result["experiment"], result["scale"]) == ("tables", "paper")
    assert result["metrics"]["tables"]["table2"]["great_terrible"]["SST_2"]["mean"] == pytest.approx(90.0)
    verdicts = {claim["id"]: claim["verdict"] for claim in result["claims"]}
    assert "not testable" in verdicts["words_matter"]  # the exchanged words' trials are missing
    assert "great/terrible" in done.stdout and "-2.7" in done.stdout
    assert json.loads(store.path.read_text().splitlines()[0])["key"] == records[0]["key"]
