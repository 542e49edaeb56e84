"""The fifteen tasks and their readers, on the real few-shot files where they are at hand."""

from collections import Counter

import numpy as np
import pytest

from lm_bff.data import SEEDS, Example, check_splits, load_splits, read_examples
from lm_bff.metrics import compute
from lm_bff.outcome import majority
from lm_bff.settings import TrialSettings
from lm_bff.tasks import TASKS, get_task, task_from
from shared import InputError

TEST_COUNTS = {
    "sst-2": {"1": 444, "0": 428},
    "rte": {"entailment": 146, "not_entailment": 131},
    "mrpc": {"1": 279, "0": 129},
    "qnli": {"not_entailment": 2761, "entailment": 2702},
    "cola": {"1": 721, "0": 322},
    "sst-5": dict(enumerate([279, 633, 389, 510, 399])),
    "trec": dict(enumerate([138, 94, 9, 65, 81, 113])),
    "mr": {0: 1000, 1: 1000},
    "cr": {0: 1000, 1: 1000},
}
MAJORITY = {"sst-2": 50.9, "sst-5": 23.1, "mr": 50.0, "cr": 50.0, "trec": 18.8, "cola": 0.0, "qnli": 49.5, "rte": 52.7}
MAJORITY["mrpc"] = 81.2
HERE = [name for name in TASKS if name not in ("mpqa", "subj")]
SETTINGS = TrialSettings(method="majority")


def test_fifteen_tasks_in_the_order_of_table_3():
    assert list(TASKS) == [
        *("sst-2", "sst-5", "mr", "cr", "mpqa", "subj", "trec", "cola"),
        *("mnli", "snli", "qnli", "rte", "mrpc", "qqp", "sts-b"),
    ]
    assert {name for name, task in TASKS.items() if task.num_sample == 4} == {"mnli", "snli", "qqp"}
    assert {name for name, task in TASKS.items() if task.double_demo} == {"sst-5", "mr", "cr", "mpqa", "subj", "trec"}
    assert {name for name, task in TASKS.items() if task.num_sentences == 2} == {
        *("mnli", "snli", "qnli", "rte", "mrpc", "qqp", "sts-b")
    }
    limits = {name: (task.length_limit(False), task.length_limit(True)) for name, task in TASKS.items()}
    assert limits["mr"] == (128, 256) and limits["sst-2"] == (128, 128) and limits["rte"] == (256, 256)


def test_label_orders_are_those_of_the_logits():
    assert TASKS["mnli"].labels == ("contradiction", "entailment", "neutral")
    assert TASKS["rte"].labels == ("entailment", "not_entailment")
    assert TASKS["trec"].labels == (0, 1, 2, 3, 4, 5) and TASKS["cola"].labels == ("0", "1")


@pytest.mark.mirror
@pytest.mark.parametrize("name", HERE)
def test_real_splits_hold_sixteen_of_every_class(mirror, name):
    task = TASKS[name]
    for seed in SEEDS:
        splits = load_splits(task, 16, seed, mirror / "lm-bff/k-shot")
        assert len(splits.train) == len(splits.dev) == 16 * len(task.labels)
        if not task.regression:
            assert set(Counter(e.label for e in splits.train).values()) == {16}


@pytest.mark.mirror
@pytest.mark.parametrize("name", TEST_COUNTS)
def test_real_test_sets_have_the_known_labels(mirror, name):
    splits = load_splits(TASKS[name], 16, 13, mirror / "lm-bff/k-shot")
    assert dict(Counter(example.label for example in splits.test[name])) == TEST_COUNTS[name]


@pytest.mark.mirror
@pytest.mark.parametrize("name", MAJORITY)
def test_majority_row_of_table_3(mirror, name):
    splits = load_splits(TASKS[name], 16, 13, mirror / "lm-bff/k-shot")
    result = majority(TASKS[name], splits.train, splits.dev, splits.test, SETTINGS)
    assert round(100 * result.test[name][TASKS[name].metric], 1) == pytest.approx(MAJORITY[name])


@pytest.mark.mirror
def test_absent_test_sets_are_reported(mirror):
    splits = load_splits(TASKS["mnli"], 16, 13, mirror / "lm-bff/k-shot")
    assert splits.test == {} and splits.missing == ("mnli", "mnli-mm")


@pytest.mark.mirror
@pytest.mark.parametrize("name", ["sst-5", "mr", "cr", "trec"])
def test_comma_separated_files_read_as_pandas_does(mirror, name):
    pandas = pytest.importorskip("pandas")
    path = mirror / "lm-bff/k-shot" / name / "test.csv"
    table = pandas.read_csv(path, header=None, keep_default_na=False)
    found = read_examples(path, TASKS[name])
    assert [(e.label, e.sentences[0]) for e in found] == list(zip(table[0], table[1].astype(str), strict=True))


def test_a_score_belongs_to_one_half_for_splits_and_another_for_demonstrations():
    """2.5 is the upper half when K-shot sets are sampled, and the lower half when demonstrations are drawn."""
    from lm_bff.data import split_class

    assert [split_class(TASKS["sts-b"], score) for score in (2.4, 2.5)] == ["0", "1"]
    assert [TASKS["sts-b"].context_class(score) for score in (2.5, 2.6)] == [0, 1]


def write(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_tabs_without_quoting_and_a_byte_order_mark(tmp_path):
    text = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\ta\tb\t"He said\tso "it\n'
    (example,) = read_examples(write(tmp_path, "m.tsv", text), TASKS["mrpc"])
    assert example.sentences == ('"He said', 'so "it') and example.label == "1" and example.name == "m.tsv, line 2"


def test_null_and_empty_texts_survive(tmp_path):
    found = read_examples(write(tmp_path, "m.csv", '0,null\n1,\n1,"a, ""b"""\n'), TASKS["mr"])
    assert [e.sentences[0] for e in found] == ["null", "", 'a, "b"']


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("sst-2", "sentence\tlabel\ngood\t1\nbad\n", r"line 3: 1 columns, but task sst-2 needs 2"),
        ("sst-2", "sentence\tlabel\ngood\t2\n", r"line 2: the label '2' is not one of \['0', '1'\]"),
        ("mr", "0,fine\n7,odd\n", r"line 2: the label '7' is not one of \[0, 1\]"),
        ("mr", "0,fine\nx,odd\n", r"line 2: the label 'x'"),
        ("sst-2", "sentence\tlabel\n", "has no examples"),
        ("sst-2", "", "has no examples"),
    ],
)
def test_bad_lines_are_named(tmp_path, task, text, message):
    with pytest.raises(InputError, match=message):
        read_examples(write(tmp_path, "f.txt", text), TASKS[task])


@pytest.mark.parametrize("score", ["5.1", "-0.5", "high", "nan", ""])
def test_scores_out_of_bounds(tmp_path, score):
    text = "h\n" + "\t".join(["0"] * 7 + ["a", "b", score]) + "\n"
    with pytest.raises(InputError, match=r"line 2: the score .* is not a number from 0 to 5"):
        read_examples(write(tmp_path, "s.tsv", text), TASKS["sts-b"])


def test_too_few_examples_and_dev_inside_train(sentiment):
    train, dev = sentiment(6), sentiment(8, seed=1)
    with pytest.raises(InputError, match=r"has 3 examples of '0', fewer than k=4"):
        check_splits(TASKS["sst-2"], train, dev, 4)
    with pytest.raises(InputError, match=r"line 2 of dev is also in train"):
        check_splits(TASKS["sst-2"], train, [*dev, train[2]], 3)


def test_missing_files_say_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match=r"no splits at .*python -m lm_bff.kshot k=16 seeds=\[13\]"):
        load_splits(TASKS["mr"], 16, 13, tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_splits(TASKS["mr"], 16, 13, tmp_path / "nowhere")
    with pytest.raises(InputError, match="mode=10x"):
        load_splits(TASKS["mr"], 16, 13, tmp_path, mode="10x")


def test_mnli_mm_is_no_training_task():
    with pytest.raises(InputError, match="second test set of mnli"):
        get_task("mnli-mm")
    with pytest.raises(InputError, match="did you mean sst-2"):
        get_task("sst2")


def test_tasks_from_configs_are_checked():
    good = {
        "name": "mine",
        "folder": "mine",
        "labels": ["a", "b"],
        "template": "*cls**sent_0**mask*",
        "mapping": {"a": "x", "b": "y"},
        "metric": "acc",
        "reader": {"format": "tsv", "header": False, "sentences": [0], "label": 1},
    }
    assert task_from(good).metrics == ("acc",)
    for change, message in [
        ({"lables": 1}, "unknown field 'lables'; did you mean 'labels'"),
        ({"metric": "bleu"}, "metric 'bleu'"),
        ({"template": "*cls**sent_1**mask*"}, "asks for sentence 1"),
        ({"mapping": {"a": "x"}}, "needs"),
        ({"labels": ["a", "a"]}, "two or more different"),
        ({"majority": "c"}, "majority is 'c'"),
        ({"num_sample": 0}, "num_sample is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            task_from({**good, **change})
    with pytest.raises(InputError, match="field 'template' is missing"):
        task_from({key: value for key, value in good.items() if key != "template"})


def test_metrics_of_a_known_confusion():
    gold, predicted = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0, 0, 0])
    found = compute(("acc", "f1", "mcc"), predicted, gold)
    assert found["acc"] == 0.75 and found["f1"] == pytest.approx(2 / 3)
    assert found["mcc"] == pytest.approx((2 * 4 - 1 * 1) / np.sqrt(3 * 3 * 5 * 5))
    assert compute(("pearson", "spearman"), np.array([1.0, 2, 4]), np.array([1.0, 2, 3])) == {
        "pearson": pytest.approx(0.98198, abs=1e-5),
        "spearman": pytest.approx(1.0),
    }
    assert compute(("pearson", "f1"), np.zeros(3), np.array([0, 0, 1.0]))["pearson"] == 0.0
    with pytest.raises(InputError, match="metrics"):
        compute(("acc",), np.zeros(2), np.zeros(3))


def test_majority_needs_classes_and_falls_back_to_the_training_set():
    task = task_from(
        {
            "name": "mine",
            "folder": "mine",
            "labels": ["a", "b"],
            "template": "*cls**sent_0**mask*",
            "mapping": {"a": "x", "b": "y"},
            "metric": "acc",
            "reader": {"format": "tsv", "header": False, "sentences": [0], "label": 1},
        }
    )
    train = [Example(("x",), "b"), Example(("y",), "b"), Example(("z",), "a")]
    assert majority(task, train, [], {"mine": train}, SETTINGS).test["mine"]["acc"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="not defined for sts-b"):
        majority(TASKS["sts-b"], [], [], {}, SETTINGS)
