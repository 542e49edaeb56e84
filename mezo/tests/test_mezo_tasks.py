"""The eleven tasks' texts, letter by letter; their files, and who is in train, dev and test."""

import hashlib
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mezo.data import demonstrations, load_splits, split_files
from mezo.tasks import ELEVEN, TASKS, get_task, task_from
from shared import InputError
from shared.sources import sources

RTE = {"premise": "A dog ran.", "hypothesis": "An animal ran.", "label": 0}
# task: a row, the prompt, and the texts of its candidates (of a generation task: of its answer), written out by hand
EXAMPLES = {
    "sst2": (
        {"sentence": " a charming journey ", "label": 1},
        "a charming journey It was",
        ["a charming journey It was terrible", "a charming journey It was great"],
    ),
    "rte": (
        RTE,
        'A dog ran.\nDoes this mean that "An animal ran." is true? Yes or No?\n',
        [f'A dog ran.\nDoes this mean that "An animal ran." is true? Yes or No?\n{word}' for word in ("Yes", "No")],
    ),
    "cb": (
        {**RTE, "label": 2},
        'Suppose A dog ran. Can we infer that "An animal ran."? Yes, No, or Maybe?\n',
        [
            f'Suppose A dog ran. Can we infer that "An animal ran."? Yes, No, or Maybe?\n{word}'
            for word in ("Yes", "No", "Maybe")
        ],
    ),
    "boolq": (
        {"passage": "Ice floats.", "question": "does ice float", "answer": True},
        "Ice floats. Does ice float?\n",
        ["Ice floats. Does ice float?\nYes", "Ice floats. Does ice float?\nNo"],
    ),
    "wsc": (
        {"text": "Mark told Pete lies.", "span1_text": "Pete", "span2_text": "He", "label": 0},
        'Mark told Pete lies.\nIn the previous sentence, does the pronoun "he" refer to Pete? Yes or No?\n',
        [
            f'Mark told Pete lies.\nIn the previous sentence, does the pronoun "he" refer to Pete? Yes or No?\n{word}'
            for word in ("No", "Yes")
        ],
    ),
    "wic": (
        {"word": "place", "sentence1": "Do you want to come over to my place?", "sentence2": "A place.", "label": 1},
        'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
        "Do you want to come over to my place?\nA place.\n",
        [
            'Does the word "place" have the same meaning in these two sentences? Yes, No?\n'
            f"Do you want to come over to my place?\nA place.\n{word}"
            for word in ("No", "Yes")
        ],
    ),
    "multirc": (
        {"paragraph": "It rained.", "question": "What fell?", "answer": "Snow", "label": 0},
        'It rained.\nQuestion: What fell?\nI found this answer "Snow". Is that correct? Yes or No?\n',
        [
            f'It rained.\nQuestion: What fell?\nI found this answer "Snow". Is that correct? Yes or No?\n{word}'
            for word in ("No", "Yes")
        ],
    ),
    "copa": (
        {"premise": "I fell.", "choice1": "The Floor was wet.", "choice2": "I slept.", "question": "cause", "label": 0},
        "I fell because ",
        ["I fell because the Floor was wet.", "I fell because I slept."],
    ),
    "record": (
        {
            "passage": "Anna met Tom.\n@highlight\nThey spoke",
            "query": "@placeholder was glad",
            "entities": ["Anna", "Tom"],
            "answers": ["Tom", "Anna"],
        },
        "Anna met Tom.\n- They spoke\n-",
        ["Anna met Tom.\n- They spoke\n- Anna was glad", "Anna met Tom.\n- They spoke\n- Tom was glad"],
    ),
    "squad": (
        {"title": "Rome", "context": "Rome is old.", "question": "How is Rome?", "answers": {"text": ["old", "aged"]}},
        "Title: Rome\nContext: Rome is old.\nQuestion: How is Rome?\nAnswer:",
        ["Title: Rome\nContext: Rome is old.\nQuestion: How is Rome?\nAnswer: old\n"],
    ),
    "drop": (
        {"passage": "3 of 5 won.", "question": "How many won?", "answers_spans": {"spans": ["3"], "types": ["number"]}},
        "Passage: 3 of 5 won.\nQuestion: How many won?\nAnswer:",
        ["Passage: 3 of 5 won.\nQuestion: How many won?\nAnswer: 3\n"],
    ),
}
# of the prompt and its candidates' texts above, joined by NUL
MD5 = "17f3890ed9fbffb6f9b33cf5909f952b"


def texts(name):
    row, *_ = EXAMPLES[name]
    task = TASKS[name]
    sample = task.sample(row, "row")
    answers = sample.answers[:1] if task.kind == "generation" else sample.candidates
    return task.encode(sample), [task.verbalise(sample, answer) for answer in answers]


@pytest.mark.parametrize("name", ELEVEN)
def test_prompts_are_the_benchmarks(name):
    _, prompt, answered = EXAMPLES[name]
    assert texts(name) == (prompt, answered)


def test_md5_of_all_prompts():
    joined = "\0".join(text for name in ELEVEN for text in (texts(name)[0], *texts(name)[1]))
    assert hashlib.md5(joined.encode()).hexdigest() == MD5


def test_gold_is_a_number_or_several_the_first_named_first():
    assert TASKS["boolq"].sample({**EXAMPLES["boolq"][0], "answer": False}, "row").gold == (1,)
    sample = TASKS["record"].sample(EXAMPLES["record"][0], "row")
    assert sample.gold == (1, 0)
    assert TASKS["record"].gold_text(sample).endswith("- Tom was glad")
    assert TASKS["squad"].sample(EXAMPLES["squad"][0], "row").answers == ("old", "aged")


def test_losses_metrics_and_dev_numbers_are_the_papers():
    assert {name for name in ELEVEN if TASKS[name].loss == "lm"} == {"copa", "record", "squad", "drop"}
    assert {name for name in ELEVEN if TASKS[name].metric == "f1"} == {"squad", "drop"}
    assert {name for name in ELEVEN if TASKS[name].num_dev == 100} == {"cb", "copa"}
    assert {TASKS[name].num_dev for name in ELEVEN} == {100, 500}


def test_braces_in_the_data_stay_what_they_are():
    sample = TASKS["sst2"].sample({"sentence": "{sentence|lower} {prompt}", "label": 0}, "row")
    assert TASKS["sst2"].verbalise(sample, " great") == "{sentence|lower} {prompt} It was great"


def test_the_content_free_prompt_keeps_what_asks_and_drops_what_is_asked_about():
    record = TASKS["record"].sample(EXAMPLES["record"][0], "row")
    free = TASKS["record"].content_free(record)
    assert TASKS["record"].verbalise(free, "Tom") == "\n- Tom was glad"
    assert TASKS["copa"].encode(TASKS["copa"].content_free(TASKS["copa"].sample(EXAMPLES["copa"][0], "row"))) == (
        " because "
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rte", {"premise": None}, r"here: task rte needs a text in column 'premise', found None"),
        ("rte", {"label": 2}, r"here: the label label=2 is not one of \[0, 1\]"),
        ("rte", {"label": -1}, "label=-1 is not one of"),
        ("boolq", {"answer": "maybe"}, r"answer='maybe' is not one of \[True, False\]"),
        ("copa", {"question": "why"}, "question is 'why', not one of effect, cause"),
        ("copa", {"choice2": " "}, "a candidate of task copa is empty"),
        ("record", {"answers": ["Eve"]}, "the right answer 'Eve' is not among the candidates"),
        ("squad", {"answers": {"text": []}}, r"answers\.text must hold one text or more"),
        ("drop", {"answers_spans": {}}, r"no column 'answers_spans\.spans'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(name, change, message):
    with pytest.raises(InputError, match=message):
        TASKS[name].sample({**EXAMPLES[name][0], **change}, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "x"}, "unknown field 'prompts'; did you mean 'prompt'"),
        ({"kind": "choice"}, "kind is 'choice', not one of classification"),
        ({"prompt": "{premise|upper}"}, "filter 'upper' is not one of strip"),
        ({"prompt": "{Premise}"}, "has a brace that is no variable"),
        ({"kind": "generation"}, "a generation task has answers"),
        ({"candidates": []}, "a classification task needs candidates and gold"),
        ({"num_dev": -1}, "num_dev is -1"),
    ],
)
def test_a_definition_that_makes_no_sense_is_named(change, message):
    values = {
        "name": "mine", "title": "mine", "source": "mine", "kind": "classification", "metric": "accuracy",
        "loss": "candidates", "prompt": "{premise}", "candidates": ["Yes", "No"], "gold": {"column": "label"},
    }  # fmt: skip
    task_from(values, "mine.yaml")
    with pytest.raises(InputError, match=message):
        task_from({**values, **change}, "mine.yaml")


def test_names_are_found_in_any_spelling_and_a_wrong_one_is_named():
    assert get_task("SST-2").name == "sst2"
    with pytest.raises(InputError, match="task=sst3 is unknown; did you mean sst2"):
        get_task("sst3")


def test_every_task_has_a_source_with_train_and_validation():
    known = sources("mezo")
    for name in ELEVEN:
        files = known[TASKS[name].source].files
        assert any("/train/" in pattern for pattern in files) and any("/validation/" in pattern for pattern in files)


# ------------------------------------------------------------------------------------------------------ files, splits


def rows(count):
    return [{"sentence": f"film {number}", "label": number % 2} for number in range(count)]


@pytest.fixture
def folder(tmp_path):
    """SST-2 in miniature: 30 training rows as parquet in the hub's layout, 12 validation rows as JSON lines."""
    (tmp_path / "sst2" / "train").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(30)), tmp_path / "sst2" / "train" / "0000.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows(12))
    (tmp_path / "sst2" / "validation.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_train_dev_and_test_are_the_permutation_under_the_seed(folder):
    splits = load_splits(get_task("sst2"), num_train=10, num_dev=5, num_test=4, seed=3, data_dir=folder)
    order = np.random.RandomState(3).permutation(30)
    named = [int(sample.fields["sentence"].split()[1]) for sample in splits.train + splits.dev]
    assert named == order[:15].tolist()
    assert (len(splits.train), len(splits.dev), len(splits.pool)) == (10, 5, 30)
    tested = [int(sample.fields["sentence"].split()[1]) for sample in splits.test]
    assert tested == np.random.RandomState(3).permutation(12)[:4].tolist()


def test_sampling_leaves_numpys_global_generator_alone(folder):
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    load_splits(get_task("sst2"), num_train=10, num_dev=5, data_dir=folder)
    assert np.random.get_state()[1].tolist() == before


def test_dev_comes_first_out_of_too_few_and_what_remains_is_told(folder, caplog):
    splits = load_splits(get_task("sst2"), num_train=28, num_dev=10, data_dir=folder)
    assert (len(splits.train), len(splits.dev)) == (20, 10)
    assert "20 training examples remain beside num_dev=10, not 28" in caplog.text
    with pytest.raises(InputError, match="num_dev=30 of 30 training examples leaves none to train on"):
        load_splits(get_task("sst2"), num_train=1, num_dev=30, data_dir=folder)


def test_each_test_item_has_its_own_demonstrations_or_all_the_same(folder):
    splits = load_splits(get_task("sst2"), num_train=10, num_dev=5, data_dir=folder)
    own = demonstrations(splits, 4, 3)
    seeds = np.random.RandomState(0).randint(0, 10_000, 3)
    for demos, seed in zip(own, seeds, strict=True):
        assert demos == [splits.pool[n] for n in np.random.RandomState(seed).permutation(30)[:4]]
    shared = demonstrations(splits, 4, 3, shared=True, seed=7)
    assert shared[0] == shared[2] == [splits.pool[n] for n in np.random.RandomState(7).permutation(30)[:4]]
    with pytest.raises(InputError, match="num_demos=31: the training file has 30 examples"):
        demonstrations(splits, 31, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"validation\.jsonl, line 13: not JSON"),
        ("[1]", r"line 13: '\[1\]' is not an object"),
        ('{"sentence": "x", "label": 5}', r"validation\.jsonl, row 12: the label label=5"),
    ],
)
def test_a_broken_line_is_named(folder, line, message):
    path = folder / "sst2" / "validation.jsonl"
    path.write_text(path.read_text("utf-8") + line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_splits(get_task("sst2"), num_train=1, num_dev=1, data_dir=folder)


def test_files_that_are_missing_or_broken_are_named(folder):
    with pytest.raises(InputError, match="is not a folder"):
        split_files(get_task("sst2"), "train", folder / "nothing")
    (folder / "other").mkdir()
    with pytest.raises(InputError, match=r"no train\*\.parquet or train\*\.jsonl in"):
        split_files(get_task("sst2"), "train", folder / "other")
    (folder / "sst2" / "train" / "0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is not a parquet file"):
        load_splits(get_task("sst2"), num_train=1, num_dev=1, data_dir=folder)


def test_without_a_hub_the_missing_data_set_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"mezo: 'copa' .*is not on this machine"):
        load_splits(get_task("copa"))


def test_the_houses_tasks_need_no_download_and_keep_train_and_test_apart():
    for name in ("house-choice", "house-answer", "house-sentiment"):
        splits = load_splits(get_task(name), num_train=50)
        train = {json.dumps(sample.fields) for sample in splits.pool}
        assert len(splits.train) == 50 and len(splits.test) >= 200
        assert not train & {json.dumps(sample.fields) for sample in splits.test}
        assert load_splits(get_task(name), num_train=50) == splits
