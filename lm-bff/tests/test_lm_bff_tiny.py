"""The tiny masked language model: what it reads and never reads, determinism, caching, and that it learns."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lm_bff import tiny
from lm_bff.held_out import RUN, letters
from lm_bff.label_words import word_id
from lm_bff.model import Pretrained
from lm_bff.tasks import TASKS
from lm_bff.tiny import (
    TinySettings,
    batches,
    build_model,
    demonstrated,
    encode_text,
    make_batch,
    tiny_mlm,
    train_tokenizer,
)
from lm_bff.tiny_text import (
    SENTIMENT_TEMPLATES,
    SENTIMENT_WORDS,
    Text,
    Verbalised,
    held_out_sentences,
    put_into_words,
    task_words,
    training_text,
)
from shared import InputError
from shared.duplicates import words

SMALL = TinySettings(vocab_size=600, hidden_size=32, intermediate_size=64, steps=12, batch_size=16)
GOOD = ["warm", "funny", "clever", "lovely", "bright", "moving"]
BAD = ["dull", "boring", "stale", "weak", "flat", "tired"]


@pytest.fixture(scope="module")
def text():
    """Two hundred sentences whose words tell their label, put into words, and some that are not."""
    rng = np.random.default_rng(0)
    sentences, labels = [], []
    for number in range(200):
        label = number % 2
        words = rng.choice((BAD, GOOD)[label], 3)
        sentences.append(f"the {words[0]} film was {words[1]} and {words[2]} number {number}")
        labels.append(label)
    verbalised = put_into_words(sentences, labels, SENTIMENT_TEMPLATES, SENTIMENT_WORDS)
    return Text(tuple(f"a plain line {n} about a film ." for n in range(30)), tuple(verbalised), task_words(), "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory, text):
    return tiny_mlm(tmp_path_factory.mktemp("tiny"), text=text, settings=SMALL, progress=False)


# ---------------------------------------------------------------------------------------------------------- the folder


def test_the_folder_loads_as_a_masked_language_model_with_its_head_tied(small):
    model = AutoModelForMaskedLM.from_pretrained(small)
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    pretrained = Pretrained.load(small)
    assert torch.equal(pretrained.decoder_weight, model.get_input_embeddings().weight)
    tokenizer = AutoTokenizer.from_pretrained(small)
    assert tokenizer.mask_token_id is not None and len(tokenizer) == model.config.vocab_size
    assert pretrained.max_positions >= 512


def test_every_label_word_of_every_task_is_one_token(small):
    tokenizer = AutoTokenizer.from_pretrained(small)
    ids = {word: word_id(tokenizer, word) for word in task_words()}
    assert tokenizer.unk_token_id not in ids.values()
    for task in TASKS.values():
        assert len({ids[word] for word in task.mapping.values()}) == len(task.labels)


def test_a_second_call_reads_the_cache_and_other_settings_are_another_folder(small, text, monkeypatch):
    monkeypatch.setattr(tiny, "train", lambda *_: pytest.fail("trained again"))
    assert tiny_mlm(small.parent, text=text, settings=SMALL) == small
    with pytest.raises(pytest.fail.Exception):
        tiny_mlm(small.parent, text=text, settings=TinySettings(**{**SMALL.__dict__, "seed": 1}))


def test_the_same_text_and_seed_give_the_same_bytes_in_another_process(small, text, tmp_path):
    script = (
        "import json, sys; from lm_bff.tiny import *; from lm_bff.tiny_text import *\n"
        "d = json.load(open(sys.argv[1]))\n"
        "v = tuple(Verbalised(s, t, tuple(w), l) for s, t, w, l in d['v'])\n"
        "text = Text(tuple(d['p']), v, tuple(d['w']), 'test')\n"
        f"print(tiny_mlm(sys.argv[2], text=text, settings={SMALL!r}, progress=False))\n"
    )
    rows = [[one.sentence, one.template, one.words, one.label] for one in text.verbalised]
    (tmp_path / "text.json").write_text(json.dumps({"p": text.plain, "v": rows, "w": text.words}))
    (tmp_path / "make.py").write_text(script)
    command = [sys.executable, str(tmp_path / "make.py"), str(tmp_path / "text.json"), str(tmp_path / "tiny")]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "tiny" / small.name
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (other / file).read_bytes() == (small / file).read_bytes(), file


def test_what_ran_before_does_not_change_the_drawn_weights(text):
    tokenizer = train_tokenizer(text.sentences, 600, text.words)
    torch.manual_seed(5)
    first = build_model(tokenizer, SMALL).state_dict()
    state = torch.random.get_rng_state()
    second = build_model(tokenizer, SMALL).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_leaves_no_folder(tmp_path, text, monkeypatch):
    monkeypatch.setattr(tiny, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tiny_mlm(tmp_path, text=text, settings=SMALL)
    assert not list(tmp_path.glob("*/config.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "hidden_size=30"),
        ({"steps": 0}, "steps=0"),
        ({"flips": 1.0}, "flips=1.0"),
        ({"lean": 0.5}, "lean=0.5"),
        ({"vocab_size": 100}, "vocab_size=100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, text, change, message):
    with pytest.raises(InputError, match=message):
        tiny_mlm(tmp_path, text=text, settings=TinySettings(**{**SMALL.__dict__, **change}))
    with pytest.raises(InputError, match="no text"):
        tiny_mlm(tmp_path, text=Text((), (), (), "nothing"), settings=SMALL)


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_label_is_masked_always_and_wrong_as_often_as_asked(text):
    tokenizer = train_tokenizer(text.sentences, 600, text.words)
    settings = TinySettings(**{**SMALL.__dict__, "flips": 0.25, "lean": 0.1})
    encoded, rng = encode_text(text, tokenizer, settings), np.random.default_rng(0)
    stream = batches(encoded, settings, rng)
    wrong, seen, masked, words = [0, 0], [0, 0], 0, 0
    for _ in range(400):
        rows = next(stream)
        batch = make_batch(encoded, rows, settings, tokenizer, rng)
        labelled = [row for row in rows if encoded.slot[row] >= 0]
        assert len(batch.slots) == len(labelled)
        targets = batch.targets[batch.slots]
        assert torch.equal(targets, batch.choices.gather(1, batch.right[:, None])[:, 0])
        for row, right in zip(labelled, batch.right.tolist(), strict=True):
            seen[encoded.right[row]] += 1
            wrong[encoded.right[row]] += right != encoded.right[row]
        flat = batch.input_ids.flatten()
        assert (flat[batch.where] == tokenizer.mask_token_id).all()
        assert (flat == tokenizer.mask_token_id).sum() == len(batch.where)
        masked += len(batch.where) - len(labelled)
        words += sum((~np.isin(encoded.ids[row], tokenizer.all_special_ids)).sum() for row in rows)
    assert wrong[0] / seen[0] == pytest.approx(0.35, abs=0.03)
    assert wrong[1] / seen[1] == pytest.approx(0.15, abs=0.03)
    assert masked / words == pytest.approx(settings.mask_rate, abs=0.01)


def test_a_long_sentence_loses_its_end_but_not_the_words_around_the_label(text):
    tokenizer = train_tokenizer(text.sentences, 600, text.words)
    long = Verbalised("film " * 200, SENTIMENT_TEMPLATES[0], ("terrible", "great"), 1)
    encoded = encode_text(Text((), (long,), text.words, ""), tokenizer, SMALL)
    assert len(encoded.ids[0]) <= SMALL.max_length
    assert encoded.ids[0][encoded.slot[0]] == tokenizer.mask_token_id
    end = [*tokenizer.encode("It was", add_special_tokens=False), tokenizer.mask_token_id]
    end += [tokenizer.convert_tokens_to_ids("."), tokenizer.sep_token_id]
    assert encoded.ids[0][-len(end) :].tolist() == end


def test_some_sentences_are_followed_by_an_answered_one_of_each_label(text):
    tokenizer = train_tokenizer(text.sentences, 600, text.words)
    settings = TinySettings(**{**SMALL.__dict__, "max_length": 40})
    encoded = demonstrated(encode_text(text, tokenizer, settings), text, settings)
    plain = len(text.plain)
    shown = [n for n in range(plain, len(encoded)) if (encoded.ids[n] == tokenizer.sep_token_id).sum() == 3]
    assert len(shown) / len(text.verbalised) == pytest.approx(tiny.DEMONSTRATED, abs=0.1)
    for row in shown:
        one = text.verbalised[row - plain]
        parts = tokenizer.decode(encoded.ids[row]).split("[SEP]")[1:3]
        assert [word in part for word, part in zip(one.words, parts, strict=True)] == [True, True]
        assert (encoded.ids[row] == tokenizer.mask_token_id).sum() == 1
        assert encoded.ids[row][encoded.slot[row]] == tokenizer.mask_token_id


def test_every_sentence_is_seen_once_before_any_is_seen_twice(text):
    tokenizer = train_tokenizer(text.sentences, 600, text.words)
    encoded = encode_text(text, tokenizer, SMALL)
    stream = batches(encoded, SMALL, np.random.default_rng(0))
    seen: list[int] = []
    while len(seen) < len(encoded):
        seen += next(stream).tolist()
    assert sorted(seen) == list(range(len(encoded)))


def test_it_learns_which_word_belongs_to_a_sentence(tmp_path, text):
    settings = TinySettings(
        **{**SMALL.__dict__, "steps": 150, "flips": 0.0, "lean": 0.0, "lr": 3e-3, "hidden_size": 48}
    )
    pretrained = Pretrained.load(tiny_mlm(tmp_path, text=text, settings=settings, progress=False))
    from lm_bff.data import Example
    from lm_bff.settings import TrialSettings
    from lm_bff.training import run_trial

    examples = [Example((one.sentence,), str(one.label)) for one in text.verbalised]
    result = run_trial(pretrained, TASKS["sst-2"], examples, [], examples, TrialSettings(method="zero-shot"))
    assert result.test["sst-2"]["acc"] > 0.9


# ---------------------------------------------------------------------------------------------------------------- text


def test_every_way_of_saying_it_meets_every_label():
    made = put_into_words(
        [f"s{n}" for n in range(240)], [n % 2 for n in range(240)], SENTIMENT_TEMPLATES, SENTIMENT_WORDS
    )
    ways = {(one.template, one.words, one.label) for one in made}
    distinct = len(set(SENTIMENT_TEMPLATES)) * len(set(SENTIMENT_WORDS)) * 2
    assert len(ways) == distinct


def test_an_unknown_source_of_text_is_refused():
    with pytest.raises(InputError, match="text=hub"):
        training_text("hub")


@pytest.mark.mirror
def test_nothing_that_is_read_is_in_the_few_shot_files_or_test_sets():
    held_out = held_out_sentences()
    assert len(held_out) > 7_000
    keys = {letters(text) for text in held_out}
    whole = "\n".join(keys)
    text = training_text("mirror")
    assert len(text.verbalised) > 30_000
    assert {len(one.words) for one in text.verbalised} == {2, 6}
    read = {letters(one): one for one in text.sentences}
    assert not keys & set(read)
    # Plain searches, written without the filter's index: of longer ones some, for there are many.
    for number, (key, one) in enumerate(read.items()):
        if len(words(one)) > 2 and (len(key) < 30 or number % 7 == 0):
            assert key not in whole, one
    joined = "\n".join(read)
    for key, one in [(letters(one), one) for one in held_out[::7]]:
        assert len(words(one)) < 4 or len(key) < RUN or key not in joined, one
