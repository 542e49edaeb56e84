"""What a paper needs from outside: the entries of its sources.yaml, as typed values.

One entry is one thing that can be located (`shared.hub.locate`) and mirrored (`shared.mirror`): files of a hub
repository, a model, a tar file, a URL. The yaml is data for people too: sizes and licences stand beside the ids.
"""

import functools
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from shared import InputError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("files", "archive", "model", "url")
# What a model needs to be loaded: configuration, tokenizer and safetensors, no code, no pickles, no other frameworks.
MODEL_FILES = ("*.safetensors", "*.json", "vocab.*", "merges.txt", "tokenizer.model", "spiece.model", "*.jinja")


@dataclass(frozen=True)
class Source:
    """One entry of a paper's sources.yaml.

    kind      files: files of a hub repository; model: the same, with what a model needs; archive: a tar file (of a hub
              repository or a URL) that is unpacked; url: one plain file. A source without `repo` and `url` exists only
              in a mirror made by hand.
    mirror    path below `$REPRO_MIRROR/<paper>`; further entries are other places where it may lie.
    files     names or patterns in the repository (or below `mirror`).
    unpack    for archives: {path in the archive: path below `mirror`}, where a part `*` stands for one folder of any
              name and `**` for any number of them; `keep` narrows it to members that match one of its patterns.
    excerpt   {of: another source, lines: n}: the first n lines of that file, made locally.
    sha256    {path below `mirror`, or the file's name: digest}.
    optional  large, or needed by few: `make mirror-<paper>` leaves it out unless it is named.
    """

    paper: str
    name: str
    kind: str
    mirror: tuple[str, ...]
    repo: str | None = None
    repo_type: str = "model"
    revision: str = "main"
    aliases: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    url: str | None = None
    unpack: dict[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ("*",)
    excerpt: dict = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    bytes: int | None = None
    optional: bool = False
    licence: str = "not stated"
    note: str = ""

    @property
    def single(self) -> str | None:
        """The one file this source consists of, if it does."""
        if self.kind == "url" or (
            self.kind == "files" and len(self.files) == 1 and not set("*?[") & set(self.files[0])
        ):
            return Path(self.files[0] if self.files else urlsplit(self.url).path).name
        return None

    @property
    def origin(self) -> str:
        if self.url:
            return self.url
        return f"{self.repo}@{self.revision[:12]}" if self.repo else "no public download"


def sources_file(paper: str) -> Path:
    """The paper's sources.yaml, beside this checkout's packages or beside the installed package."""
    candidates = [ROOT / paper / "sources.yaml"]
    try:
        spec = importlib.util.find_spec(paper.replace("-", "_")) if paper.isidentifier() or "-" in paper else None
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin:
        candidates.append(Path(spec.origin).resolve().parents[1] / "sources.yaml")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(path.parent.name for path in ROOT.glob("*/sources.yaml"))
    raise InputError(f"unknown paper {paper!r}: no {paper}/sources.yaml; known: {', '.join(known) or 'none'}")


def sources(paper: str) -> dict[str, Source]:
    """All sources of a paper by name; InputError for an entry that cannot be used."""
    path = sources_file(paper)
    known = path.stat()
    return dict(_read(paper, path, known.st_mtime_ns, known.st_size))


@functools.lru_cache(maxsize=64)  # a plan asks a hundred times, and parsing takes a tenth of a second
def _read(paper: str, path: Path, modified: int, size: int) -> dict[str, Source]:
    entries = (yaml.safe_load(path.read_text("utf-8")) or {}).get("sources") or {}
    return {name: _source(paper, name, entry, path) for name, entry in entries.items()}


def _source(paper: str, name: str, entry: dict, path: Path) -> Source:
    where = f"{paper}/{path.name}, source {name!r}"
    unknown = set(entry) - set(Source.__dataclass_fields__)
    if unknown:
        raise InputError(
            f"{where}: unknown field {sorted(unknown)[0]!r}; fields: {', '.join(Source.__dataclass_fields__)}"
        )
    if entry.get("kind") not in KINDS:
        raise InputError(f"{where}: kind is {entry.get('kind')!r}, not one of {', '.join(KINDS)}")
    values = dict(entry)
    values.setdefault("mirror", f"models/{name}" if entry["kind"] == "model" else name)
    if entry["kind"] == "model":
        values.setdefault("files", MODEL_FILES)
    for key in ("mirror", "files", "keep", "aliases"):
        if key in values:
            values[key] = (values[key],) if isinstance(values[key], str) else tuple(values[key])
    made = Source(paper=paper, name=name, **values)
    lacking = [
        key
        for key, needed in {
            "files": made.kind in ("files", "model") or (made.kind == "archive" and not made.url),
            "repo": made.kind == "model",
            "url": made.kind == "url",
            "unpack": made.kind == "archive",
        }.items()
        if needed and not getattr(made, key)
    ]
    if lacking:
        raise InputError(f"{where}: kind {made.kind} needs `{lacking[0]}`")
    return made


def source(paper: str, name: str) -> Source:
    known = sources(paper)
    if name not in known:
        raise InputError(f"{paper} has no source {name!r}; known: {', '.join(known)}")
    return known[name]


def human_bytes(count: float | None) -> str:
    if count is None:
        return "size unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
