"""The server back end against a local HTTP server that shows every fault there is."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from shared import InputError
from shared.generation import FailedItems, Request, make_generator

KEY = "sk-do-not-show-me-5a1f"
LONG_WAIT_S = 30.0


class FaultyServer:
    """An OpenAI-compatible server. A message may begin with a fault, `[fault]` for ever or `[fault*n]` for the first n
    tries; then it is answered with its reversed text. Counts what it was asked and answered.
    """

    head: ClassVar[dict] = {"id": "x", "object": "o", "created": 1, "model": "m"}

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                with server.lock:
                    server.asked[text] += 1
                    server.bodies.append({"path": self.path, **body})
                    server.keys.add(self.headers["Authorization"])
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    time.sleep(server.delay_s)
                    self.respond(text, server.asked[text])
                finally:
                    with server.lock:
                        server.at_once -= 1

            def respond(self, text: str, attempt: int) -> None:
                fault = text[1:].split("]")[0] if text.startswith("[") else ""
                fault, _, times = fault.partition("*")
                if fault and (not times or attempt <= int(times)):
                    return getattr(self, f"fault_{fault}")()
                return self.answer(text[::-1], "stop")

            def answer(self, text: str, reason: str) -> None:
                choice = {"index": 0, "finish_reason": reason}
                chat = self.path.endswith("/chat/completions")
                choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                usage = {"prompt_tokens": 7, "completion_tokens": len(text), "total_tokens": 7 + len(text)}
                self.send(
                    200, {"id": "x", "object": "o", "created": 1, "model": "m", "choices": [choice], "usage": usage}
                )

            def send(self, status: int, body: dict | bytes, headers: dict | None = None) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def error(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
                self.send(status, {"error": {"message": message, "code": code, "type": "t"}}, headers)

            def fault_429(self) -> None:
                self.error(429, "slow down", headers={"Retry-After": "0.07"})

            def fault_429late(self) -> None:
                self.error(429, "slow down", headers={"Retry-After": "86400"})

            def fault_429quota(self) -> None:
                self.error(429, "you exceeded your current quota", "insufficient_quota")

            def fault_500(self) -> None:
                self.error(500, "boom")

            def fault_401(self) -> None:
                self.error(401, f"Incorrect API key provided: {self.headers['Authorization']}", "invalid_api_key")

            def fault_404(self) -> None:
                self.error(404, "The model does not exist", "model_not_found")

            def fault_400(self) -> None:
                self.error(400, "maximum context length is 8192 tokens", "context_length_exceeded")

            def fault_filtered(self) -> None:
                self.error(400, "The response was filtered", "content_filter")

            def fault_cutoff(self) -> None:
                self.answer("half an answ", "content_filter")

            def fault_hang(self) -> None:
                server.released.wait(LONG_WAIT_S)
                self.close_connection = True

            def fault_malformed(self) -> None:
                self.send(200, b'{"choices": [{"mess')

            def fault_empty(self) -> None:
                self.send(200, server.head | {"choices": []})

            def fault_drop(self) -> None:
                self.close_connection = True
                self.connection.close()

        return Handler


@pytest.fixture
def server():
    server = FaultyServer()
    yield server
    server.close()


@pytest.fixture
def connect(server, monkeypatch):
    """`connect(option=...)`: a generator at the faulty server, with short waits."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    opened = []

    def generator(**options):
        settings = {"backend": "openai", "model": "judge", "base_url": server.url, "api_key_env": "JUDGE_KEY"}
        settings |= {"backoff_s": 0.001, "max_retries": 3, "timeout_s": 20, **options}
        opened.append(make_generator(settings))
        return opened[-1]

    yield generator
    for one in opened:
        one.close()


def chat(text: str, id: str | None = None, **decoding) -> Request:
    return Request(id=id or text, messages=[{"role": "user", "content": text}], **decoding)


def test_answers_come_in_order_with_bounded_concurrency(server, connect):
    server.delay_s = 0.02
    requests = [chat(f"question {i}") for i in range(40)]
    answers = connect(concurrency=5).generate(requests)
    assert [(a.id, a.text, a.finish_reason) for a in answers] == [(r.id, r.id[::-1], "stop") for r in requests]
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (7, len("question 0"))
    assert 1 < server.most_at_once <= 5


def test_the_request_is_passed_on_as_it_is(server, connect):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    decoding = {"max_tokens": 50, "stop": ["\n"], "logit_bias": {17: -100}, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    generator = connect(extra_body={"reasoning_effort": "low"})
    generator.generate([Request(id="a", messages=messages, **decoding), Request(id="b", prompt="plain", max_tokens=9)])
    chat_body, plain_body = sorted(server.bodies, key=lambda body: body["path"])
    decoding["logit_bias"] = {"17": -100}
    expected = {"path": "/v1/chat/completions", "model": "judge", "messages": messages, "reasoning_effort": "low"}
    assert chat_body == expected | decoding
    expected = {"path": "/v1/completions", "model": "judge", "prompt": "plain", "reasoning_effort": "low"}
    assert plain_body == expected | {"max_tokens": 9, "temperature": 0.0}


def test_fields_a_server_refuses_can_be_renamed_and_left_out(server, connect):
    connect(max_tokens_field="max_completion_tokens", omit=["temperature"]).generate([chat("x", max_tokens=5)])
    assert server.bodies[0]["max_completion_tokens"] == 5
    assert not {"temperature", "max_tokens"} & set(server.bodies[0])


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_a_passing_fault_is_tried_again(server, connect, fault):
    text = f"[{fault}*2]hello"
    assert connect().generate([chat(text)])[0].text == text[::-1]
    assert server.asked[text] == 3


def test_a_hanging_server_is_given_up_and_asked_again(server, connect):
    text = "[hang*1]hello"
    assert connect(timeout_s=0.5).generate([chat(text)])[0].text == text[::-1]
    assert server.asked[text] == 2


def test_retry_after_is_honoured(server, connect, caplog):
    with caplog.at_level(logging.INFO, "shared.generation.server_backend"):
        connect(backoff_s=30).generate([chat("[429*1]x")])
    assert "trying again in 0.1 s" in caplog.text


def test_back_off_grows_and_is_jittered(connect, caplog, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    with caplog.at_level(logging.INFO, "shared.generation.server_backend"):
        connect(backoff_s=0.4, max_wait_s=0.9).generate([chat("[500*3]x")])
    assert [message.rsplit("in ", 1)[1] for message in caplog.messages] == ["0.3 s", "0.6 s", "0.7 s"]


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [
        ("500", 4, "HTTP 500: boom, after 4 tries"),
        ("drop", 4, "no connection"),
        ("429", 4, "HTTP 429: slow down, after 4 tries"),
        ("429late", 1, "asks to wait 86400 s"),
        ("400", 1, "HTTP 400: maximum context length is 8192 tokens"),
        ("malformed", 1, "not what an OpenAI-compatible server sends"),
        ("empty", 1, "not what an OpenAI-compatible server sends"),
    ],
)
def test_a_lasting_fault_fails_its_item_alone(server, connect, tmp_path, fault, tries, said):
    requests = [chat("first"), chat(f"[{fault}]bad"), chat("last")]
    journal = tmp_path / "run.jsonl"
    with pytest.raises(FailedItems, match="1 of 3 items") as error:
        connect(concurrency=1).generate(requests, journal)
    assert said in str(error.value)
    assert server.asked[f"[{fault}]bad"] == tries
    with pytest.raises(FailedItems):
        connect().generate(requests, journal)
    assert (server.asked["first"], server.asked["last"]) == (1, 1)
    assert server.asked[f"[{fault}]bad"] == 2 * tries


@pytest.mark.parametrize(
    ("fault", "said"),
    [("401", "JUDGE_KEY is not accepted"), ("404", "model='judge' is not served"), ("429quota", "quota is used up")],
)
def test_what_is_wrong_with_every_request_ends_the_run_at_once(server, connect, tmp_path, fault, said):
    requests = [chat("first"), chat(f"[{fault}]x"), *(chat(f"later {i}") for i in range(50))]
    with pytest.raises(InputError, match=said) as error:
        connect(concurrency=1).generate(requests, tmp_path / "run.jsonl")
    assert not isinstance(error.value, FailedItems)
    assert server.asked == {"first": 1, f"[{fault}]x": 1}
    assert connect().generate(requests[:1], tmp_path / "run.jsonl")[0].text == "tsrif"
    assert server.asked["first"] == 1


@pytest.mark.parametrize("fault", ["filtered", "cutoff"])
def test_a_content_filters_refusal_is_an_answer(server, connect, tmp_path, fault):
    generator, journal = connect(), tmp_path / "run.jsonl"
    for _ in range(2):
        [answer] = generator.generate([chat(f"[{fault}]x")], journal)
        assert (answer.text, answer.finish_reason, answer.failed) == ("", "content_filter", False)
    assert server.asked[f"[{fault}]x"] == 1


def test_the_key_is_sent_and_shown_nowhere(server, connect, tmp_path, caplog):
    journal = tmp_path / "run.jsonl"
    with caplog.at_level(logging.DEBUG):
        generator = connect()
        with pytest.raises(FailedItems) as failed:
            generator.generate([chat("fine"), chat("[500]x"), chat("[400]y")], journal)
        with pytest.raises(InputError) as refused:
            generator.generate([chat("[401]x")], journal)
    assert server.keys == {f"Bearer {KEY}"}
    assert "***" in str(refused.value)
    for text in (caplog.text, str(failed.value), str(refused.value), journal.read_text(), repr(vars(generator).keys())):
        assert KEY not in text


def test_without_a_server_the_run_ends_with_its_address(connect, server):
    server.close()
    with pytest.raises(InputError, match="does not answer"):
        connect(max_retries=1).generate([chat(f"x{i}") for i in range(5)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "127.0.0.1:8000"}, "is not an http"),
        ({"base_url": "http://me:secret@127.0.0.1/v1"}, "environment variable"),
        ({"base_url": "https://api.openai.com/v1", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY holds no key"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"price": {"prompt": 1}}, "needs prompt and completion"),
        ({"api_key": KEY}, "api_key_env"),
    ],
)
def test_settings_that_cannot_work_are_refused(connect, options, said):
    with pytest.raises(InputError, match=said) as error:
        connect(**options)
    assert KEY not in str(error.value)
    assert "secret" not in str(error.value)


def test_candidates_need_the_models_tokenizer(connect):
    with pytest.raises(InputError, match="tokenizer="):
        connect().generate([chat("x", candidates=["a"])])


def test_a_run_killed_twice_never_asks_again_what_was_answered(server, tmp_path):
    server.delay_s = 0.05
    journal = tmp_path / "run.jsonl"
    run = (
        "from shared.generation import Request, make_generator\n"
        "requests = [Request(id=f'q{i}', prompt=f'question {i}') for i in range(60)]\n"
        f"options = {{'backend': 'openai', 'model': 'judge', 'base_url': {server.url!r}, 'concurrency': 3}}\n"
        f"answers = make_generator(options).generate(requests, {str(journal)!r})\n"
    )
    finished: set[str] = set()
    for at_least in (10, 30):
        process = subprocess.Popen([sys.executable, "-c", run], env=os.environ.copy(), stderr=subprocess.DEVNULL)
        while not journal.exists() or journal.read_bytes().count(b"\n") < at_least:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        finished |= answered(journal)
        asked_before = server.asked.copy()
    here: dict = {}
    exec(run, here)
    assert [(a.id, a.text) for a in here["answers"]] == [(f"q{i}", f"question {i}"[::-1]) for i in range(60)]
    again = {text for text in server.asked if server.asked[text] > asked_before[text]}
    assert len(finished) >= 29
    assert not again & {f"question {id[1:]}" for id in finished}
    # What was in flight at a kill is asked again, and nothing else is.
    assert sum(server.asked.values()) <= 60 + 2 * 3
    assert len(answered(journal)) == 60


def answered(journal: Path) -> set[str]:
    whole = journal.read_bytes()
    return {json.loads(line)["id"] for line in whole[: whole.rindex(b"\n")].splitlines()[1:]}
