"""The house's tasks: few-shot files that the readers read, and text for the tiny model that never meets the test."""

import re

import pytest
import yaml

from lm_bff import offline_tasks
from lm_bff.data import SEEDS, load_splits
from lm_bff.held_out import HeldOut, letters, without
from lm_bff.offline_tasks import (
    PACKAGES,
    POOL,
    TEST,
    house_splits,
    house_text,
    opinions,
    sentiment_rows,
    test_and_pool,
    topic_texts,
)
from lm_bff.tasks import TASKS, get_task
from lm_bff.tiny_text import HOUSE_TASKS
from shared import InputError

test_and_pool.__test__ = False  # a function of the package, not a test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return house_splits(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize("name", HOUSE_TASKS)
def test_the_files_are_read_as_all_few_shot_files_are(folder, name):
    task = get_task(name)
    for seed in SEEDS:
        splits = load_splits(task, 16, seed, folder)
        assert len(splits.train) == len(splits.dev) == 16 * len(task.labels)
        assert len(splits.test[name]) == TEST[name] * len(task.labels)
        assert {one.label for one in splits.train} == set(task.labels)


@pytest.mark.parametrize("name", HOUSE_TASKS)
def test_train_dev_and_test_share_no_text(folder, name):
    task = get_task(name)
    test = {letters(one.sentences[0]) for one in load_splits(task, 16, 13, folder).test[name]}
    drawn = set()
    for seed in SEEDS:
        splits = load_splits(task, 16, seed, folder)
        train, dev = ({letters(one.sentences[0]) for one in part} for part in (splits.train, splits.dev))
        assert not train & dev and not (train | dev) & test
        assert len(train) == len(splits.train)
        drawn |= train
    assert len(drawn) > 16 * len(task.labels) * 1.5


def test_files_are_the_same_every_time_and_are_not_written_again(folder, tmp_path):
    again = house_splits(tmp_path / "again")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.tsv"))
    assert len(files) == len(HOUSE_TASKS) * (1 + 2 * len(SEEDS))
    assert all((again / file).read_bytes() == (folder / file).read_bytes() for file in files)
    before = {file: (folder / file).stat().st_mtime_ns for file in files}
    house_splits(folder)
    assert {file: (folder / file).stat().st_mtime_ns for file in files} == before


def test_without_a_folder_the_files_are_written_on_the_spot(tmp_path, monkeypatch):
    monkeypatch.setattr(offline_tasks.hub, "cache_folder", lambda paper: tmp_path / paper)
    splits = load_splits(get_task("house-sentiment"), 8, 21)
    assert len(splits.train) == 16 and len(splits.test["house-sentiment"]) == 224
    assert len(list(tmp_path.rglob("dev.tsv"))) == 1


def test_other_k_and_seeds_are_added(folder):
    house_splits(folder, k=4, seeds=(7,), tasks=("house-sentiment",))
    assert len(load_splits(get_task("house-sentiment"), 4, 7, folder).train) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 34}, "k is 1 to 33"), ({"k": 0}, "k=0"), ({"tasks": ("house-mood",)}, "house-mood")],
)
def test_what_the_house_does_not_have_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        house_splits(tmp_path, **options)
    assert not list(tmp_path.rglob("*.tsv"))


def test_the_house_tasks_stand_beside_the_papers_fifteen():
    assert not set(HOUSE_TASKS) & set(TASKS)
    assert get_task("house-topic").mapping == {0: "system", 1: "science", 2: "learning", 3: "language"}


def test_opinions_written_for_the_project_are_distinct_and_enough():
    texts = [text for pair in sentiment_rows() for text in pair]
    assert len({letters(text) for text in texts}) == len(texts)
    assert len(sentiment_rows()) == TEST["house-sentiment"] + POOL["house-sentiment"]


def test_docstrings_do_not_name_their_package():
    for name, texts in zip(PACKAGES, topic_texts(), strict=True):
        assert not any(name in text.lower() or "sklearn" in text.lower() for text in texts)
        assert len(set(texts)) == len(texts)


def test_the_tiny_models_text_has_nothing_of_the_few_shot_files():
    text = house_text(opinion_count=4000)
    read = {letters(one) for one in text.sentences}
    for name in HOUSE_TASKS:
        test, pool = test_and_pool(name)
        held = [one for one, _ in test] + [one for texts in pool for one in texts]
        assert not read & {letters(one) for one in held}
        assert len(without(text.sentences, HeldOut(held))) == len(text.sentences)
    assert {one.label for one in text.verbalised if len(one.words) == 4} == {0, 1, 2, 3}


def test_no_phrase_of_the_composed_opinions_is_taken_from_the_written_ones():
    written = " | ".join(" ".join(re.findall(r"[a-z']+", text.lower())) for pair in sentiment_rows() for text in pair)

    def phrases(part):
        if isinstance(part, str):
            return [part] if " " in part.removeprefix("the ") else []
        return [one for inner in (part.values() if isinstance(part, dict) else part) for one in phrases(inner)]

    parts = yaml.safe_load((offline_tasks.DATA / "opinions.yaml").read_text("utf-8"))
    assert [one for one in phrases(parts) if f" {one} " in f" {written} "] == []


def test_composed_opinions_are_distinct_balanced_and_the_same_every_time():
    found = opinions(600)
    assert found == opinions(600)
    assert len(dict(found)) == 600
    assert sum(label for _, label in found) == 300


def test_more_opinions_than_can_be_put_together_are_refused(tmp_path, monkeypatch):
    parts = "subjects: [[the film, the book]]\ndegrees: [very]\nfacts: [it rained]\n"
    parts += "verbs: {positive: [[shines]], negative: [[leaks]]}\n"
    parts += "words: {positive: [[good, fine]], negative: [[bad, poor]]}\nremarks: {positive: [nice], negative: [no]}\n"
    (tmp_path / "opinions.yaml").write_text(parts)
    monkeypatch.setattr(offline_tasks, "DATA", tmp_path)
    with pytest.raises(InputError, match="fewer than 500"):
        opinions(500)
