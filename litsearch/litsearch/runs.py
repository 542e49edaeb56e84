"""Run files: what a retriever or reranker found for every question, as the release writes it, and as TREC does.

A run is JSON lines, one record per question: the question's own fields and `retrieved`, a list of corpusids, best first
(the release's format; its tools read ours and ours read the release's). Beside `<name>.jsonl` lies `<name>.meta.json`:
corpus and questions (as fingerprints), key, retriever, the stages that made it, and the run file's sha256, so that a
run of another corpus or an edited file is refused instead of scored.

A run is written whole (`write_run`); one that grows (reranking) uses `record_of` for its lines and writes its metadata
when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from litsearch.data import Corpus, Query, fingerprint_queries, query_from_record
from litsearch.records import iter_records
from shared import InputError
from shared.results import write_atomic

log = logging.getLogger(__name__)

QUERY_FIELDS = ("query_set", "query", "specificity", "quality", "corpusids")
META_SUFFIX = ".meta.json"


@dataclass
class RunRecord:
    """One question's result. `scores` belong to `retrieved`; `extra` keeps other fields (`original_retrieved`, ...)."""

    query: Query
    retrieved: list[int]
    scores: list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A run and how it came about.

    metadata: `corpus`, `queries` (fingerprints), `papers`, `key`, `dedup_keys`, `retriever` (its own metadata),
        `stages` (names in order, e.g. ["bm25", "onehop", "rerank:gpt-4o"]), `top_k`, `data`. What an unknown tool wrote
        has none of it.
    """

    records: list[RunRecord]
    metadata: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.records)

    @property
    def queries(self) -> list[Query]:
        return [record.query for record in self.records]

    @property
    def retrieved(self) -> list[list[int]]:
        return [record.retrieved for record in self.records]

    @property
    def key(self) -> str | None:
        return self.metadata.get("key")

    @property
    def system(self) -> str:
        """What made it: its stages, e.g. "bm25+onehop"; the file's name where that is not known."""
        stages = self.metadata.get("stages")
        return "+".join(stages) if stages else (self.path.stem if self.path else "run")


def run_metadata(corpus: Corpus, queries: Sequence[Query], **more: Any) -> dict[str, Any]:
    """The metadata every run has: what it was made from, and whatever else is given (key, retriever, stages, ...)."""
    made_from = {"corpus": corpus.fingerprint, "papers": len(corpus), "queries": fingerprint_queries(queries)}
    return {**made_from, **more}


# ------------------------------------------------------------------------------------------------------------ writing


def record_of(record: RunRecord) -> str:
    """One line of a run file, with its line end."""
    query = record.query
    line: dict[str, Any] = {name: getattr(query, name) for name in QUERY_FIELDS}
    line["corpusids"] = list(query.corpusids)
    line |= {"retrieved": [int(corpusid) for corpusid in record.retrieved]}
    if record.scores is not None:
        line["scores"] = [float(score) for score in record.scores]
    return json.dumps(line | record.extra, ensure_ascii=False) + "\n"


def metadata_path(path: str | Path) -> Path:
    """`run.jsonl` -> `run.meta.json`."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl") + META_SUFFIX)


def write_run(path: str | Path, run: Run) -> Path:
    """Write a run and its metadata; each appears whole, and the pair is bound by the run file's sha256."""
    path = Path(path).expanduser()
    if not path.name.endswith(".jsonl"):
        raise InputError(f"run: {path.name} must end in .jsonl")
    content = "".join(map(record_of, run.records)).encode()
    # The old metadata go first: a kill in between leaves a run without metadata, never one with another's.
    metadata_path(path).unlink(missing_ok=True)
    write_atomic(path, content)
    write_metadata(path, run.metadata)
    return path


def write_metadata(path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write the metadata of a run file that is complete, bound to its present content."""
    content = {**metadata, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return write_atomic(metadata_path(path), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------------------------------------ reading


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata beside a run file; what its name says (`LitSearch.<key>.<retriever>.jsonl`) where there is none.

    Raises InputError where the run file is not the one the metadata were written for.
    """
    path = Path(path).expanduser()
    beside = metadata_path(path)
    if not beside.is_file():
        parts = path.name.removesuffix(".gz").removesuffix(".jsonl").split(".")
        named = {"key": parts[1], "stages": parts[2:]} if len(parts) >= 3 and parts[0] == "LitSearch" else {}
        log.warning("%s has no %s: nothing shows which corpus it was made with", path.name, beside.name)
        return named
    try:
        metadata = json.loads(beside.read_text(encoding="utf-8"))
        written_for = metadata.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"run: {beside} cannot be read ({error}); delete it or make the run again") from None
    if hashlib.sha256(path.read_bytes()).hexdigest() != written_for:
        raise InputError(
            f"run: {path} is not the file that {beside.name} describes; make the run again, or delete "
            f"{beside.name} if you changed the run on purpose"
        )
    return metadata


def read_run(
    path: str | Path,
    queries: Sequence[Query] | None = None,
    corpus: Corpus | None = None,
    key: str | None = None,
) -> Run:
    """Read and check a run.

    Args:
        queries: the questions it may answer, each at most once; a run of fewer is accepted.
        corpus: the corpus it must have been made with; every retrieved id must be in it.
        key: the key it must have been made with.

    Raises:
        InputError: naming file, line, field, value and fix, for: an unknown or repeated question, answers that are not
            the question's, ids that repeat or are (paper, paragraph) pairs, and metadata of another corpus or key.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"run: {path} does not exist")
    metadata = read_metadata(path)
    _check_metadata(path, metadata, corpus, key)
    known = {query.query: query for query in queries} if queries is not None else None
    records, seen = [], {}
    for where, line in iter_records(path):
        record = _record(line, where, corpus)
        text = record.query.query
        if text in seen:
            raise InputError(f"{where}: the question of {seen[text]} appears again: {text!r}")
        seen[text] = where
        if known is not None:
            if text not in known:
                raise InputError(f"{where}: the question {text!r} is not among the {len(known)} questions")
            if known[text] != record.query:
                raise InputError(f"{where}: set, specificity, quality or answers differ from those of the question")
        records.append(record)
    if not records:
        raise InputError(f"run: {path} is empty")
    return Run(records, metadata, path)


def _check_metadata(path: Path, metadata: Mapping[str, Any], corpus: Corpus | None, key: str | None) -> None:
    made_with = metadata.get("corpus")
    if corpus is not None and made_with not in (None, corpus.fingerprint):
        raise InputError(
            f"run: {path} was made with another corpus ({metadata.get('papers')} papers, {made_with[:12]}) than this "
            f"one ({len(corpus)} papers, {corpus.fingerprint[:12]}); choose its data, or make the run again"
        )
    if key is not None and metadata.get("key") not in (None, key):
        raise InputError(f"run: {path} was made with key={metadata['key']}, not key={key}; make the run again")


def _record(line: dict[str, Any], where: str, corpus: Corpus | None) -> RunRecord:
    query = query_from_record(line, where)
    if "retrieved" not in line:
        raise InputError(f"{where}: there is no field 'retrieved' with the ids that were found")
    retrieved = check_ids(line["retrieved"], where)
    if corpus is not None:
        outside = [corpusid for corpusid in retrieved if corpusid not in corpus]
        if outside:
            raise InputError(f"{where}: retrieved holds {len(outside)} ids outside the corpus, the first {outside[0]}")
    scores = line.get("scores")
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(retrieved)):
        raise InputError(f"{where}: scores must be a list of {len(retrieved)} numbers, one for each retrieved id")
    extra = {name: value for name, value in line.items() if name not in (*QUERY_FIELDS, "retrieved", "scores")}
    return RunRecord(query, retrieved, scores, extra)


def check_ids(retrieved: Any, where: str, name: str = "retrieved") -> list[int]:
    """A list of corpusids without repetition; InputError otherwise."""
    if not isinstance(retrieved, list):
        raise InputError(f"{where}: {name} must be a list of corpusids, best first")
    for item in retrieved:
        if isinstance(item, list | tuple):
            raise InputError(
                f"{where}: {name} holds {item!r}, a (paper, paragraph) pair, which no recall can be computed from; "
                "rank papers by their best paragraph (key=paragraphs does)"
            )
        if isinstance(item, bool) or not isinstance(item, int):
            raise InputError(f"{where}: {name} holds {item!r}; corpusids are whole numbers")
    if len(set(retrieved)) < len(retrieved):
        first = next(item for i, item in enumerate(retrieved) if item in retrieved[:i])
        raise InputError(f"{where}: {name} holds {first} more than once; each paper may be ranked once")
    return retrieved


# --------------------------------------------------------------------------------------------------------------- TREC


def write_trec(path: str | Path, run: Run, tag: str | None = None) -> Path:
    """Write `qid Q0 docid rank score tag` lines; a question's id is its position in the run, from 0.

    TREC's tools rank by score, not by position: where the run has no scores, or scores that do not fall strictly, minus
    the rank stands in.
    """
    lines = []
    label = (tag or run.system).replace(" ", "_")
    for qid, record in enumerate(run.records):
        scores = record.scores
        if scores is None or any(a <= b for a, b in pairwise(scores)):
            scores = [-float(rank) for rank in range(1, len(record.retrieved) + 1)]
        for rank, (corpusid, score) in enumerate(zip(record.retrieved, scores, strict=True), start=1):
            lines.append(f"{qid} Q0 {corpusid} {rank} {score!r} {label}\n")
    return write_atomic(Path(path).expanduser(), "".join(lines))


def write_qrels(path: str | Path, queries: Sequence[Query]) -> Path:
    """Write the answers as `qid 0 docid 1` lines, with the same question ids as `write_trec`."""
    lines = [f"{qid} 0 {corpusid} 1\n" for qid, query in enumerate(queries) for corpusid in query.corpusids]
    return write_atomic(Path(path).expanduser(), "".join(lines))


def read_trec(path: str | Path, queries: Sequence[Query], corpus: Corpus | None = None) -> Run:
    """Read a TREC run; question ids are positions in `queries`. Questions without a line are left out.

    Papers are ranked by falling score, as TREC's tools do, and by their rank where scores are equal.

    Raises InputError naming file, line, field, value and fix.
    """
    path = Path(path).expanduser()
    found: dict[int, list[tuple[float, int, int]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"run: {path} cannot be read ({error})") from None
    tag = path.stem
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            qid, _, docid, rank, score, tag = line.split()
            entry = (-float(score), int(rank), int(docid))
            position = int(qid)
        except ValueError:
            raise InputError(f"{where}: expected `qid Q0 corpusid rank score tag`, got {line[:80]!r}") from None
        if not 0 <= position < len(queries):
            raise InputError(f"{where}: question id {qid} is not a position among the {len(queries)} questions")
        found.setdefault(position, []).append(entry)
    records = []
    for position in sorted(found):
        ranked = sorted(found[position])
        retrieved = check_ids([docid for *_, docid in ranked], f"{path.name}, question {position}")
        outside = [docid for docid in retrieved if corpus is not None and docid not in corpus]
        if outside:
            raise InputError(f"{path.name}, question {position}: {outside[0]} is not in the corpus")
        records.append(RunRecord(queries[position], retrieved, [-score for score, *_ in ranked]))
    if not records:
        raise InputError(f"run: {path} is empty")
    return Run(records, {"stages": [tag]}, path)
