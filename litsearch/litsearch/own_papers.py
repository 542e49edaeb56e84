"""One's own papers: a JSON-lines file with few fields, or a folder of texts (what a PDF-to-text program wrote).

A JSON-lines record needs a `title` or a text; `abstract`, `full_paper` (or `text`), `citations` and `corpusid` are
optional. Where no record has an id, a paper's id is its position. Of a text file, the first line that is not empty is
the title, and the abstract is what stands between the words "Abstract" and "Introduction", or else the first 200 words
after the title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litsearch import data
from litsearch.data import Corpus, Paper
from litsearch.records import SUFFIXES, iter_records
from shared import InputError

TEXT_SUFFIXES = (".txt", ".md", ".text")
ABSTRACT_WORDS = 200
LONGEST_ABSTRACT = 600  # words; more than that is a paper whose introduction bears another name
ABSTRACT = re.compile(r"^\W*abstract\b[\s.:—–-]*", re.IGNORECASE | re.MULTILINE)
INTRODUCTION = re.compile(r"^\W*(?:\d+|I)?[\s.]*introduction\b", re.IGNORECASE | re.MULTILINE)


def load_own_papers(path: str | Path) -> Corpus:
    """A corpus from a JSON-lines file (or parquet, JSON) or a folder of text files.

    Raises InputError naming file, record, field, value and fix.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"data.corpus={path} does not exist")
    texts = _text_files(path) if path.is_dir() else []
    papers = list(_from_texts(path, texts) if texts else _from_records(path))
    return Corpus(papers, path)


def _text_files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file())
    if not found and not any(file.name.endswith(SUFFIXES) for file in folder.iterdir()):
        raise InputError(f"data.corpus={folder} holds no file that ends in {', '.join(TEXT_SUFFIXES + SUFFIXES)}")
    return found


def _from_texts(folder: Path, files: list[Path]) -> Iterator[Paper]:
    for position, file in enumerate(files):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"data: {file} is not UTF-8 ({error.reason} at byte {error.start})") from None
        title, abstract = split_text(text)
        name = str(file.relative_to(folder))
        yield Paper(position, title or file.stem, abstract, (), text, name)


def split_text(text: str) -> tuple[str, str]:
    """(title, abstract) of a paper's plain text; either may be empty."""
    title, _, rest = text.strip().partition("\n")
    begin = ABSTRACT.search(rest)
    if begin is not None:
        end = INTRODUCTION.search(rest, begin.end())
        abstract = rest[begin.end() : end.start() if end is not None else None].strip()
        if end is not None and len(abstract.split()) <= LONGEST_ABSTRACT:
            return title.strip("# \t\r"), abstract
        rest = rest[begin.end() :]
    return title.strip("# \t\r"), " ".join(rest.split()[:ABSTRACT_WORDS])


def _from_records(path: Path) -> Iterator[Paper]:
    with_ids: bool | None = None
    for position, (where, record) in enumerate(iter_records(path)):
        has_id = record.get("corpusid") is not None
        if with_ids not in (None, has_id):
            raise InputError(f"{where}: some records have a corpusid and some have none; give all of them one, or none")
        with_ids = has_id
        yield _paper(record, where, position)


def _paper(record: dict[str, Any], where: str, position: int) -> Paper:
    def optional(name: str) -> str:
        return data.text(record, name, where) if name in record else ""

    full_paper = optional("full_paper") or optional("text")
    title, abstract = optional("title"), optional("abstract")
    if not (title.strip() or abstract.strip() or full_paper.strip()):
        raise InputError(f"{where}: there is no text; give a title, an abstract or a full_paper (or text)")
    if full_paper.strip() and not (title.strip() and abstract.strip()):
        first, summary = split_text(full_paper)
        title, abstract = title or first, abstract or summary
    corpusid = data.whole_number(record, "corpusid", where) if record.get("corpusid") is not None else position
    citations = tuple(data.ids(record, "citations", where)) if "citations" in record else ()
    return Paper(corpusid, title, abstract, citations, full_paper, optional("source"))
