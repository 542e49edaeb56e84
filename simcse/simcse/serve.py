"""Serve an index: one page where a person types a sentence and sees its neighbours, and the JSON API under it.

    python -m simcse.serve model=minilm sentences=captions.txt port=8000

    GET /              the page; no other host is asked for anything
    GET /api?query=...&topk=5&threshold=0.6
                       {"ret": [{"sentence": ..., "score": ...}, ...], "time": 0.012, "time_unit": "s"}
    GET /get_examples  {"examples": [...], "model": ..., "pooler": ..., "sentences": N, "max_query": ...}

Paths and fields are those of the authors' demo; its `time`, shown there as milliseconds, was and is in seconds. Bad
parameters are answered with status 400 and {"error": message} (`shared.serving`). Searches run one at a time, because
one already takes all cores.
"""

import html
import logging
import threading
import time
from importlib.resources import files
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from shared import InputError, corpus
from shared.launch import entrypoint
from shared.serving import PageServer, check_port, number, serve_until_stopped, single_values
from simcse.index import read_sentences
from simcse.search import SimCSE

logger = logging.getLogger(__name__)

EXAMPLES = 6
SUMMARY_WORDS = (5, 40)


class SearchServer(PageServer):
    """The HTTP server of one model and its index.

    Args:
        model: with an index.
        address: host and port; port 0 takes a free one.
        max_query: characters of a query.
    """

    def __init__(self, model: SimCSE, address: tuple[str, int], max_query: int = 1000):
        self.model, self.max_query = model, max_query
        self.searching = threading.Lock()
        answers = {"/api": self.answer, "/get_examples": self.examples}
        super().__init__(files("simcse").joinpath("page.html").read_bytes(), answers, address)

    def answer(self, parameters: dict[str, list[str]]) -> dict:
        """The answer of /api. Raises InputError on a missing, unknown, repeated or bad parameter."""
        values = single_values(parameters, ("query", "topk", "threshold"))
        query = values.get("query", "").strip()
        if not query:
            raise InputError("query is missing or empty: /api?query=a+sentence")
        if len(query) > self.max_query:
            raise InputError(f"query has {len(query)} characters, but at most {self.max_query} are accepted")
        size = len(self.model.index)
        top_k = number(values, "topk", int, min(5, size))
        threshold = number(values, "threshold", float, 0.6)
        if not 1 <= top_k <= size:
            raise InputError(f"topk is {top_k}, but must be from 1 to {size}, the number of sentences")
        start = time.perf_counter()
        with self.searching:
            found = self.model.search(query, threshold=threshold, top_k=top_k)
        seconds = time.perf_counter() - start
        results = [{"sentence": sentence, "score": score} for sentence, score in found]
        return {"ret": results, "time": seconds, "time_unit": "s"}

    def examples(self, parameters: dict[str, list[str]]) -> dict:
        """The answer of /get_examples: sentences spread evenly over the index, and what is being searched."""
        sentences = self.model.index.sentences
        return {
            "examples": evenly_spaced(list(dict.fromkeys(sentences)), EXAMPLES),
            "model": Path(self.model.model_name_or_path).name,
            "pooler": self.model.pooler,
            "sentences": len(sentences),
            "max_query": self.max_query,
        }


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


@entrypoint(config_name="serve")
def main(cfg: DictConfig) -> None:
    check_port(cfg.port)
    console = Console()
    console.print(f"encoding sentences with {cfg.model} ...")
    server = SearchServer(load_model(cfg), (cfg.host, cfg.port), cfg.max_query)
    console.print(f"{len(server.model.index)} sentences; serving on {server.url} (Ctrl-C stops)", soft_wrap=True)
    serve_until_stopped(server)
    console.print("stopped")


if __name__ == "__main__":
    main()
