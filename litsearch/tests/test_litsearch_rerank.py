"""Listwise reranking: the prompt to the letter, and what becomes of every kind of reply and failure."""

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

from litsearch.data import Paper
from litsearch.rerank import Candidates, ListwiseReranker, Settings, statistics
from litsearch.rerank.__main__ import rerank
from litsearch.rerank.cost import estimate
from litsearch.rerank.failures import kind_of
from litsearch.rerank.listwise import in_memory
from litsearch.rerank.mock import MockReranker
from litsearch.rerank.prompt import document_text, messages
from litsearch.runs import Run, RunRecord, read_run, run_metadata, write_run
from shared import InputError
from shared.generation import make_generator

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"max_retries": 2, "backoff_s": 0.01, "max_wait_s": 0.05}
KEY = "sk-never-to-be-shown-73c1"


def reply_with(order) -> str:
    return " > ".join(f"[{k}]" for k in order)


# ------------------------------------------------------------------------------------------------------------ prompt


def test_the_prompt_is_the_benchmarks_to_the_letter():
    assert messages("Is {n} a braced question?", ["First {query}.", "Second."]) == [
        {
            "role": "system",
            "content": "You are RankGPT, an intelligent assistant that can rank papers based on their relevancy to a "
            "research query.",
        },
        {
            "role": "user",
            "content": "I will provide you with the abstracts of 2 papers, each indicated by number identifier []. \n"
            "Rank the papers based on their relevance to research question: Is {n} a braced question?.",
        },
        {"role": "assistant", "content": "Okay, please provide the papers."},
        {"role": "user", "content": "[1] First {query}."},
        {"role": "assistant", "content": "Received passage [1]."},
        {"role": "user", "content": "[2] Second."},
        {"role": "assistant", "content": "Received passage [2]."},
        {
            "role": "user",
            "content": "Search Query: Is {n} a braced question?. \n"
            "Rank the 2 papers above based on their relevance to the research query. The papers should be listed in "
            "descending order using identifiers. The most relevant papers should be listed first. The output format "
            "should be [] > [], e.g., [1] > [2]. Only respond with the ranking results, do not say any words or "
            "explain.",
        },
    ]


def test_full_papers_are_announced_as_papers():
    opening = messages("Q", ["text"], "full_paper")[1]["content"]
    assert opening == (
        "I will provide you with 1 papers, each indicated by number identifier []. \n"
        "Rank the papers based on their relevance to research question: Q."
    )
    assert len(messages("Q", ["text"] * 100)) == 204


def test_papers_are_cut_at_300_words_and_full_ones_at_10000():
    paper = Paper(1, "A title", "one\ttwo  three\n\nfour", (), "")
    assert document_text(paper, "title_abstract") == "Title: A title Abstract: one two three four"
    long = Paper(1, "A title", " ".join(f"w{i}" for i in range(1000)), (), "\n".join(f"f{i}" for i in range(20_000)))
    words = document_text(long, "title_abstract").split(" ")
    assert (len(words), words[:5], words[-1]) == (300, ["Title:", "A", "title", "Abstract:", "w0"], "w295")
    words = document_text(long, "full_paper").split(" ")
    assert (len(words), words[-1]) == (10_000, "f9999")
    with pytest.raises(InputError, match="key='paragraphs'"):
        document_text(paper, "paragraphs")


# -------------------------------------------------------------------------------------------- a server with any fault


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


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Prompt is too long",
        "the request exceeds the available context size",
        "max_tokens is too large: 4096. This model's context length is 4096",
    ],
)
def test_what_servers_say_of_prompts_that_are_too_long(message):
    assert kind_of(f"HTTP 400: {message}") == "overflow"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("HTTP 413: payload", "overflow"),
        ("HTTP 429: rate limit: context length of the minute used up", "rate limit"),
        ("HTTP 400: invalid role", "refused"),
        ("no answer within 120 s, after 7 tries", "timeout"),
        ("HTTP 503: overloaded, after 7 tries", "server"),
        ("no connection (broken pipe), after 7 tries", "server"),
    ],
)
def test_failures_are_told_apart(error, kind):
    assert kind_of(error) == kind


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


def test_prompts_are_held_in_memory_a_part_at_a_time(serve):
    groups = list(in_memory([Candidates(str(i), "q", ["x" * 10] * n) for i, n in enumerate((3, 3, 20, 1, 1))], 60))
    assert [[item.id for item in group] for group in groups] == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parser": "exact"}, "parser='exact'"),
        ({"mode": "double"}, "mode='double'"),
        ({"key": "paragraphs"}, "key='paragraphs'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"mode": "sliding", "window": 10, "step": 10}, "step=10"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Settings(**settings)


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


@pytest.fixture
def run_file(tmp_path, corpus, queries):
    """A run of the four questions over the six papers of conftest."""
    found = [[20, 30, 10, 40, 50, 60], [10, 30, 40, 50, 60, 20], [60, 50, 40], [20]]
    records = [RunRecord(query, retrieved) for query, retrieved in zip(queries, found, strict=True)]
    metadata = run_metadata(corpus, queries, stages=["bm25"], key="title_abstract")
    return write_run(tmp_path / "small.title_abstract.bm25.jsonl", Run(records, metadata))


@pytest.fixture
def overrides(run_file, corpus_file, query_file, tmp_path):
    data = ["data=files", f"data.corpus={corpus_file}", f"data.queries={query_file}"]
    return [*data, f"run={run_file}", f"output_dir={tmp_path / 'out'}"]


def openai(url: str) -> list[str]:
    fast = [f"llm.generator.{name}={value}" for name, value in QUICK.items()]
    return ["llm=openai", "model=m", f"base_url={url}", *fast]


def test_a_run_killed_twice_ends_like_an_uninterrupted_one_and_asks_nothing_twice(serve, overrides, config, tmp_path):
    """SIGKILL in the middle: what the journal holds is not asked again."""
    slow = threading.Event()

    def respond(body, attempt):
        slow.wait(0.1)
        return reversed_reply(body)

    server, _ = serve(respond)
    settings = [*overrides, *openai(server.url), "mode=sliding", "window=2", "step=1", "llm.generator.concurrency=1"]
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


# ---------------------------------------------------------------------------------------------------- from the command


def test_the_oracle_puts_answers_first_and_nothing_is_lost(overrides, config, queries):
    out = rerank(config(*overrides, "llm=oracle", name="rerank"), Console(quiet=True))
    run = read_run(out)
    assert out.name == "small.title_abstract.bm25.rerank-oracle.jsonl"
    assert run.retrieved == [[30, 10, 20, 40, 50, 60], [20, 10, 30, 40, 50, 60], [40, 60, 50], [20]]
    assert [record.extra["pre_reranked"] for record in run] == [
        [20, 30, 10, 40, 50, 60], [10, 30, 40, 50, 60, 20], [60, 50, 40], [20],
    ]  # fmt: skip
    assert run.system == "bm25+rerank:oracle"
    assert run.metadata["rerank"]["max_k"] == 100
    assert json.loads(out.with_name(out.stem + ".stats.json").read_text())["questions"] == 4


def test_identity_changes_nothing_and_noise_is_a_function_of_its_seed(overrides, config, tmp_path):
    def made(llm: str, *more: str):
        changed = [f"output_dir={tmp_path / '-'.join([llm, *more]).replace('=', '')}", f"llm={llm}", *more]
        return read_run(rerank(config(*overrides, *changed, name="rerank"), Console(quiet=True))).retrieved

    identity = made("identity")
    assert identity[0] == [20, 30, 10, 40, 50, 60]
    noisy = made("noisy", "llm.generator.noise=5")
    assert noisy == made("noisy", "llm.generator.noise=5.0")
    assert noisy != made("noisy", "llm.generator.noise=5", "llm.generator.seed=1")
    assert all(sorted(a) == sorted(b) for a, b in zip(noisy, identity, strict=True))


def test_only_the_first_max_k_are_reranked_and_the_rest_is_dropped_unless_kept(overrides, config, tmp_path):
    cut = rerank(config(*overrides, "llm=oracle", "max_k=3", name="rerank"), Console(quiet=True))
    assert read_run(cut).retrieved == [[30, 10, 20], [10, 30, 40], [40, 60, 50], [20]]
    kept = [*overrides, "llm=oracle", "max_k=3", "keep_rest=true", f"output_dir={tmp_path / 'kept'}"]
    assert read_run(rerank(config(*kept, name="rerank"), Console(quiet=True))).retrieved[0] == [30, 10, 20, 40, 50, 60]


def test_questions_without_an_answer_end_in_an_error_that_keeps_the_others(serve, overrides, config, tmp_path):
    broken = [True]

    def respond(body, attempt):
        if broken[0] and "rhyme" in body["messages"][1]["content"]:
            return 500, {"error": {"message": "boom"}}, {}
        return reversed_reply(body)

    server, _ = serve(respond)
    settings = [*overrides, *openai(server.url)]
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


def test_results_of_another_input_are_neither_reused_nor_overwritten(overrides, config, run_file):
    rerank(config(*overrides, "llm=oracle", name="rerank"), Console(quiet=True))
    other = read_run(run_file)
    other.records[0].retrieved.reverse()
    write_run(run_file, other)
    with pytest.raises(InputError, match="was made from another run"):
        rerank(config(*overrides, "llm=oracle", name="rerank"), Console(quiet=True))


def test_a_dry_run_counts_and_asks_nothing_and_needs_no_key(overrides, config, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert rerank(config(*overrides, "llm=gpt4o", "dry_run=true", name="rerank")) is None
    printed = capsys.readouterr().out
    assert "USD" in printed
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="OPENAI_API_KEY holds no key"):
        rerank(config(*overrides, "llm=gpt4o", name="rerank"), Console(quiet=True))


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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["llm=vllm"], "model is missing"),
        (["llm=openai"], "model is missing"),
        (["llm=oracle", "max_k=0"], "max_k=0"),
        (["llm=oracle", "run=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["llm=oracle", "key=paragraphs"], "key='paragraphs'"),
        (["llm=oracle", "parser=exact"], "parser='exact'"),
        (["llm=oracle", "out=answers.txt"], "must end in .jsonl"),
        (["llm=recorded", "recorded=nowhere.jsonl"], "is not a file"),
        (["llm=noisy", "llm.generator.noise=-1"], "llm.noise=-1"),
    ],
)
def test_what_cannot_be_reranked_is_refused(overrides, config, more, said):
    with pytest.raises(InputError, match=said):
        rerank(config(*overrides, *more, name="rerank"), Console(quiet=True))


def test_the_run_itself_is_never_the_output(overrides, config, run_file):
    with pytest.raises(InputError, match="is the run that is reranked"):
        rerank(config(*overrides, "llm=oracle", f"out={run_file}", name="rerank"), Console(quiet=True))


def test_every_llm_configuration_composes(config):
    for llm in ("identity", "oracle", "noisy", "vllm", "vllm_qwen", "openai", "gpt4o", "transformers", "recorded"):
        assert config("run=x", f"llm={llm}", name="rerank").llm.generator.backend


def test_recorded_replies_give_the_same_run(overrides, config, tmp_path):
    first = rerank(config(*overrides, "llm=noisy", name="rerank"), Console(quiet=True))
    journal = first.with_name(first.stem + ".answers.jsonl")
    replay = [*overrides, "llm=recorded", f"recorded={journal}", f"output_dir={tmp_path / 'replay'}"]
    again = rerank(config(*replay, name="rerank"), Console(quiet=True))
    assert read_run(again).retrieved == read_run(first).retrieved


def test_from_the_shell_bad_input_ends_with_status_2(overrides):
    command = [sys.executable, "-m", "litsearch.rerank", *overrides, "llm=oracle", "max_k=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: max_k=0: give a whole number of at least 1"


# --------------------------------------------------------------------------------------------------------- real models


def test_a_real_model_ranks_and_its_context_decides_how_many_papers_it_is_shown(config, overrides, tmp_path):
    """The whole path on transformers: chat template, lengths known beforehand, replies of the right form."""
    settings = [*overrides, "llm=transformers", "model=tiny", "max_tokens=60", "llm.generator.dtype=float32"]
    out = rerank(config(*settings, name="rerank"), Console(quiet=True))
    stats = read_run(out).metadata["rerank"]
    assert (stats["questions"], stats["replies"], stats["shrunk"], stats["unparsable"]) == (4, 3, 0, 0)
    model = tmp_path / "out" / "tiny_model"
    lengths = make_generator({"backend": "transformers", "model": str(model)}).encoder
    documents = read_run(out).retrieved[0]
    assert len(documents) == 6
    narrow = [*settings, f"model={model}", "llm.generator.max_model_len=500", f"output_dir={tmp_path / 'narrow'}"]
    stats = read_run(rerank(config(*narrow, name="rerank"), Console(quiet=True))).metadata["rerank"]
    assert stats["shrunk"] + stats["too_long_at_any_size"] >= 1
    assert lengths is not None


@pytest.mark.vllm
def test_vllm_ranks_as_transformers_does(config, overrides, tmp_path):
    same = [*overrides, "max_tokens=60", "llm.generator.dtype=float32"]
    slow = rerank(config(*same, "llm=transformers", "model=tiny", name="rerank"), Console(quiet=True))
    model = tmp_path / "out" / "tiny_model"
    engine = ["llm.generator.kv_cache_gib=0.5", "llm.generator.enforce_eager=true", "llm.generator.max_model_len=4096"]
    fast_settings = [*same, "llm=vllm", f"model={model}", *engine, f"output_dir={tmp_path / 'vllm'}"]
    fast = rerank(config(*fast_settings, name="rerank"), Console(quiet=True))
    assert read_run(fast).retrieved == read_run(slow).retrieved
    assert read_run(fast).metadata["rerank"]["replies"] == 3
