"""The JSON API over HTTP, its refusals, and a server process from start to a clean stop."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest
from omegaconf import OmegaConf

from shared import InputError
from shared.extraction import Document
from shared.testing import answering, fetch
from simcse import SimCSE
from simcse.serve import SearchServer, corpus_summaries, evenly_spaced, load_model

SERVE_YAML = Path(__file__).parents[1] / "configs" / "serve.yaml"


@pytest.fixture(scope="module")
def server(tiny_encoder_folder, sentences):
    model = SimCSE(str(tiny_encoder_folder), device="cpu", pooler="avg")
    model.build_index([*sentences(20), "<script>alert(1)</script> and ünïcode"])
    with answering(SearchServer(model, ("127.0.0.1", 0), max_query=100)) as server:
        yield server


def get(server, path: str, **parameters):
    """Status, headers and body, JSON parsed."""
    status, headers, body = fetch(server.url, path, **parameters)
    is_json = headers["Content-Type"].startswith("application/json")
    return status, headers, json.loads(body) if is_json else body.decode()


def test_api_answers_as_the_library_does(server, sentences):
    query = sentences(1, seed=4)[0]
    status, _, answer = get(server, "api", query=query, topk=7, threshold=-1)
    expected = server.model.search(query, top_k=7, threshold=-1)
    assert status == 200
    assert [(hit["sentence"], hit["score"]) for hit in answer["ret"]] == expected
    assert answer["time_unit"] == "s" and 0 < answer["time"] < 60


def test_defaults_are_the_librarys(server, sentences):
    query = sentences(1)[0]
    _, _, answer = get(server, "api", query=query)
    assert [hit["sentence"] for hit in answer["ret"]] == [s for s, _ in server.model.search(query)]


def test_an_index_below_the_default_top_k_is_no_error(tiny_encoder_folder):
    model = SimCSE(str(tiny_encoder_folder), device="cpu", pooler="avg")
    model.build_index(["a dog", "a cat"])
    with SearchServer(model, ("127.0.0.1", 0)) as small:
        assert len(small.answer({"query": ["a dog"], "threshold": ["-1"]})["ret"]) == 2


def test_examples_say_what_is_searched(server):
    _, _, answer = get(server, "get_examples")
    assert answer["sentences"] == 21 and answer["pooler"] == "avg" and answer["model"] == "tiny"
    assert len(answer["examples"]) == 6 and set(answer["examples"]) <= set(server.model.index.sentences)


def test_text_arrives_unchanged(server):
    _, headers, answer = get(server, "api", query="<script>alert(1)</script> and ünïcode", topk=1)
    assert answer["ret"][0]["sentence"] == "<script>alert(1)</script> and ünïcode"
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_asks_no_other_host(server):
    status, headers, page = get(server, "")
    assert status == 200 and "<label for=" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    # The name of SVG's namespace, in the icon, is not an address that is asked for.
    assert set(re.findall(r"https?://[\w.-]+", page)) == {"http://www.w3.org"}
    assert "innerHTML" not in page


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "query is missing"),
        ({"query": "   "}, "query is missing"),
        ({"query": "a" * 101}, "query has 101 characters, but at most 100"),
        ({"query": "a", "topk": "many"}, "topk is 'many', but must be a whole number"),
        ({"query": "a", "topk": "0"}, "topk is 0, but must be from 1 to 21"),
        ({"query": "a", "topk": "22"}, "topk is 22, but must be from 1 to 21"),
        ({"query": "a", "threshold": "high"}, "threshold is 'high', but must be a number"),
        ({"query": "a", "threshold": "2"}, "threshold is 2.0, but a cosine is between -1 and 1"),
        ({"query": "a", "threshold": "nan"}, "threshold is nan"),
        ({"query": "a", "top_k": "3"}, "unknown parameter 'top_k'"),
        ([("query", "a"), ("query", "b")], "query is given 2 times"),
        ({"query": b"\xff"}, "not UTF-8"),
    ],
)
def test_bad_parameters_are_a_400_with_one_message(server, parameters, message):
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(f"{server.url}api?{urlencode(parameters)}", timeout=30)
    with closing(failed.value) as response:
        answer = json.loads(response.read())
    assert response.code == 400
    assert list(answer) == ["error"] and message in answer["error"]


def test_other_paths_and_methods_are_refused(server):
    assert get(server, "favicon.ico")[0] == 404
    assert get(server, "../serve.py")[0] == 404
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(server.url, data=b"x", timeout=30)
    with closing(failed.value) as response:
        assert response.code == 501


def test_a_bug_is_a_500_without_its_details(server, monkeypatch, caplog):
    monkeypatch.setattr(server.model, "search", lambda *_, **__: 1 / 0)
    status, _, answer = get(server, "api", query="a")
    assert status == 500 and "division" not in str(answer)
    assert "ZeroDivisionError" in caplog.text


def test_queries_at_the_same_time_get_their_own_answers(server, sentences):
    queries, answers = sentences(12), {}

    def ask(query: str) -> None:
        answers[query] = get(server, "api", query=query, topk=1)[2]["ret"][0]["sentence"]

    threads = [threading.Thread(target=ask, args=(query,)) for query in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {query: query for query in queries}


def test_a_taken_port_is_named(server):
    port = server.server_address[1]
    with pytest.raises(InputError, match=f"port={port} cannot be served on"):
        SearchServer(server.model, ("127.0.0.1", port))


def test_evenly_spaced_keeps_ends_of_short_lists_and_order():
    assert evenly_spaced(list("abc"), 5) == list("abc")
    assert evenly_spaced(list("abcdef"), 3) == ["a", "c", "e"]
    assert evenly_spaced(list("abc"), None) == list("abc")


def document(summary: str | None) -> Document:
    return Document(text="body", title="t", summary=summary, origin="o", kind="docstring", package="p")


def test_without_a_file_the_corpus_summaries_are_served(monkeypatch):
    lines = ["Return the sum of two numbers.", "Short.", None, "Return  the sum of\ntwo numbers.", "a " * 41]
    monkeypatch.setattr("simcse.serve.corpus.documents", lambda: [document(line) for line in lines])
    assert corpus_summaries() == ["Return the sum of two numbers."]


def test_a_kept_index_is_used_again_without_encoding(tiny_encoder_folder, sentences, tmp_path, monkeypatch):
    file = tmp_path / "sentences.txt"
    file.write_text("\n".join(sentences(9)))
    cfg = OmegaConf.merge(
        OmegaConf.load(SERVE_YAML),
        {"model": str(tiny_encoder_folder), "pooler": "avg", "sentences": str(file), "index": str(tmp_path / "index")},
    )
    first = load_model(cfg)
    file.unlink()
    again = load_model(cfg)
    assert again.search(sentences(1)[0], top_k=3, threshold=-1) == first.search(sentences(1)[0], top_k=3, threshold=-1)


def start(*overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "simcse.serve", "port=0", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_server_process_stops_cleanly(tiny_encoder_folder, sentences, tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_text("\n".join(sentences(9)))
    process = start(f"model={tiny_encoder_folder}", f"sentences={file}", "pooler=avg")
    try:
        line = next(line for line in process.stdout if "serving on" in line)
        url = line.split("serving on ")[1].split()[0]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}get_examples", timeout=30) as response:
            assert json.loads(response.read())["sentences"] == 9
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped" in out and "Traceback" not in err
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))) != 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sentences=nowhere.txt"], "sentences is 'nowhere.txt', and there is no such file"),
        (["port=high"], "port=high"),
        (["max_sentences=0"], "max_sentences=0: must be at least 1"),
    ],
)
def test_bad_settings_end_with_status_2_and_one_message(overrides, message, tiny_encoder_folder):
    process = start(f"model={tiny_encoder_folder}", *overrides)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and message in err and "Traceback" not in err
