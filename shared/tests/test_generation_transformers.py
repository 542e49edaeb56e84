"""The transformers back end against one-by-one `generate`, and a run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared import InputError
from shared.generation import Generator, Request, make_generator
from shared.generation.prompts import EncodedRequest
from shared.generation.tiny_model import write_tiny_llama
from shared.generation.transformers_backend import RowDecoding, length_buckets

TEXTS = ["the quick brown fox jumps over the lazy dog", "Output (a) is better. Output (b) is better.", "a b c d e f"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), TEXTS * 10, vocabulary=400, max_position_embeddings=512)


@pytest.fixture(scope="module")
def generator(tiny) -> Generator:
    return make_generator({"backend": "transformers", "model": str(tiny), "batch_tokens": 600})


@pytest.fixture(scope="module")
def reference(tiny):
    """`reference(request)`: stock `generate`, one prompt, no padding; the new token ids."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)

    def answer(request: Request) -> list[int]:
        if request.messages:
            text = tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(request.prompt, return_tensors="pt")["input_ids"]
        new = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False, pad_token_id=0
        )
        return new[0, ids.shape[1] :].tolist()

    answer.tokenizer, answer.model = tokenizer, model
    return answer


def prompts(count: int, **decoding) -> list[Request]:
    return [
        Request(id=f"q{i}", messages=[{"role": "user", "content": f"{i} " + "lazy dog " * (i % 13)}], **decoding)
        for i in range(count)
    ]


def test_batched_answers_equal_one_by_one_generate(generator, reference):
    requests = prompts(30, max_tokens=16) + [Request(id=f"p{n}", prompt="fox " * n, max_tokens=n) for n in range(1, 8)]
    for request, completion in zip(requests, generator.generate(requests), strict=True):
        new = reference(request)
        ended = new[-1] == reference.tokenizer.eos_token_id
        assert completion.completion_tokens == len(new)
        assert completion.finish_reason == ("stop" if ended else "length")
        # Half a character at the end is left out, as vLLM does; `decode` shows it as a replacement character.
        assert completion.text.rstrip("\ufffd") == reference.tokenizer.decode(new, skip_special_tokens=True).rstrip(
            "\ufffd"
        )


def test_an_end_token_ends_an_answer(generator, reference):
    request = Request(id="a", prompt="fox", max_tokens=20, logit_bias={reference.tokenizer.eos_token_id: 100.0})
    [completion] = generator.generate([request])
    assert (completion.text, completion.finish_reason, completion.completion_tokens) == ("", "stop", 1)


def test_stop_strings_end_each_row_where_it_meets_its_own(generator):
    free = generator.generate(prompts(8, max_tokens=24))
    for completion in free:
        assert len(completion.text) > 6
    requests = [
        Request(id=c.id, messages=r.messages, max_tokens=24, stop=[c.text[4:6], "not in any answer"])
        for r, c in zip(prompts(8), free, strict=True)
    ]
    for before, stopped in zip(free, generator.generate(requests), strict=True):
        stop = before.text[4:6]
        assert stopped.text == before.text[: before.text.index(stop)]
        assert stopped.finish_reason == "stop"
        assert stopped.completion_tokens < before.completion_tokens


def test_a_logit_bias_steers_its_own_row_only(generator):
    plain, biased = prompts(2, max_tokens=5)
    wanted = generator.tokenizer("dog", add_special_tokens=False)["input_ids"][0]
    biased = Request(id="b", messages=biased.messages, max_tokens=5, logit_bias={wanted: 100.0})
    before = generator.generate([plain])
    after = generator.generate([plain, biased])
    assert after[0] == before[0]
    assert after[1].text == generator.tokenizer.decode([wanted]) * 5


def test_samples_do_not_depend_on_the_batch_they_are_drawn_in(generator):
    requests = prompts(12, max_tokens=10, temperature=1.0, top_p=0.9)
    together = generator.generate(requests)
    assert [generator.generate([request])[0] for request in requests] == together
    assert len({completion.text for completion in together}) == 12


def test_samples_follow_the_temperature_and_top_p(generator):
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    requests = [Request(id=str(i), prompt="x", temperature=1.0, top_p=0.9) for i in range(4000)]
    drawn = RowDecoding(requests, torch.device("cpu"))(None, logits.expand(4000, 4)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert torch.allclose(shares, expected, atol=0.03)
    assert shares[3] == 0


def test_candidate_scores_are_the_models_log_probabilities(generator, reference):
    candidates = ("Output (a)", "Output (b) is better.", "dog")
    requests = [
        Request(id="p", prompt="the quick", max_tokens=3, candidates=candidates, logit_bias={5: 50.0}),
        *(Request(id=f"n{n}", prompt="fox " * n, max_tokens=0, candidates=("dog",)) for n in (1, 30)),
    ]
    answers = generator.generate(requests)
    for request, completion in zip(requests, answers, strict=True):
        prompt = reference.tokenizer(request.prompt)["input_ids"]
        for candidate in request.candidates:
            ids = reference.tokenizer(candidate, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = reference.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            expected = sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids))
            assert completion.candidate_logprobs[candidate] == pytest.approx(expected, abs=1e-4)
    assert (answers[1].text, answers[1].completion_tokens) == ("", 0)


def test_buckets_keep_their_budget_and_lose_nothing(generator):
    items = list(generator.encoder.encode(prompts(40, max_tokens=8)))
    batches = list(length_buckets(items, 400))
    assert sorted(item.request.id for batch in batches for item in batch) == sorted(item.request.id for item in items)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(item.longest for item in batch) <= 400
    padded = sum(len(batch) * max(len(item.input_ids) for item in batch) for batch in batches)
    assert padded <= 1.1 * sum(len(item.input_ids) for item in items)
    assert isinstance(batches[0][0], EncodedRequest)


def test_a_prompt_beyond_the_models_positions_is_refused(generator):
    with pytest.raises(InputError, match=r"item 'long': .* exceed the 512 positions"):
        generator.generate([Request(id="long", prompt="fox " * 600, max_tokens=8)])


RUN = """
from shared.generation import Request, make_generator

def run(model, journal):
    requests = [Request(id=f"q{i}", prompt=f"{i} lazy dog", max_tokens=40, temperature=i % 2) for i in range(60)]
    generator = make_generator({"backend": "transformers", "model": model, "batch_tokens": 1})
    return generator.generate(requests, journal)
"""


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_a_killed_run_asks_nothing_twice_and_ends_as_an_uninterrupted_one(tiny, tmp_path):
    journal = tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", f"{RUN}\nrun({str(tiny)!r}, {str(journal)!r})"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while lines(journal) < 20:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = journal.read_bytes()[: journal.read_bytes().rindex(b"\n") + 1]
    assert 20 <= lines(journal) < 61
    here: dict = {}
    exec(RUN, here)
    resumed = here["run"](str(tiny), journal)
    assert journal.read_bytes().startswith(kept)
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == 60
    assert resumed == here["run"](str(tiny), tmp_path / "straight.jsonl")
