"""Papers from S2ORC records (`corpus_s2orc`): texts cut out by annotated offsets, citations from the bibliography.

A record's `content` holds the whole `text` and `annotations`, each a JSON string with spans of that text. Title and
abstract are the first spans of theirs; a record without a usable one has an empty title or abstract, as in the release.
"""

from __future__ import annotations

import json
from typing import Any

from litsearch.data import Paper, describe, present, whole_number
from shared import InputError


def is_s2orc(record: dict[str, Any]) -> bool:
    return "content" in record and "title" not in record


def paper_from_s2orc(record: dict[str, Any], where: str) -> Paper:
    """The paper of one S2ORC record; `where` names its place in messages.

    Citations keep the order of the bibliography, without repeats; entries that were not matched to a paper are left
    out. They may lead outside the corpus.

    Raises InputError: no corpusid, or `content` without text.
    """
    corpusid = whole_number(record, "corpusid", where)
    content = present(record, "content", where)
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        raise InputError(f"{where}: content must be an object with the paper's `text`, not {describe(content)}")
    text, annotations = content["text"], content.get("annotations") or {}
    cited = (_matched_paper(entry) for entry in _spans(annotations, "bibentry"))
    citations = tuple(dict.fromkeys(paper for paper in cited if paper is not None))
    title, abstract = (_first_span(text, annotations, name) for name in ("title", "abstract"))
    return Paper(corpusid, title, abstract, citations, text)


def _spans(annotations: dict[str, Any], name: str) -> list[Any]:
    try:
        spans = json.loads(annotations.get(name) or "[]")
    except (ValueError, TypeError):
        return []
    return spans if isinstance(spans, list) else []


def _first_span(text: str, annotations: dict[str, Any], name: str) -> str:
    spans = _spans(annotations, name)
    try:
        return text[int(spans[0]["start"]) : int(spans[0]["end"])]
    except (IndexError, KeyError, TypeError, ValueError):
        return ""


def _matched_paper(entry: Any) -> int | None:
    try:
        return int(entry["attributes"]["matched_paper_id"])
    except (KeyError, TypeError, ValueError):
        return None
