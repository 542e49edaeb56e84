"""Ask an index questions, on the terminal or on a page.

    python -m litsearch.index data=own data.corpus=my_papers/ retriever=hybrid index=my_index
    python -m litsearch.search "Which papers rank passages by cosine?" index=my_index k=5
    python -m litsearch.search "lr=0.1 or 0.2?" "What is MLM?" index=my_index output=json
    python -m litsearch.search serve=true index=my_index                           # http://127.0.0.1:8000/

What is no setting on the command line is a question, taken literally: Hydra, whose grammar gives quotes, commas and
parentheses a meaning, never sees it. A question that looks like a setting is given as `query=...` or behind `--`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from litsearch.highlight import Matches, Piece, matched_words
from litsearch.library import Hit, Library, check_k, open_library
from litsearch.retrieve import retriever_options
from shared import InputError
from shared.launch import entrypoint

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "search.yaml"
SETTING = re.compile(r"(?:~|\+\+?)?([A-Za-z_][\w@:/-]*)[\w@:./-]*=")
# Hydra's options that take the next word.
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
INDENT = 5


def main() -> None:
    """The command line: questions are taken out of it, the rest is Hydra's."""
    given, (settings, questions) = sys.argv, split_command_line(sys.argv[1:])

    @entrypoint(config_name="search")
    def task(cfg: DictConfig) -> None:
        run(cfg, questions)

    sys.argv = [given[0], *settings]
    try:
        task()
    finally:
        sys.argv = given


def split_command_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Hydra's words, questions)."""
    settings: list[str] = []
    questions: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            questions.extend(rest)
        elif word.startswith("query="):
            questions.append(word.removeprefix("query="))
        elif word.startswith("-"):
            settings.append(word)
            if word in WITH_VALUE:
                settings.extend([value] if (value := next(rest, None)) is not None else [])
        elif is_setting(word):
            settings.append(word)
        else:
            questions.append(word)
    return settings, questions


def is_setting(word: str) -> bool:
    """Whether a word is one of Hydra's overrides: `name=...`, where the name is known or the word has no space in it
    (so that a mistyped name is told as such)."""
    match = SETTING.match(word)
    if match is None:
        return False
    name = re.split(r"[@.]", match[1])[0]
    return name in _names() or not re.search(r"\s", word)


@cache
def _names() -> frozenset[str]:
    cfg = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    groups = {str(name).split()[-1] for entry in cfg["defaults"] if isinstance(entry, dict) for name in entry}
    return frozenset({*cfg, *groups} - {"defaults"})


def run(cfg: DictConfig, questions: Sequence[str], console: Console | None = None) -> None:
    """Do what the configuration says.

    Raises InputError for settings that cannot be used, an index that is not what was asked for, and empty questions.
    """
    questions = [*questions, *([str(cfg.query)] if cfg.query is not None else []), *_from_file(cfg.questions)]
    check_k(cfg.k)
    if isinstance(cfg.snippet, bool) or not isinstance(cfg.snippet, int) or cfg.snippet < 1:
        raise InputError(f"snippet={cfg.snippet!r}: give a whole number of words, at least 1")
    if cfg.output not in ("text", "json"):
        raise InputError(f"output={cfg.output}: give text or json")
    if cfg.serve:
        if questions:
            raise InputError("serve=true shows a page, which is where questions are asked; leave the question out")
        serve(cfg, console or Console(soft_wrap=True))
        return
    if not questions:
        raise InputError('there is no question: python -m litsearch.search "a question" index=FOLDER (see --help)')
    for number, question in enumerate(questions, start=1):
        if not question.strip():
            raise InputError(f"question {number} of {len(questions)} is empty; ask in a few words")
    log_to_stderr()
    library = library_of(cfg)
    library.warm_up()
    for number, question in enumerate(questions):
        started = time.perf_counter()
        hits = library.search(question, cfg.k)
        seconds = time.perf_counter() - started
        if cfg.output == "json":
            print(json.dumps(answer(question, hits, seconds, cfg.snippet)), flush=True)
        else:
            show(question, hits, library, cfg.snippet, console or Console(), first=number == 0)


def log_to_stderr() -> None:
    """Leave standard output to the answers; only warnings are said at all."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
            handler.setLevel(logging.WARNING)


def library_of(cfg: DictConfig) -> Library:
    """The index that the configuration names, checked against what else it names."""
    corpus = None
    if cfg.get("data") is not None:
        from litsearch.locations import open_benchmark

        corpus = open_benchmark(cfg.data, full_papers=False, needs_queries=False).corpus.fingerprint
    retriever = retriever_options(cfg.retriever) if cfg.get("retriever") is not None else None
    return open_library(cfg.index, retriever, cfg.key.name if cfg.get("key") is not None else None, corpus)


def serve(cfg: DictConfig, console: Console) -> None:
    """Show the page until the process is told to stop."""
    from litsearch.search_page import SearchPage
    from shared.serving import check_port, serve_until_stopped

    check_port(cfg.port)
    page = SearchPage(library_of(cfg), (cfg.host, cfg.port), cfg.k, cfg.snippet, cfg.max_query)
    page.library.warm_up()
    console.print(f"{len(page.library):,} papers; serving on {page.url} (Ctrl-C stops)", highlight=False)
    serve_until_stopped(page)
    console.print("stopped")


def _from_file(path: str | None) -> Iterator[str]:
    """A question per line of a file."""
    if path is None:
        return
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"questions={path} cannot be read ({error}); give a text file, a question per line") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"questions={path} holds no question")
    yield from found


# -------------------------------------------------------------------------------------------------------------- output


def answer(question: str, hits: Sequence[Hit], seconds: float, words: int) -> dict[str, Any]:
    """A question's results as JSON values."""
    matches = Matches(question)
    return {"question": question, "seconds": seconds, "results": [result(hit, matches, words) for hit in hits]}


def result(hit: Hit, matches: Matches, words: int) -> dict[str, Any]:
    """A hit as JSON values."""
    snippet = matches.snippet(hit.text, words)
    pieces = [*matches.pieces(hit.paper.title), *matches.pieces(hit.text)]
    return {
        "rank": hit.rank,
        "score": hit.score,
        "corpusid": hit.paper.corpusid,
        "title": hit.paper.title,
        "abstract": hit.paper.abstract,
        "snippet": "".join(text for text, _ in snippet),
        "matches": matched_words(pieces),
        "source": hit.paper.source,
    }


def show(
    question: str, hits: Sequence[Hit], library: Library, words: int, console: Console, first: bool = True
) -> None:
    """A question's results for a person."""
    matches = Matches(question)
    if not first:
        console.print()
    console.print(Text(plain(question), style="bold cyan"))
    if not hits:
        console.print(f"  nothing: no paper of {len(library):,} has a word of it", style="yellow", highlight=False)
        return
    for hit in hits:
        console.print()
        title = styled(matches.pieces(hit.paper.title or "(no title)"), "bold", "bold yellow")
        _print_indented(console, title, f"{hit.rank:>{INDENT - 2}}  ")
        snippet = styled(matches.snippet(" ".join(hit.text.split()), words), "", "bold yellow")
        _print_indented(console, snippet)
        about = [f"{library.about()['score']} {hit.score:.4g}", f"corpusid {hit.paper.corpusid}", hit.paper.source]
        _print_indented(console, Text(" · ".join(map(plain, filter(None, about))), style="dim"))


def _print_indented(console: Console, text: Text, before: str = "") -> None:
    for line in text.wrap(console, max(20, console.width - INDENT)) if text.plain.strip() else ():
        line.rstrip()
        console.print(Text.assemble((before.ljust(INDENT), "dim" if before else ""), line), soft_wrap=True)
        before = ""


def styled(pieces: Sequence[Piece], style: str, matched: str) -> Text:
    text = Text(style=style)
    for piece, is_match in pieces:
        text.append(plain(piece), style=matched if is_match else "")
    return text


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: papers come from anywhere."""
    return CONTROL.sub(" ", text.encode("utf-8", "replace").decode("utf-8"))


if __name__ == "__main__":
    main()
