"""Label search with a model: which tokens can be words, what is proposed, and what is found in the end."""

import subprocess
import sys

import numpy as np
import pytest

from lm_bff.candidates import read_candidates
from lm_bff.data import Example
from lm_bff.label_words import word_id
from lm_bff.search_labels import default_sizes, mask_logits, search, search_jointly, usable_words
from lm_bff.settings import TrialSettings
from lm_bff.tasks import TASKS
from lm_bff.training import run_trial
from shared import InputError

SST2 = TASKS["sst-2"]


@pytest.mark.parametrize("architecture", ["roberta", "bert", "deberta", "modernbert"])
def test_every_usable_word_can_be_looked_up_again(pretrained, architecture):
    model = pretrained(architecture)
    words = usable_words(model.tokenizer, len(model.decoder_weight))
    assert "great" in words.values()
    assert all(word_id(model.tokenizer, word) == number for number, word in words.items())
    assert not set(words) & set(model.tokenizer.all_special_ids)
    assert list(words) == sorted(words)


def test_pieces_that_do_not_begin_a_word_are_left_out(pretrained):
    bpe, wordpiece = pretrained("roberta").tokenizer, pretrained("bert").tokenizer
    assert all(bpe.convert_ids_to_tokens(number).startswith("Ġ") for number in usable_words(bpe, len(bpe)))
    assert not any(wordpiece.convert_ids_to_tokens(n).startswith("##") for n in usable_words(wordpiece, len(wordpiece)))


@pytest.mark.parametrize("architecture", ["roberta", "bert", "deberta", "modernbert"])
def test_vocabulary_logits_are_those_of_the_label_words_columns(pretrained, sentiment, architecture):
    model, examples = pretrained(architecture), sentiment(6)
    whole = mask_logits(model, SST2, examples)
    zero_shot = run_trial(model, SST2, examples, [], examples, TrialSettings(method="zero-shot"))
    columns = [word_id(model.tokenizer, SST2.mapping[label]) for label in SST2.labels]
    assert whole.shape == (6, len(model.decoder_weight))
    np.testing.assert_allclose(whole[:, columns], zero_shot.test_outputs["sst-2"], atol=1e-5)


def test_the_score_of_a_mapping_is_its_zero_shot_training_accuracy(pretrained, sentiment):
    model, train = pretrained("roberta"), sentiment(12)
    found = search(model, SST2, train, k_likely=6, n_pairs=10)
    assert len(found) == 10
    for one in (found[0], found[-1]):
        settings = TrialSettings(method="zero-shot", mapping=one.mapping)
        assert run_trial(model, SST2, train, [], train, settings).test["sst-2"]["acc"] == pytest.approx(one.score)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_all_pairs_of_a_regression_are_scored_by_pearson(pretrained):
    rng = np.random.default_rng(0)
    words = ["warm", "funny", "dull", "boring", "film", "train"]
    train = [Example((f"the {words[rng.integers(6)]} one", f"a {words[rng.integers(6)]} one"), s) for s in range(6)]
    model, task = pretrained("roberta"), TASKS["sts-b"]
    found = search(model, task, train, k_likely=5, n_pairs=25)
    best = found[0]
    settings = TrialSettings(method="zero-shot", mapping=best.mapping)
    assert run_trial(model, task, train, [], train, settings).test["sts-b"]["pearson"] == pytest.approx(
        best.score, abs=1e-4
    )
    same = [one for one in found if len(set(one.mapping.values())) == 1]
    assert all(one.score == -1 for one in same)


def test_neighbours_of_the_manual_words_are_kept(pretrained, sentiment):
    model, train = pretrained("roberta"), sentiment(8)
    found = search(model, SST2, train, k_likely=50, k_neighbors=3, n_pairs=100)
    assert len(found) == 9
    rows = model.decoder_weight.numpy().astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wide = search(model, SST2, train, k_likely=50, n_pairs=10_000)
    for label in SST2.labels:
        manual = unit[word_id(model.tokenizer, SST2.mapping[label])]
        cosine = {word: unit[word_id(model.tokenizer, word)] @ manual for word in {o.mapping[label] for o in wide}}
        nearest = sorted(cosine, key=lambda word: -cosine[word])[:3]
        assert {one.mapping[label] for one in found} == set(nearest)


def test_numeric_labels_stay_numbers(pretrained, sentiment):
    (first, *_) = search(pretrained("roberta"), TASKS["mr"], sentiment(8, labels=(0, 1)), k_likely=3, n_pairs=2)
    assert list(first.mapping) == [0, 1]


def test_a_joint_search_shares_the_pairings_among_the_templates(pretrained, sentiment):
    templates = ["*cls**sent_0*_It_was*mask*.*sep+*", "*cls**mask*:*+sent_0**sep+*"]
    found = search_jointly(pretrained("roberta"), SST2, sentiment(8), templates, n_pairs=7, k_likely=4)
    assert [one.template for one in found] == [templates[0]] * 3 + [templates[1]] * 3
    with pytest.raises(InputError, match="n_pairs=1"):
        search_jointly(pretrained("roberta"), SST2, sentiment(8), templates, n_pairs=1)


def test_the_papers_sizes_by_number_of_classes():
    assert [default_sizes(n) for n in (2, 3, 5, 6)] == [(100, None), (100, None), (30, None), (1000, 20)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_likely": 0}, "k_likely=0"),
        ({"n_pairs": 0}, "n_pairs=0"),
        ({"k_likely": 4, "k_neighbors": -1}, "k_neighbors=-1"),
    ],
)
def test_sizes_below_one_are_refused(pretrained, sentiment, options, message):
    with pytest.raises(InputError, match=message):
        search(pretrained("roberta"), SST2, sentiment(4), **options)


def test_the_command_writes_a_file_that_can_be_ranked(few_shot_folder, model_folder, tmp_path):
    out = tmp_path / "mappings.txt"
    command = [sys.executable, "-m", "lm_bff.search_labels", "task=sst-2", "k=4", "seed=13", "k_likely=5", "n_pairs=6"]
    command += [f"data_dir={few_shot_folder((13,))}", f"model={model_folder('bert')}", f"output={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_candidates(out, "mapping", SST2)) == 6
    templates = tmp_path / "templates.txt"
    templates.write_text("*cls**sent_0*_It_was*mask*.*sep+*\n*cls**sent_0*_A*mask*one.*sep+*\n")
    done = subprocess.run([*command, f"templates={templates}", "top=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_candidates(out, "prompt", SST2)) == 6
    refused = subprocess.run([*command, f"templates={tmp_path / 'none.txt'}"], capture_output=True, text=True)
    assert refused.returncode == 2 and "none.txt" in refused.stderr
