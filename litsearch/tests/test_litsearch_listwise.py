"""Listwise reranking against a server with any fault: what becomes of every kind of reply, failure and kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from litsearch.rerank import Candidates, ListwiseReranker, Settings, statistics
from litsearch.rerank.__main__ import rerank
from litsearch.rerank.cost import estimate
from litsearch.rerank.mock import MockReranker
from litsearch.runs import read_run
from shared import InputError
from shared.generation import make_generator

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"max_retries": 2, "backoff_s": 0.01, "max_wait_s": 0.05}
KEY = "sk-never-to-be-shown-73c1"


def reply_with(order) -> str:
    return " > ".join(f"[{k}]" for k in order)


class FaultyServer:
    """A chat server whose `respond(body, attempt)` gives (status, body or text of the answer, headers)."""

    def __init__(self, respond):
        self.respond, self.asked, self.shown = respond, Counter(), []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = json.dumps(body["messages"])
                with outer.lock:
                    outer.asked[key] += 1
                    outer.shown.append((len(body["messages"]) - 4) // 2)
                    attempt = outer.asked[key]
                status, said, headers = outer.respond(body, attempt)
                if isinstance(said, str):
                    said = completion(said)
                content = json.dumps(said).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def completion(text: str, reason: str = "stop") -> dict:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def shown(body: dict) -> int:
    return (len(body["messages"]) - 4) // 2


def reversed_reply(body: dict, attempt: int = 1):
    return 200, reply_with(range(shown(body), 0, -1)), {}


def too_long(message: str = "This model's maximum context length is 8192 tokens."):
    return 400, {"error": {"message": message, "code": "context_length_exceeded", "type": "t"}}, {}


@pytest.fixture
def serve(monkeypatch):
    """serve(respond) -> (server, a generator that asks it)."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    opened = []

    def start(respond=reversed_reply, **options):
        server = FaultyServer(respond)
        generator = make_generator({"backend": "openai", "model": "m", "base_url": server.url, **QUICK, **options})
        opened.extend([generator, server])
        return server, generator

    yield start
    for one in opened:
        one.close()


def items(count: int = 1, n: int = 10) -> list[Candidates]:
    return [Candidates(f"q{i}", f"question {i}", [f"text {i}.{k}" for k in range(n)]) for i in range(count)]


def test_replies_become_orders_and_are_counted(serve):
    server, generator = serve()
    rankings = ListwiseReranker(generator).rank(items(3), progress=False)
    assert [ranking.order for ranking in rankings] == [list(range(9, -1, -1))] * 3
    stats = statistics(rankings)
    assert (stats["replies"], stats["complete"], stats["reordered"], stats["unparsable"]) == (3, 3, 3, 0)
    assert stats["finish_reasons"] == {"stop": 3}
    assert (stats["prompt_tokens"], stats["completion_tokens"]) == (33, 15)
    assert server.shown == [10, 10, 10]


def test_what_is_sent_is_what_the_paper_sent(serve):
    bodies = []

    def keep(body, attempt):
        bodies.append(body)
        return reversed_reply(body)

    _, generator = serve(keep)
    ListwiseReranker(generator).rank(items(), progress=False)
    [body] = bodies
    assert set(body) == {"model", "messages", "temperature", "max_tokens"}
    assert (body["temperature"], body["max_tokens"]) == (0, 2000)


@pytest.mark.parametrize(
    ("reply", "reason"), [("", "stop"), ("I would rather not.", "stop"), ("", "content_filter"), ("[77]", "length")]
)
def test_replies_without_a_number_of_a_paper_leave_the_order_and_are_counted(serve, reply, reason):
    _, generator = serve(lambda body, attempt: (200, completion(reply, reason), {}))
    [ranking] = ListwiseReranker(generator).rank(items(), progress=False)
    assert ranking.order == list(range(10))
    assert ranking.failure is None
    stats = statistics([ranking])
    assert (stats["unparsable"], stats["missing"], stats["finish_reasons"]) == (1, 10, {reason: 1})
    assert ranking.about()["finish_reason"] == [reason]


def test_a_reply_that_was_cut_off_counts_as_far_as_it_goes(serve):
    _, generator = serve(lambda body, attempt: (200, completion("[4] > [2] > [", "length"), {}))
    [ranking] = ListwiseReranker(generator).rank(items(n=5), progress=False)
    assert ranking.order == [3, 1, 0, 2, 4]
    assert statistics([ranking])["missing"] == 3


def test_papers_that_do_not_fit_are_left_out_a_fifth_at_a_time(serve):
    server, generator = serve(lambda body, attempt: too_long() if shown(body) > 60 else reversed_reply(body))
    [ranking] = ListwiseReranker(generator).rank(items(n=100), progress=False)
    assert server.shown == [100, 80, 60]
    assert ranking.order == [*range(59, -1, -1), *range(60, 100)]
    assert statistics([ranking])["shrunk"] == 1
    assert ranking.about()["shown"] == [60]


@pytest.mark.parametrize(("n", "tried"), [(100, [100, 80, 60]), (7, [7, 6, 5, 4, 3]), (4, [4, 3, 2]), (2, [2])])
def test_a_prompt_that_never_fits_ends_in_the_order_there_was(serve, n, tried):
    """In the release, fewer than five papers are tried for ever."""
    server, generator = serve(lambda body, attempt: too_long())
    [ranking] = ListwiseReranker(generator).rank(items(n=n), progress=False)
    assert server.shown == tried
    assert ranking.order == list(range(n))
    stats = statistics([ranking])
    assert (stats["too_long_at_any_size"], stats["replies"], stats["failures"]) == (1, 0, {})


def test_one_paper_is_not_asked_about(serve):
    server, generator = serve()
    rankings = ListwiseReranker(generator).rank([*items(n=1), Candidates("empty", "q", [])], progress=False)
    assert [ranking.order for ranking in rankings] == [[0], []]
    assert server.shown == []


def test_a_rate_limit_is_waited_for(serve):
    def limited(body, attempt):
        if attempt < 3:
            return 429, {"error": {"message": "slow down"}}, {"Retry-After": "0.02"}
        return reversed_reply(body)

    server, generator = serve(limited)
    [ranking] = ListwiseReranker(generator).rank(items(), progress=False)
    assert ranking.order == list(range(9, -1, -1))
    assert server.shown == [10, 10, 10]  # never fewer papers


@pytest.mark.parametrize(
    ("status", "message", "kind", "tries"),
    [
        (429, "slow down", "rate limit", 3),
        (500, "boom", "server", 3),
        (400, "invalid content", "refused", 1),
        (422, "no such field", "refused", 1),
    ],
)
def test_other_failures_are_bounded_and_named_and_do_not_shrink(serve, status, message, kind, tries):
    server, generator = serve(lambda body, attempt: (status, {"error": {"message": message}}, {}))
    [ranking] = ListwiseReranker(generator).rank(items(), progress=False)
    assert server.shown == [10] * tries
    assert message in ranking.failure
    assert ranking.order == list(range(10))
    assert statistics([ranking])["failures"] == {kind: 1}


def test_a_key_that_is_not_accepted_ends_the_run_at_once_and_is_not_shown(serve):
    server, generator = serve(lambda body, attempt: (401, {"error": {"message": f"bad key {KEY}"}}, {}), concurrency=1)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not accepted") as error:
        ListwiseReranker(generator).rank(items(20), progress=False)
    assert len(server.shown) == 1
    assert KEY not in str(error.value)


def test_a_server_that_is_not_there_ends_in_one_clear_error(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    generator = make_generator({"backend": "openai", "model": "m", "base_url": url, **QUICK})
    with generator, pytest.raises(InputError, match=r"base_url=.* does not answer: no connection"):
        ListwiseReranker(generator).rank(items(20), progress=False)


def test_sliding_windows_carry_the_best_papers_upwards(serve):
    best = {f"text 0.{k}" for k in (17, 38)}

    def best_first(body, attempt):
        texts = [turn["content"].split(" ", 1)[1] for turn in body["messages"][3:-1:2]]
        order = sorted(range(1, len(texts) + 1), key=lambda k: texts[k - 1] not in best)
        return 200, reply_with(order), {}

    server, generator = serve(best_first)
    [ranking] = ListwiseReranker(generator, Settings(mode="sliding", window=20, step=10)).rank(items(n=40), False)
    assert server.shown == [20, 20, 20]
    assert ranking.order[:3] == [17, 38, 0]
    assert sorted(ranking.order) == list(range(40))


def test_a_window_that_does_not_fit_leaves_the_others_alone(serve):
    def picky(body, attempt):
        return too_long() if "text 0.35" in json.dumps(body) else reversed_reply(body)

    _, generator = serve(picky)
    settings = Settings(mode="sliding", window=10, step=5)
    [ranking] = ListwiseReranker(generator, settings).rank(items(n=40), progress=False)
    assert sorted(ranking.order) == list(range(40))
    assert statistics([ranking])["too_long_at_any_size"] >= 1
    assert ranking.order[0] != 0


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_prompt_known_to_be_too_long_is_not_sent_again(serve, tmp_path):
    broken = [True]

    def respond(body, attempt):
        if shown(body) > 8:
            return too_long()
        return (500, {"error": {"message": "boom"}}, {}) if broken[0] else reversed_reply(body)

    server, generator = serve(respond)
    reranker = ListwiseReranker(generator, journal=tmp_path / "answers.jsonl")
    assert "boom" in reranker.rank(items(), progress=False)[0].failure
    assert server.shown == [10, 8, 8, 8]
    broken[0] = False
    [ranking] = reranker.rank(items(), progress=False)
    assert ranking.order == [7, 6, 5, 4, 3, 2, 1, 0, 8, 9]
    assert server.shown == [10, 8, 8, 8, 8]


def test_a_journal_of_another_model_is_refused(serve, tmp_path):
    journal = tmp_path / "answers.jsonl"
    _, generator = serve()
    ListwiseReranker(generator, journal=journal).rank(items(), progress=False)
    with pytest.raises(InputError, match="belongs to another run"):
        ListwiseReranker(MockReranker("identity"), journal=journal).rank(items(), progress=False)


def openai(url: str) -> list[str]:
    fast = [f"llm.generator.{name}={value}" for name, value in QUICK.items()]
    return ["llm=openai", "model=m", f"base_url={url}", *fast]


def test_a_run_killed_twice_ends_like_an_uninterrupted_one_and_asks_nothing_twice(
    serve, run_overrides, config, tmp_path
):
    """SIGKILL in the middle: what the journal holds is not asked again."""
    slow = threading.Event()

    def respond(body, attempt):
        slow.wait(0.1)
        return reversed_reply(body)

    server, _ = serve(respond)
    settings = [
        *run_overrides,
        *openai(server.url),
        "mode=sliding",
        "window=2",
        "step=1",
        "llm.generator.concurrency=1",
    ]
    journal = tmp_path / "out" / "small.title_abstract.bm25.rerank-m.answers.jsonl"
    command = [sys.executable, "-m", "litsearch.rerank", *settings]
    kept: set[str] = set()
    for at_least in (3, 8):
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < at_least:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "it never got there"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = keys(journal)
        assert not journal.with_name("small.title_abstract.bm25.rerank-m.jsonl").exists()
    asked_before = sum(server.asked.values())
    slow.set()
    resumed = read_run(rerank(config(*settings, name="rerank"), Console(quiet=True)))
    whole_settings = [*settings, f"output_dir={tmp_path / 'whole'}"]
    assert sum(server.asked.values()) - asked_before == len(keys(journal)) - len(kept)
    whole = read_run(rerank(config(*whole_settings, name="rerank"), Console(quiet=True)))
    assert [r.retrieved for r in resumed] == [r.retrieved for r in whole]
    assert len(kept) >= 6


def keys(journal: Path) -> set[str]:
    whole = journal.read_bytes()
    return {json.loads(line)["key"] for line in whole[: whole.rindex(b"\n")].splitlines()[1:]}


def test_questions_without_an_answer_end_in_an_error_that_keeps_the_others(serve, run_overrides, config, tmp_path):
    broken = [True]

    def respond(body, attempt):
        if broken[0] and "rhyme" in body["messages"][1]["content"]:
            return 500, {"error": {"message": "boom"}}, {}
        return reversed_reply(body)

    server, _ = serve(respond)
    settings = [*run_overrides, *openai(server.url)]
    with pytest.raises(
        InputError, match=r"1 of 4 questions have no answer, the first is 'Does neural.*boom.*is kept|are kept"
    ):
        rerank(config(*settings, name="rerank"), Console(quiet=True))
    assert not list((tmp_path / "out").glob("*rerank-m.jsonl"))
    partial = rerank(config(*settings, "allow_partial=true", name="rerank"), Console(quiet=True))
    assert read_run(partial).retrieved[2] == [60, 50, 40]
    assert read_run(partial).metadata["rerank"]["failures"] == {"server": 1}
    broken[0], server.shown = False, []
    whole = rerank(config(*settings, name="rerank"), Console(quiet=True))
    assert server.shown == [3]
    assert read_run(whole).retrieved[2] == [40, 50, 60]


def test_a_dry_run_counts_what_a_journal_holds_as_done(serve, tmp_path):
    _, generator = serve()
    journal = tmp_path / "answers.jsonl"
    ListwiseReranker(generator, journal=journal).rank(items(3), progress=False)
    cost, by = estimate(items(5), Settings(), {"backend": "openai", "model": "none-such"}, journal)
    assert (cost.prompts, cost.answered, cost.to_ask) == (5, 3, 2)
    assert cost.max_completion_tokens == 2 * 2000
    assert "estimate" in by
    sliding, _ = estimate(items(5, 40), Settings(mode="sliding"), {"backend": "openai", "model": "none-such"})
    assert sliding.prompts == 15
