"""vLLM for real, on this machine's CPU or GPU: in process, and behind `vllm serve` on 127.0.0.1.

The two engines start side by side (tens of seconds, nearly all of it imports) and serve the whole module.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from shared import InputError
from shared.generation import FailedItems, Request, make_generator
from shared.generation.tiny_model import write_tiny_llama

pytestmark = pytest.mark.vllm
TEXTS = ["the quick brown fox jumps over the lazy dog", "Output (a) is better. Output (b) is better.", "a b c d e f"]
MAX_MODEL_LEN = 384
START_S = 600


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_llama(folder, TEXTS * 10, vocabulary=400, max_position_embeddings=512)


@pytest.fixture(scope="module")
def environment():
    """Threads are not pinned to cores (others use them too), and the server's KV cache is small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def serving(tiny, environment, tmp_path_factory):
    """`vllm serve`, started but perhaps not ready: (base_url, process, log)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        version("vllm")
        command = [Path(sys.executable).with_name("vllm"), "serve", tiny]
    except PackageNotFoundError:  # vllm-cpu, whose `vllm serve` fails as it asks for the version of a package `vllm`
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny]
    command += [
        "--served-model-name",
        "tiny",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    command += ["--max-model-len", str(MAX_MODEL_LEN), "--kv-cache-memory-bytes", str(2**28)]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    yield f"http://127.0.0.1:{port}/v1", process, log
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def engine(tiny, serving):
    settings = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "enforce_eager": True, "kv_cache_gib": 0.25}
    with make_generator({"backend": "vllm", "model": str(tiny), **settings}) as generator:
        yield generator


@pytest.fixture(scope="module")
def base_url(engine, serving) -> str:
    url, process, log = serving
    for _ in range(START_S * 2):
        try:
            urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5)
            return url
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(f"vllm serve is not ready after {START_S} s:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def reference(tiny):
    return make_generator({"backend": "transformers", "model": str(tiny), "max_model_len": MAX_MODEL_LEN})


def prompts(count: int, **decoding) -> list[Request]:
    return [
        Request(id=f"q{i}", messages=[{"role": "user", "content": f"{i} " + "lazy dog " * (i % 13)}], **decoding)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def mixed() -> list[Request]:
    """50 greedy chats and some plain prompts, with limits, stop strings and biases of all kinds."""
    chats = [
        Request(
            id=f"m{i}",
            messages=request.messages,
            max_tokens=1 + i % 24,
            stop=[[], ["e", "is"], ["ab"]][i % 3],
            logit_bias={} if i % 4 else {70 + i: 4.0, 300: -100.0},
        )
        for i, request in enumerate(prompts(50))
    ]
    plain = [Request(id=f"p{n}", prompt="fox " * n, max_tokens=9, add_special_tokens=n % 2 == 0) for n in range(1, 9)]
    return chats + plain


def test_greedy_texts_equal_transformers(engine, reference, mixed):
    assert engine.generate(mixed) == reference.generate(mixed)


def test_samples_are_drawn_by_the_requests_seed_in_any_batch(engine):
    requests = prompts(8, max_tokens=12, temperature=1.0, top_p=0.95)
    together = engine.generate(requests)
    assert len({completion.text for completion in together}) == 8
    assert [engine.generate([request])[0] for request in requests] == together


def test_candidate_scores_equal_transformers(engine, reference):
    candidates = ["Output (a)", "Output (b)", "Output (b) is better.", "dog", "d"]
    requests = [
        Request(id="both", prompt="the quick", max_tokens=4, candidates=candidates, logit_bias={5: 50.0}),
        *(Request(id=r.id, messages=r.messages, max_tokens=0, candidates=candidates) for r in prompts(6)),
    ]
    for mine, theirs in zip(engine.generate(requests), reference.generate(requests), strict=True):
        assert mine.candidate_logprobs == pytest.approx(theirs.candidate_logprobs, abs=1e-3)
        assert (mine.text, mine.completion_tokens) == (theirs.text, theirs.completion_tokens)


def test_a_prompt_beyond_the_context_is_refused_and_one_that_just_fits_is_answered(engine):
    with pytest.raises(InputError, match=r"item 'long': .* exceed the 384 positions"):
        engine.generate([*prompts(1), Request(id="long", prompt="fox " * 400, max_tokens=8)])
    prompt = "a" * 1000
    while len(engine.tokenizer(prompt)["input_ids"]) > MAX_MODEL_LEN - 8:
        prompt = prompt[:-1]
    [fits] = engine.generate([Request(id="fits", prompt=prompt, max_tokens=8)])
    assert fits.prompt_tokens + 8 == MAX_MODEL_LEN
    with pytest.raises(InputError, match="'fits'"):
        engine.generate([Request(id="fits", prompt=prompt, max_tokens=9)])


def test_a_resumed_run_ends_as_an_uninterrupted_one(engine, mixed, tmp_path):
    journal = tmp_path / "run.jsonl"
    engine.generate(mixed[:20], journal)
    half = journal.read_bytes()
    journal.write_bytes(half[:-15])
    assert engine.generate(mixed, journal) == engine.generate(mixed)
    assert journal.read_bytes().startswith(half[: half[:-15].rindex(b"\n") + 1])
    assert journal.read_bytes().count(b"\n") == 1 + len(mixed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": {"max_num_sequences": 3}}, "max_num_seqs"),
        ({"engine": {"dtype": "float32"}}, "beside `engine`"),
        ({"engine": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"max_model_len": 100000}, "vLLM refuses"),
    ],
)
def test_settings_vllm_cannot_take_are_refused(tiny, options, said):
    with pytest.raises(InputError, match=said):
        make_generator({"backend": "vllm", "model": str(tiny), **options})


def test_served_texts_equal_those_in_process(engine, base_url, mixed):
    with make_generator({"backend": "openai", "model": "tiny", "base_url": base_url}) as server:
        served = server.generate(mixed)
    for mine, theirs in zip(served, engine.generate(mixed), strict=True):
        assert mine == theirs


def test_served_candidate_scores_equal_those_in_process(engine, base_url, tiny):
    requests = prompts(4, max_tokens=3, candidates=["Output (a)", "Output (b)", "d"])
    with make_generator({"backend": "openai", "model": "tiny", "base_url": base_url, "tokenizer": str(tiny)}) as server:
        for mine, theirs in zip(server.generate(requests), engine.generate(requests), strict=True):
            assert mine.candidate_logprobs == pytest.approx(theirs.candidate_logprobs, abs=1e-3)
            assert mine.text == theirs.text


def test_a_served_models_context_is_asked_of_the_server(base_url, tiny):
    too_long = Request(id="long", prompt="fox " * 400, max_tokens=8)
    options = {"backend": "openai", "model": "tiny", "base_url": base_url}
    with make_generator({**options, "tokenizer": str(tiny)}) as server:
        assert server.max_model_len == MAX_MODEL_LEN
        with pytest.raises(InputError, match=r"item 'long': .* exceed the 384 positions"):
            server.generate([too_long])
    with make_generator(options) as server, pytest.raises(FailedItems, match=r"long: HTTP 400: .*384"):
        server.generate([*prompts(2, max_tokens=2), too_long])


def test_a_model_that_is_not_served_is_named(base_url):
    server = make_generator({"backend": "openai", "model": "other", "base_url": base_url})
    with server, pytest.raises(InputError, match="model='other' is not served"):
        server.generate(prompts(1))
