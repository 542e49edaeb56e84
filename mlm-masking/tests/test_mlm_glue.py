"""GLUE tasks as data, their readers, and the metrics with the release's rounding."""

import json
import logging

import numpy as np
import pytest

from mlm_masking.glue import TASKS, load_data, load_task, load_unlabelled, read_examples, read_table, subsample, task_of
from mlm_masking.glue_metrics import binary_metrics, classification_metrics, metric_names, regression_metrics
from shared import InputError

GLUE = ("mnli", "qnli", "qqp", "rte", "sst2", "mrpc", "cola", "stsb")


# ------------------------------------------------------------------------------------------------------------- metrics


def test_the_worked_example_of_the_release():
    scores = binary_metrics(true_positives=50, false_positives=10, true_negatives=30, false_negatives=5)
    assert scores == {"precision": 0.833, "recall": 0.909, "f1": 0.87, "mcc": 0.675}


def test_accuracy_is_rounded_to_three_decimals_and_binary_tasks_have_four_more():
    predictions, labels = np.array([1] * 60 + [0] * 35), np.array([1] * 50 + [0] * 40 + [1] * 5)
    scores = classification_metrics(predictions, labels, classes=2)
    assert scores == {"accuracy": 0.842, "precision": 0.833, "recall": 0.909, "f1": 0.87, "mcc": 0.675}
    assert tuple(scores) == metric_names("classification", 2)
    three = classification_metrics(np.array([0, 1, 2]), np.array([0, 1, 1]), classes=3)
    assert three == {"accuracy": 0.667}


def test_a_quotient_without_denominator_is_zero_and_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        scores = classification_metrics(np.zeros(4, dtype=int), np.array([0, 1, 0, 1]), classes=2)
    assert scores["precision"] == scores["mcc"] == 0.0 and scores["recall"] == 0.0
    assert "no denominator" in caplog.text


def test_hidden_labels_cannot_be_scored():
    with pytest.raises(InputError, match="-1 marks hidden labels"):
        classification_metrics(np.array([0, 1]), np.array([-1, -1]), classes=2)


def test_correlations_are_not_rounded_and_agree_with_their_definitions():
    predictions, labels = np.array([0.1, 2.0, 2.5, 4.9, 3.3]), np.array([0.0, 1.5, 3.0, 5.0, 2.0])
    scores = regression_metrics(predictions, labels)
    ranks = [np.argsort(np.argsort(values)) for values in (predictions, labels)]
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1], abs=1e-12)
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    assert scores["pearson"] != round(scores["pearson"], 3)


def test_constant_predictions_correlate_zero_and_nan_is_refused(caplog):
    assert regression_metrics(np.ones(3), np.array([1.0, 2.0, 3.0])) == {"pearson": 0.0, "spearman": 0.0}
    with pytest.raises(InputError, match="diverged"):
        regression_metrics(np.array([np.nan, 1.0]), np.array([1.0, 2.0]))


# --------------------------------------------------------------------------------------------------------------- tasks


def test_every_task_file_is_a_task_with_the_grid_of_its_size():
    small = {"lr": [1e-5, 3e-5, 5e-5, 8e-5], "batch_size": [16, 32], "epochs": [3, 5, 10]}
    large = {"lr": [5e-5, 8e-5], "batch_size": [32], "epochs": [3, 5]}
    for name in GLUE:
        task = load_task(name)
        assert dict(task.grid) == (large if name in ("mnli", "qqp", "qnli") else small), name
        assert task.metric in metric_names(task.kind, len(task.labels))
    counts = {name: load_task(name).train_examples for name in (*GLUE, "mr")}
    assert counts == {
        "mnli": 392702, "qnli": 104743, "qqp": 363846, "rte": 2490, "sst2": 67349, "mrpc": 3668, "cola": 8551,
        "stsb": 5749, "mr": 8662,
    }  # fmt: skip


def test_mnli_is_scored_on_two_sets_and_the_matched_one_decides():
    (place,) = load_task("mnli").data
    assert list(place["dev"]) == ["matched", "mismatched"]
    assert load_task("mnli").outputs == 3 and load_task("stsb").outputs == 1


def test_unknown_tasks_and_probes_are_refused_with_the_names_there_are():
    with pytest.raises(InputError, match=r"task=sst: there is no such task; known: .*sst2"):
        load_task("sst")
    with pytest.raises(InputError, match=r"task of mlm_masking\.probe"):
        load_task("blimp")
    assert (TASKS / "blimp.yaml").is_file()


def test_a_task_with_a_misspelt_field_is_refused():
    good = {field: getattr(load_task("rte"), field) for field in load_task("rte").__dataclass_fields__}
    with pytest.raises(InputError, match="unknown field text_c"):
        task_of({**good, "text_c": "x"})
    with pytest.raises(InputError, match="two or more class names"):
        task_of({**good, "labels": ["one"]})


# ------------------------------------------------------------------------------------------------------------- readers


@pytest.fixture
def pairs(tmp_path):
    """Two labelled pairs in every format, with quotes and commas in the texts."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [
        {"sentence1": 'He said "no", twice', "sentence2": "He refused", "label": 0},
        {"sentence1": "A cat", "sentence2": "It's a dog", "label": 1},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "x.tsv").write_text(
        "sentence1\tsentence2\tlabel\n" + "".join("\t".join(map(str, row.values())) + "\n" for row in rows)
    )
    (tmp_path / "x.csv").write_text(
        'sentence1,sentence2,label\n"He said ""no"", twice",He refused,entailment\nA cat,It\'s a dog,not_entailment\n'
    )
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    return tmp_path


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "csv", "parquet"])
def test_own_files_of_every_format_give_the_same_examples(pairs, ending):
    task = load_task("rte")
    data = load_data(task, train=pairs / f"x.{ending}", dev={"mine": pairs / f"x.{ending}"})
    assert data.train.text_a == ['He said "no", twice', "A cat"]
    assert data.train.text_b == ["He refused", "It's a dog"]
    assert data.train.labels.tolist() == [0, 1] and list(data.dev) == ["mine"]
    assert data.origin == f"own files (x.{ending})"


def test_tables_without_a_header_take_their_names_from_the_task(tmp_path):
    (tmp_path / "t.tsv").write_text("gj04\t1\t\tFine sentence .\ngj04\t0\t*\tBad sentence .\n")
    examples = read_examples(load_task("cola"), [tmp_path / "t.tsv"], ["origin", "label", "star", "sentence"])
    assert examples.text_a == ["Fine sentence .", "Bad sentence ."] and examples.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("rte", {"sentence1": "a", "sentence2": "b", "label": -1}, "label -1 marks a test split"),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": 2}, "label is 2, not one of entailment"),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": "yes"}, "label is 'yes'"),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": 0.5}, "label is 0.5"),
        ("rte", {"sentence1": "a", "sentence2": None, "label": 1}, "row 1: sentence2 is None"),
        ("rte", {"sentence1": "a", "label": 1}, "there is no column 'sentence2'; there are 'sentence1', 'label'"),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": 5.2}, r"label is 5.2, but STS-B scores lie in 0.0..5.0"),
        ("stsb", {"sentence1": "a", "sentence2": "b", "label": "x"}, "scores lie in"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, task, row, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_examples(load_task(task), [tmp_path / "x.jsonl"])


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "header.csv").write_text("sentence,label\n")
    (tmp_path / "ragged.tsv").write_text("sentence\tlabel\na\t1\tx\n")
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, message in {
        "empty.tsv": "no rows",
        "header.csv": "no rows",
        "ragged.tsv": "row 1: 3 fields, expected 2",
        "broken.jsonl": "cannot be read as jsonl",
        "broken.parquet": "cannot be read as parquet",
        "absent.csv": "no such file",
        "x.xlsx": "format xlsx",
    }.items():
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / name)


def test_train_and_dev_belong_together(pairs):
    with pytest.raises(InputError, match="give both"):
        load_data(load_task("rte"), train=pairs / "x.csv")


def test_a_task_without_data_here_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"glue_rte.*\n(.*\n)*.*make mirror-mlm-masking ARGS=glue_rte"):
        load_data(load_task("rte"))
    with pytest.raises(InputError, match=r"data.source=glue: task=rte has the sources glue_rte"):
        load_data(load_task("rte"), source="glue")
    with pytest.raises(InputError, match=r"give data\.train and data\.dev"):
        load_data(load_task("mr"))


def test_unlabelled_examples_need_no_labels(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"sentence": "a b", "label": -1}) + "\n")
    assert load_unlabelled(load_task("sst2"), str(tmp_path / "test.jsonl")).text_a == ["a b"]
    with pytest.raises(InputError, match="predict=nowhere"):
        load_unlabelled(load_task("sst2"), "nowhere")


def test_subsampling_is_a_seeded_part_in_the_original_order(pairs):
    task = load_task("sst2")
    (pairs / "many.jsonl").write_text(
        "".join(json.dumps({"sentence": str(i), "label": i % 2}) + "\n" for i in range(50))
    )
    examples = read_examples(task, [pairs / "many.jsonl"])
    part, again, other = (subsample(examples, size=20, seed=seed) for seed in (1, 1, 2))
    assert part.text_a == again.text_a != other.text_a
    assert [int(text) for text in part.text_a] == sorted(int(text) for text in part.text_a)
    assert all(int(text) % 2 == label for text, label in zip(part.text_a, part.labels, strict=True))
    assert len(subsample(examples, fraction=0.1)) == 5 and subsample(examples) is examples
    for bad in ({"size": 51}, {"size": 0}, {"fraction": 1.5}, {"size": 3, "fraction": 0.1}):
        with pytest.raises(InputError):
            subsample(examples, **bad)


@pytest.mark.mirror
def test_the_mirrors_files_have_the_sizes_their_readme_states():
    data = load_data(load_task("sst2"), source="sst2_sentences")
    assert (len(data.train), len(data.dev["dev"]), len(data.dev["test"])) == (6920, 872, 1821)
    cola = load_data(load_task("cola"), source="cola_raw")
    sizes = {name: len(examples) for name, examples in cola.dev.items()}
    assert len(cola.train) == 8551 and sizes == {"dev": 1043, "in_domain": 527, "out_of_domain": 516}


@pytest.mark.mirror
def test_the_paraphrase_corpus_is_read_as_it_was_released(mirror):
    folder = mirror / "simcse" / "SentEval" / "data" / "downstream" / "MRPC"
    if not folder.is_dir():
        pytest.skip("MRPC's files are not in this mirror")
    task = load_task("mrpc")
    task = task_of(
        {field: getattr(task, field) for field in task.__dataclass_fields__}
        | {"text_a": "#1 String", "text_b": "#2 String", "label": "Quality"}
    )
    data = load_data(task, train=folder / "msr_paraphrase_train.txt", dev=folder / "msr_paraphrase_test.txt")
    assert len(data.train) == 4076 and len(data.dev["dev"]) == 1725
    assert data.train.text_a[0].startswith("Amrozi accused his brother")
