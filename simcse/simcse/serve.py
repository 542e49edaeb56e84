"""Serve an index: one page where a person types a sentence and sees its neighbours, and the JSON API under it.

    python -m simcse.serve model=minilm sentences=captions.txt port=8000

    GET /              the page; no other host is asked for anything
    GET /api?query=...&topk=5&threshold=0.6
                       {"ret": [{"sentence": ..., "score": ...}, ...], "time": 0.012, "time_unit": "s"}
    GET /get_examples  {"examples": [...], "model": ..., "pooler": ..., "sentences": N, "max_query": ...}

Paths and fields are those of the authors' demo; its `time`, shown there as milliseconds, was and is in seconds. Bad
parameters are answered with status 400 and {"error": message}. The server is the standard library's: a page for one
person or a group needs no more, and searches run one at a time in any case, because one already takes all cores.
"""

import html
import json
import logging
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from omegaconf import DictConfig
from rich.console import Console

from shared import InputError, corpus
from shared.launch import entrypoint
from simcse.index import read_sentences
from simcse.search import SimCSE

logger = logging.getLogger(__name__)

EXAMPLES = 6
SUMMARY_WORDS = (5, 40)
# The page is one file: it may run its own script and style, call its own server, and nothing else.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class SearchServer(ThreadingHTTPServer):
    """The HTTP server of one model and its index.

    Args:
        model: with an index.
        address: host and port; port 0 takes a free one.
        max_query: characters of a query.
    """

    daemon_threads = True

    def __init__(self, model: SimCSE, address: tuple[str, int], max_query: int = 1000):
        self.model, self.max_query = model, max_query
        self.searching = threading.Lock()
        self.page = files("simcse").joinpath("page.html").read_bytes()
        try:
            super().__init__(address, SearchHandler)
        except (OSError, OverflowError) as error:
            raise InputError(f"host={address[0]} port={address[1]} cannot be served on: {error}") from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    def answer(self, parameters: dict[str, list[str]]) -> dict:
        """The answer of /api. Raises InputError on a missing, unknown, repeated or bad parameter."""
        values = _single_values(parameters, ("query", "topk", "threshold"))
        query = values.get("query", "").strip()
        if not query:
            raise InputError("query is missing or empty: /api?query=a+sentence")
        if len(query) > self.max_query:
            raise InputError(f"query has {len(query)} characters, but at most {self.max_query} are accepted")
        size = len(self.model.index)
        top_k = _number(values, "topk", int, min(5, size))
        threshold = _number(values, "threshold", float, 0.6)
        if not 1 <= top_k <= size:
            raise InputError(f"topk is {top_k}, but must be from 1 to {size}, the number of sentences")
        start = time.perf_counter()
        with self.searching:
            found = self.model.search(query, threshold=threshold, top_k=top_k)
        seconds = time.perf_counter() - start
        results = [{"sentence": sentence, "score": score} for sentence, score in found]
        return {"ret": results, "time": seconds, "time_unit": "s"}

    def examples(self) -> dict:
        """The answer of /get_examples: sentences spread evenly over the index, and what is being searched."""
        sentences = self.model.index.sentences
        return {
            "examples": evenly_spaced(list(dict.fromkeys(sentences)), EXAMPLES),
            "model": Path(self.model.model_name_or_path).name,
            "pooler": self.model.pooler,
            "sentences": len(sentences),
            "max_query": self.max_query,
        }


class SearchHandler(BaseHTTPRequestHandler):
    """Routes of a SearchServer."""

    server: SearchServer
    server_version = "simcse"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds a connection may stay silent

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        try:
            if url.path == "/":
                self._send(200, "text/html; charset=utf-8", self.server.page)
            elif url.path == "/api":
                self._send_json(200, self.server.answer(parse_qs(url.query, keep_blank_values=True, errors="strict")))
            elif url.path == "/get_examples":
                self._send_json(200, self.server.examples())
            else:
                self._send_json(404, {"error": f"no such page: {url.path}; there are /, /api and /get_examples"})
        except UnicodeDecodeError:
            self._send_json(400, {"error": "the parameters are not UTF-8"})
        except InputError as error:
            self._send_json(400, {"error": str(error)})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page has moved on to the next query
        except Exception:
            logger.exception("request failed: %s", url.path)
            self._send_json(500, {"error": "the search failed; the server's log says why"})

    def _send_json(self, status: int, answer: dict) -> None:
        self._send(status, "application/json; charset=utf-8", json.dumps(answer, ensure_ascii=False).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        logger.debug(format, *args)


def _single_values(parameters: dict[str, list[str]], known: tuple[str, ...]) -> dict[str, str]:
    for name, values in parameters.items():
        if name not in known:
            raise InputError(f"unknown parameter {name[:50]!r}: there are {', '.join(known)}")
        if len(values) > 1:
            raise InputError(f"{name} is given {len(values)} times")
    return {name: values[0] for name, values in parameters.items()}


def _number(values: dict[str, str], name: str, kind: type, default: float) -> float:
    if name not in values:
        return default
    try:
        return kind(values[name])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {values[name][:50]!r}, but must be {what}") from None


def evenly_spaced(items: list[str], count: int | None) -> list[str]:
    """At most `count` items, spread over the whole list, in order."""
    if count is None or len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def corpus_summaries() -> list[str]:
    """The distinct summary lines, of 5 to 40 words, of the documentation that this environment carries."""
    least, most = SUMMARY_WORDS
    lines = (" ".join(html.unescape(document.summary or "").split()) for document in corpus.documents())
    return list(dict.fromkeys(line for line in lines if least <= len(line.split()) <= most))


def load_sentences(cfg: DictConfig) -> list[str]:
    """What is to be indexed: the file's sentences or the corpus' summary lines, at most `max_sentences`."""
    if cfg.max_sentences is not None and cfg.max_sentences < 1:
        raise InputError(f"max_sentences={cfg.max_sentences}: must be at least 1, or null for all")
    found = corpus_summaries() if cfg.sentences is None else read_sentences(cfg.sentences, "sentences")
    sentences = evenly_spaced(found, cfg.max_sentences)
    if len(sentences) < len(found):
        logger.warning("%d of %d sentences are indexed: max_sentences=null takes all", len(sentences), len(found))
    return sentences


def load_model(cfg: DictConfig) -> SimCSE:
    """The model and index that the configuration names. Raises InputError on settings that cannot be used."""
    kept = cfg.index is not None and Path(cfg.index).exists()
    # Read before the model is loaded: a mistyped path should show in a moment.
    sentences = [] if kept else load_sentences(cfg)
    model = SimCSE(cfg.model, cfg.device, cfg.num_cells, cfg.num_cells_in_search, cfg.pooler)
    if kept:
        model.load_index(cfg.index)
        logger.info("index: %s", cfg.index)
        return model
    model.build_index(sentences, use_faiss=cfg.use_faiss, faiss_fast=cfg.faiss_fast)
    if cfg.index is not None:
        model.save_index(cfg.index)
    return model


def serve_until_stopped(server: SearchServer) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is being answered and close the port."""

    def stop(signum: int, frame: object) -> None:
        # shutdown() waits for the loop that this very thread is running.
        threading.Thread(target=server.shutdown).start()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    with server:
        server.serve_forever(poll_interval=0.2)


@entrypoint(config_name="serve")
def main(cfg: DictConfig) -> None:
    if not isinstance(cfg.port, int) or not 0 <= cfg.port < 65536:
        raise InputError(f"port={cfg.port}: must be a whole number from 0 to 65535")
    console = Console()
    console.print(f"encoding sentences with {cfg.model} ...")
    server = SearchServer(load_model(cfg), (cfg.host, cfg.port), cfg.max_query)
    console.print(f"{len(server.model.index)} sentences; serving on {server.url} (Ctrl-C stops)", soft_wrap=True)
    serve_until_stopped(server)
    console.print("stopped")


if __name__ == "__main__":
    main()
