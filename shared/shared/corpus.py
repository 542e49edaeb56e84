"""The offline corpus: real documents that every Python installation carries.

    docs         the language reference's topics (pydoc), README and documentation files inside installed packages
    docstring    module, class and function docstrings of the standard library and the installed packages
    description  the long descriptions of the installed packages
    source       whole source files (not part of the default: ten times as much as all others together)

A docstring is split where its authors split it: `summary` is the first sentence, `text` the rest, so that "find the
body that belongs to this summary" is a real retrieval task without a download. Nothing is imported: sources are read
with `ast`. Tests, vendored copies and what is no prose are left out, near-duplicates are removed (`shared.duplicates`:
Jaccard similarity of 3-word shingles at least 0.7).

The order is a hash of each file's package and path: the same for every locale, hash seed and directory order, and any
beginning of the corpus is a fair sample of the whole. `documents(max_documents=n)` is `documents()[:n]`, and reads no
more files than it needs. Extraction (`shared.extraction`) runs on two processes; the result is cached.
"""

import concurrent.futures
import email.message
import hashlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import re
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path, PurePosixPath

import numpy as np

from shared import InputError, extraction
from shared.duplicates import NearDuplicates
from shared.extraction import Document, Unit

log = logging.getLogger(__name__)

KINDS = ("docs", "docstring", "source", "description")
DEFAULT_KINDS = ("docs", "docstring", "description")
FORMAT = 1  # part of the cache key: raise it when extraction changes
PROCESSES = 2
UNITS_PER_TASK = 96
TEST_FOLDERS = frozenset(("test", "tests", "testing", "_testing"))
COPY_FOLDERS = frozenset(("_vendor", "vendor", "_vendored", "vendored", "third_party", "_bundled", "node_modules"))
OTHER_FOLDERS = frozenset(("site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib", "turtledemo"))
SKIPPED_FOLDERS = TEST_FOLDERS | COPY_FOLDERS | OTHER_FOLDERS
SKIPPED_FILES = re.compile(
    r"(test_.*|.*_test|conftest|.*_pb2)\.py$|(licen[cs]e|copying|notice|authors|third.?party).*", re.IGNORECASE
)
DOC_SUFFIXES = (".md", ".rst", ".html", ".htm")


def documents(
    kinds: Sequence[str] = DEFAULT_KINDS,
    max_documents: int | None = None,
    cache: str | Path | None = None,
    *,
    max_bytes: int | None = None,
    path: Sequence[str] | None = None,
) -> list[Document]:
    """The corpus of this environment, in a fixed order, without near-duplicates.

    max_documents, max_bytes (UTF-8 of title, summary and text) end it early, at the same document everywhere.
    cache is a folder (default: `repro/corpus` in the Hugging Face home); path is a list of folders with installed
    packages in place of this interpreter's, and then the standard library is left out.
    Raises InputError for an unknown kind or a limit below 1.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"kinds has {kind!r}: choose among {', '.join(KINDS)}")
    for name, limit in (("max_documents", max_documents), ("max_bytes", max_bytes)):
        if limit is not None and limit < 1:
            raise InputError(f"{name}={limit}: must be at least 1, or None for no limit")
    kinds = tuple(kind for kind in KINDS if kind in kinds)
    packages = installed(path)
    file = _cache_file(cache, kinds, max_documents, max_bytes, packages, path)
    found = _read_cache(file)
    if found is None:
        started = time.perf_counter()
        found = list(_limited(_unique(_extracted(units(kinds, packages, path))), max_documents, max_bytes))
        log.info("corpus: %d documents in %.1f s, cached at %s", len(found), time.perf_counter() - started, file)
        _write_cache(file, found)
    return found


def installed(path: Sequence[str] | None = None) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions by normalised name; the first on the path wins, as it does for imports."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(**({} if path is None else {"path": list(path)})):
        name = distribution.metadata["Name"] if distribution.metadata else None
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    return dict(sorted(found.items()))


def units(kinds: Sequence[str], packages: dict, path: Sequence[str] | None) -> list[Unit]:
    """Everything that will be read, in the corpus's order."""
    found = [unit for name, package in packages.items() for unit in _package_units(name, package, kinds)]
    if path is None:
        found += _standard_library(kinds)
    return sorted(found, key=lambda unit: (unit.rank, unit.kind, unit.package, unit.relative))


def _package_units(name: str, package: importlib.metadata.Distribution, kinds: Sequence[str]) -> Iterator[Unit]:
    version, url = package.version or "", home_page(package.metadata)
    if "description" in kinds:
        yield Unit("description", name, version, url, "METADATA", str(package.locate_file(".")))
    for file in package.files or ():
        for kind in _kinds_of(file, kinds):
            yield Unit(kind, name, version, url, file.as_posix(), str(file.locate()))


def _kinds_of(file: PurePosixPath, kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of documents to make of a file."""
    if ".." in file.parts or SKIPPED_FOLDERS & set(file.parts[:-1]) or SKIPPED_FILES.match(file.name):
        return ()
    if any(part.startswith(".") or part.endswith((".dist-info", ".egg-info")) for part in file.parts[:-1]):
        return ()
    if file.suffix == ".py":
        return tuple(kind for kind in ("docstring", "source") if kind in kinds)
    suffix = file.suffix.lower()
    is_doc = suffix in DOC_SUFFIXES or (suffix in ("", ".txt") and file.stem.upper() in ("README", "CHANGELOG"))
    return ("docs",) if "docs" in kinds and is_doc else ()


def _standard_library(kinds: Sequence[str]) -> Iterator[Unit]:
    version = platform.python_version()
    manual = f"https://docs.python.org/{sys.version_info[0]}.{sys.version_info[1]}"
    if "docs" in kinds:
        yield Unit("docs", "python", version, manual, "pydoc_data/topics.py", "")
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            relative = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            top = relative.parts[0].removesuffix(".py")
            url = "" if top.startswith("_") else f"{manual}/library/{top}.html"
            for kind in _kinds_of(relative, kinds):
                yield Unit(kind, "python", version, url, relative.as_posix(), str(root / relative))


def home_page(metadata: email.message.Message) -> str:
    """The project's own page from a package's metadata; "" where it names none."""
    urls = {}
    for entry in metadata.get_all("Project-URL") or ():
        label, _, url = entry.partition(",")
        urls[re.sub(r"[^a-z]", "", label.lower())] = url.strip()
    candidates = [metadata.get("Home-page") or ""]
    candidates += [
        urls.get(label, "") for label in ("homepage", "home", "repository", "source", "sourcecode", "github")
    ]
    candidates += [urls.get("documentation", ""), *urls.values()]
    return next((url.rstrip("/") for url in candidates if re.match(r"https?://\S+$", url)), "")


def _extracted(todo: list[Unit]) -> Iterator[tuple[list[Document], np.ndarray]]:
    """Documents and their MinHash keys, task by task in order; two processes where that is worth their start."""
    tasks = [todo[start : start + UNITS_PER_TASK] for start in range(0, len(todo), UNITS_PER_TASK)]
    processes = min(PROCESSES, os.cpu_count() or 1)
    if processes < 2 or len(tasks) < 4 or multiprocessing.current_process().daemon:
        yield from map(extraction.extract, tasks)
        return
    # Spawned, not forked: the caller may have torch's threads running, which a fork would freeze in any state.
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(extraction.extract, tasks)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError("a corpus worker died (memory?); a script needs `if __name__ == '__main__':`") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _unique(batches: Iterable[tuple[list[Document], np.ndarray]]) -> Iterator[Document]:
    known = NearDuplicates()
    for batch, keys in batches:
        for document, document_keys in zip(batch, keys, strict=True):
            if known.is_new(f"{document.summary}\n{document.text}", document_keys):
                yield document


def _limited(found: Iterator[Document], max_documents: int | None, max_bytes: int | None) -> Iterator[Document]:
    total = 0
    for position, document in enumerate(found, start=1):
        total += size_in_bytes(document)
        if max_bytes is not None and total > max_bytes:
            break
        yield document
        if position == max_documents:
            break
    getattr(found, "close", lambda: None)()  # stops the workers now, not when garbage is collected


def size_in_bytes(document: Document) -> int:
    return sum(len(part.encode("utf-8", "replace")) for part in (document.title, document.summary, document.text))


def _cache_file(cache: str | Path | None, kinds, max_documents, max_bytes, packages, path) -> Path:
    """Keyed by everything that decides the content: packages and versions, Python's version, and the parameters."""
    if cache is None:
        from shared import hub

        cache = hub.cache_folder("corpus")
    versions = [(name, package.version) for name, package in packages.items()]
    python = platform.python_version() if path is None else None
    key = json.dumps([FORMAT, versions, python, kinds, max_documents, max_bytes])
    return Path(cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.jsonl"


def _read_cache(file: Path) -> list[Document] | None:
    """The cached corpus; None where there is none or where it is not what was written (it is then made again)."""
    try:
        header, _, body = file.read_bytes().partition(b"\n")
        if json.loads(header)["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("checksum differs")
        return [Document(*json.loads(line)) for line in body.splitlines()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("corpus cache %s is unusable (%s): made again", file, error)
        return None


def _write_cache(file: Path, found: list[Document]) -> None:
    body = b"".join(json.dumps(astuple(document)).encode() + b"\n" for document in found)
    header = json.dumps({"documents": len(found), "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".corpus-", delete=False) as out:
        out.write(header + body)
    Path(out.name).replace(file)


def main() -> None:
    """`python -m shared.corpus [kind ...]`: make the corpus anew and say what is in it."""
    kinds = tuple(sys.argv[1:]) or DEFAULT_KINDS
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        try:
            found = documents(kinds, cache=cache)
        except InputError as error:
            sys.exit(f"error: {error}")
    seconds = time.perf_counter() - started
    print(f"{len(found)} documents, {sum(map(size_in_bytes, found)) / 1e6:.1f} MB, {seconds:.1f} s")
    for kind, count in sorted(Counter(document.kind for document in found).items()):
        size = sum(size_in_bytes(document) for document in found if document.kind == kind)
        print(f"  {kind:<12} {count:>7} documents {size / 1e6:>7.1f} MB")


if __name__ == "__main__":
    main()
