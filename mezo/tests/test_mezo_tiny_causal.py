"""The causal language model that is trained on the spot: what it reads, that it learns, that it is the same again."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_bff.offline_tasks import sentiment_rows
from mezo.data import load_splits
from mezo.objectives import objective_for
from mezo.offline_tasks import CLAUSE, house_rows
from mezo.tasks import get_task
from mezo.tiny_causal import TinyCausal, tiny_causal, training_texts
from shared import InputError

SMALL = TinyCausal(
    vocab_size=500,
    hidden_size=32,
    num_hidden_layers=1,
    steps=12,
    batch_size=4,
    length=48,
    opinions=300,
    other_texts=200,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("tiny"), SMALL, progress=False)


def test_it_reads_no_sentence_of_the_tasks():
    read = "\n".join(prompt for prompt, _ in training_texts(replace(SMALL, opinions=2000, other_texts=2000)))
    assert not [text for pair in sentiment_rows() for text in pair if text in read]
    held = set()
    for name, column in (("house-choice", "beginning"), ("house-answer", "passage")):
        for split in ("train", "validation"):
            held.update(clause for row in house_rows(name, split) for clause in CLAUSE.findall(row[column]))
    assert len(held) > 1000
    assert not held & set(CLAUSE.findall(read))


def test_a_part_of_the_answers_is_wrong_on_purpose():
    right, wrong = training_texts(SMALL), training_texts(SMALL, 0.25)
    known = dict(right)
    shared = [(prompt, answer) for prompt, answer in wrong if prompt in known]
    part = sum(known[prompt] != answer for prompt, answer in shared) / len(shared)
    assert 0.15 < part < 0.35


def test_training_lowers_the_loss_and_gives_the_same_bytes_again(folder, tmp_path):
    again = tiny_causal(tmp_path, SMALL, progress=False)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    longer = tiny_causal(tmp_path, replace(SMALL, steps=60), progress=False)
    losses = [json.loads((path / "training.json").read_text("utf-8"))["loss"] for path in (folder, longer)]
    assert losses[1] < losses[0] - 1
    assert longer != again


def test_a_finished_model_is_not_trained_again(folder):
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_causal(folder.parent, SMALL, progress=False) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["house-sentiment", "house-choice", "house-answer"])
@torch.no_grad()
def test_every_task_of_the_house_fits_it(folder, name):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    objective = objective_for(get_task(name), tokenizer, model_type=model.config.model_type)
    encoded = objective.encode(load_splits(get_task(name), num_train=8).train)
    assert torch.isfinite(objective.loss(model, encoded))
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 0


def test_an_unknown_family_is_named(tmp_path):
    with pytest.raises(InputError, match=r"tiny\.family='gpt2': choose opt, llama, qwen2"):
        tiny_causal(tmp_path, TinyCausal(family="gpt2"))
