"""From one installed file to documents: docstrings by `ast`, documentation without its markup, package descriptions.

Nothing is imported or run. A file is read once; one that is gone, zipped, binary, not valid Python or longer than 1 MB
gives no documents. Of the Python files, those with less than 5 % of their bytes in triple quotes are not parsed: they
are a quarter of the source text and hold 2 % of the docstrings. Parsing is most of the cost; with garbage collection
off while the trees are built it runs at 9 MB of source per second and process, 1.2 times as fast as with it.
"""

import ast
import gc
import hashlib
import html
import importlib.metadata
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.duplicates import signatures, words

MIN_WORDS = 20
MIN_DOCSTRING_SHARE = 0.05
MAX_FILE_BYTES = 1_000_000
FREQUENT_WORDS = frozenset(
    {"the", "a", "an", "of", "to", "is", "are", "and", "in", "for", "this", "that", "be", "with", "it", "or", "on"}
)


@dataclass(frozen=True)
class Document:
    """One text with what names it.

    text      the body; for a docstring without its summary.
    title     qualified name, heading or package name.
    summary   one sentence on the same matter (may be empty for `docs` and `source`).
    origin    a URL (project page or docs.python.org, with the name as fragment), else package, version and path.
    kind      one of KINDS.
    package   the distribution it comes from; "python" for the standard library.
    """

    text: str
    title: str
    summary: str
    origin: str
    kind: str
    package: str


@dataclass(frozen=True)
class Unit:
    """A file (or a package's metadata, or the pydoc topics) that is read by one worker in one go."""

    kind: str
    package: str
    version: str
    url: str
    relative: str
    path: str

    @property
    def rank(self) -> bytes:
        """What orders the corpus: the same on every machine, and unrelated to what is in the file."""
        name = f"{self.kind}\0{self.package}\0{self.relative}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name, digest_size=16).digest()

    def origin(self, fragment: str = "") -> str:
        if self.url:
            return f"{self.url}#{fragment}" if fragment else self.url
        return f"{self.package} {self.version} {self.relative}"


def extract(task: list[Unit]) -> tuple[list[Document], np.ndarray]:
    """The documents of some files, and their MinHash band keys `(documents, 16)` (`shared.duplicates.signatures`)."""
    found, found_words = [], []
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            for unit in task:
                for document in _READERS[unit.kind](unit):
                    text_words = words(document.text)
                    if document.kind == "source" or is_prose(document.text, text_words):
                        found.append(document)
                        found_words.append(words(document.summary) + text_words)
    finally:
        if collecting:
            gc.enable()
    return found, signatures(found_words)


def is_prose(text: str, text_words: Sequence[str]) -> bool:
    """At least 20 words, mostly letters and blanks, and English enough to use its small words."""
    if len(text_words) < MIN_WORDS:
        return False
    sample = text[:4000]
    letters = sum(map(str.isalpha, sample)) + sample.count(" ")
    frequent = sum(word in FREQUENT_WORDS for word in text_words[:400])
    return letters >= 0.7 * len(sample) and frequent >= 0.04 * min(len(text_words), 400)


def split_summary(text: str) -> tuple[str, str]:
    """(first sentence, the rest) of a text whose first paragraph says what it is about."""
    first, _, rest = text.strip().partition("\n\n")
    first = " ".join(first.split())
    end = re.search(r"(?<![.\s][a-zA-Z])(?<!\be\.g)(?<!\bi\.e)[.!?](?=\s+[A-Z`*:\"'(\[])", first)
    if end:
        first, more = first[: end.end()], first[end.end() :].strip()
        rest = f"{more}\n\n{rest}" if rest else more
    return first, rest.strip()


def _docstrings(unit: Unit) -> Iterator[Document]:
    source = _read(unit.path)
    if source is None or _docstring_share(source) < MIN_DOCSTRING_SHARE:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for name, docstring in _documented(tree, module_name(unit.relative)):
        summary, text = split_summary(docstring)
        if len(text) >= 4 * MIN_WORDS and summary:
            yield Document(text, name, summary, unit.origin(name), "docstring", unit.package)


def _docstring_share(source: bytes) -> float:
    """Share of a file's bytes that stand between triple quotes."""
    quote = b'"""' if b'"""' in source else b"'''"
    return sum(map(len, source.split(quote)[1::2])) / max(len(source), 1)


def module_name(relative: str) -> str:
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module or class and all it defines, also below `if` and `try`."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
        if not isinstance(node, ast.Module | ast.ClassDef):
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _documented(child, name)


def _sources(unit: Unit) -> Iterator[Document]:
    source = _read(unit.path)
    if source is None:
        return
    try:
        encoding, _ = tokenize.detect_encoding(iter(source.splitlines(keepends=True)).__next__)
        text = source.decode(encoding)
        docstring = ast.get_docstring(ast.parse(source)) or ""
    except (SyntaxError, ValueError, LookupError, RecursionError, MemoryError):
        return
    if len(text.split()) >= MIN_WORDS:
        name = module_name(unit.relative)
        yield Document(text, name, split_summary(docstring)[0], unit.origin(name), "source", unit.package)


def _doc_files(unit: Unit) -> Iterator[Document]:
    if not unit.path:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            heading, text = plain_text(topics[name], ".rst")
            summary, rest = split_summary(text)
            yield Document(rest or text, heading or name, summary, f"{unit.url}/search.html?q={name}", "docs", "python")
        return
    content = _read(unit.path)
    if content is not None:
        heading, text = plain_text(content.decode("utf-8", "replace"), Path(unit.relative).suffix.lower())
        summary, rest = split_summary(text)
        yield Document(rest, heading or unit.relative, summary, unit.origin(unit.relative), "docs", unit.package)


def _descriptions(unit: Unit) -> Iterator[Document]:
    package = next(iter(importlib.metadata.distributions(name=unit.package, path=[unit.path])), None)
    if package is None:
        return
    metadata = package.metadata
    text = metadata.get_payload() or metadata.get("Description") or ""
    suffix = ".rst" if "rst" in (metadata.get("Description-Content-Type") or "rst") else ".md"
    _, text = plain_text(text if isinstance(text, str) else "", suffix)
    yield Document(text, metadata["Name"], metadata.get("Summary") or "", unit.origin(), "description", unit.package)


def plain_text(text: str, suffix: str) -> tuple[str, str]:
    """(first heading, text) without the markup that no reader sees: tags, badges, link targets, underlines."""
    if suffix in (".html", ".htm"):
        text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", text)
        text = re.sub(r"(?is)<h([1-6])\b[^>]*>(.*?)</h\1>", r"\n\n# \2\n\n", text)
        text = re.sub(r"(?i)</?(p|div|br|li|tr|table|ul|ol|pre|dt|dd)\b[^>]*>", "\n\n", text)
    text = html.unescape(re.sub(r"(?s)<!--.*?-->|</?[a-zA-Z][\w-]*(\s[^<>]*)?/?>", " ", text)).replace("\r\n", "\n")
    text = re.sub(r"\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?", "", text)  # images and badges
    text = re.sub(r"\[([^\]\[]+)\]\([^)\s]*\)", r"\1", text)
    text = re.sub(r"(?m)^\s*\.\. (image|_|\|).*\n(\s+:.*\n)*", "", text)
    heading = re.search(r"(?m)^#+ +(.+?)\s*#*$|^(\S.*)\n(?:={3,}|-{3,}|\*{3,})\s*$", text)
    title = " ".join((heading.group(1) or heading.group(2)).split()) if heading else ""
    if heading and not text[: heading.start()].strip("=-*# \n"):
        text = text[heading.end() :]
    text = re.sub(r"(?m)^([=\-*~^#\"'`+])\1{2,}\s*$\n?", "", text)
    return title, re.sub(r"[ \t]+\n", "\n", re.sub(r"\n\s*\n\s*", "\n\n", text)).strip()


_READERS = {"docs": _doc_files, "docstring": _docstrings, "source": _sources, "description": _descriptions}


def _read(path: str) -> bytes | None:
    """A file's bytes; None for one that is gone, inside a zip file, not readable or longer than 1 MB."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return None
    return content if len(content) <= MAX_FILE_BYTES and b"\0" not in content[:4096] else None
