"""Fill a mirror folder with what a paper needs: `python -m shared.hub mirror <paper> [name ...]`.

Run where there is internet; afterwards the folder stands in for the hub and the authors' servers (`shared.hub`).
Every file is downloaded next to the mirror (in `.partial`), checked, and renamed into place, so a mirror never holds
half a file and a killed run goes on where it stopped. The check is the sha256 that the hub states for large files, the
git blob id for small ones, and whatever digests sources.yaml and MIRROR.json hold. A file that differs is refused with
both digests, never overwritten.

Hub files are fetched by huggingface_hub (resume, retries, Xet, proxies, tokens); plain URLs by `shared.transfer`.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from shared import InputError, hub
from shared.sources import MODEL_FILES, Source, human_bytes, source, sources
from shared.transfer import TIMEOUT_SECONDS, fetch_url, unpack

STAGING = ".partial"
# Weights for other frameworks that lie beside the ones we load.
OTHER_FRAMEWORKS = ("onnx/*", "openvino/*", "coreml/*", "original/*")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository: its name there, size in bytes, and sha256 (large files) or git blob id (small)."""

    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None

    def difference(self, path: Path) -> str | None:
        """None if the file at `path` is this file, else what was expected and what was found."""
        if self.size is not None and path.stat().st_size != self.size:
            return f"expected {self.size} bytes, found {path.stat().st_size}"
        if self.sha256:
            expected, found, kind = self.sha256, hub.sha256_of(path), "sha256"
        elif self.blob_id:
            expected, found, kind = self.blob_id, git_blob_id(path), "git blob id"
        else:
            return None
        return None if expected == found else f"expected {kind} {expected}, found {found}"


def git_blob_id(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def listing(wanted: Source, revision: str) -> tuple[str, list[RemoteFile]]:
    """(commit, the source's files) as the hub states them; InputError where the hub refuses."""
    from huggingface_hub import HfApi

    with _hub_errors(wanted):
        info = HfApi().repo_info(
            wanted.repo, repo_type=wanted.repo_type, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    files = [
        RemoteFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in info.siblings or ()
        if any(fnmatch.fnmatch(entry.rfilename, pattern) for pattern in wanted.files)
        and not any(fnmatch.fnmatch(entry.rfilename, pattern) for pattern in OTHER_FRAMEWORKS)
    ]
    if any(file.name.endswith(".safetensors") for file in files):
        files = [file for file in files if not file.name.endswith(".bin")]
    elif wanted.kind == "model" and not any(file.name.endswith(".bin") for file in files):
        raise InputError(
            f"{wanted.repo} has no safetensors weights: convert it on a machine you trust and give the folder as model="
        )
    for pattern in wanted.files:
        if wanted.kind != "model" and not any(fnmatch.fnmatch(file.name, pattern) for file in files):
            raise InputError(f"{wanted.origin} has no file {pattern!r}: correct `files` in {wanted.paper}/sources.yaml")
    return info.sha, files


@contextlib.contextmanager
def _hub_errors(wanted: Source) -> Iterator[None]:
    """The client's errors as one message with a fix; a connection that breaks is reported with how to go on."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{wanted.paper}: {wanted.name}: {wanted.repo}"
    try:
        yield
    except GatedRepoError:
        page = f"{hub.endpoint()}/{'datasets/' if wanted.repo_type == 'dataset' else ''}{wanted.repo}"
        raise InputError(f"{what} is gated: accept its licence at {page}, then set HF_TOKEN to your token") from None
    except RevisionNotFoundError:
        raise InputError(
            f"{what} has no revision {wanted.revision}: correct it in {wanted.paper}/sources.yaml"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"{what} does not exist, or is private: correct the id, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise InputError(f"{what}: the hub answered {status}: run the same command again later") from None
    except Exception as error:
        # The client's transport (httpx, then httpx2) is its own affair: every one of its errors derives from OSError or
        # is named here by module, so that a bug of ours keeps its traceback.
        if not (isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore"}):
            raise
        raise InputError(f"{what}: download broke off ({error}): run the same command again, it resumes") from None


def fetch_to_hub_cache(wanted: Source) -> Path:
    """Download into the Hugging Face cache at the pinned revision; path as in `hub.locate`."""
    from huggingface_hub import snapshot_download

    commit, files = listing(wanted, wanted.revision)
    with _hub_errors(wanted):
        # The revision as asked for, not the commit: the cache then also remembers what `main` meant, for offline use.
        folder = Path(
            snapshot_download(
                wanted.repo,
                repo_type=wanted.repo_type,
                revision=wanted.revision,
                allow_patterns=[file.name for file in files],
            )
        )
    for file in files:
        difference = file.difference(folder / file.name)
        if difference:
            raise InputError(f"{wanted.paper}: {folder / file.name} (commit {commit}): {difference}; delete it")
    path = folder / wanted.files[0] if wanted.single else folder
    hub.verify(path, wanted, None)
    return path


def fetch(wanted: Source, root: Path) -> Path:
    """Bring one source into `root` (a mirror's or the cache's folder of this paper) and record it; its path there."""
    target = root / wanted.mirror[0]
    staging = root / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with FileLock(staging / f"{wanted.name.replace('/', '--')}.lock"):
        if wanted.excerpt:
            record = _excerpt(wanted, root, target)
        elif wanted.kind == "archive":
            record = _fetch_archive(wanted, root, target)
        elif wanted.kind == "url":
            record = _fetch_plain(wanted, root, target)
        else:
            record = _fetch_files(wanted, root, target)
        hub.verify(target, wanted, root)
        _write_record(root, wanted, record)
    return target


def _fetch_files(wanted: Source, root: Path, target: Path) -> dict:
    commit, files = listing(wanted, _held_revision(wanted, root))
    held = hub.read_record(root).get(wanted.name, {}).get("files", {})
    digests = {}
    for remote in files:
        final = target if wanted.single else target / remote.name
        relative = final.relative_to(root).as_posix()
        if not final.is_file():
            staged = _download(wanted, commit, remote, root)
            _hold(wanted, staged, held.get(relative), wanted.sha256.get(remote.name))
            final.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(final)
        elif difference := remote.difference(final):
            raise InputError(f"{wanted.paper}: {wanted.name}: {final}: {difference}; delete it and fetch it again")
        digests[relative] = _digest(final)
    return {"repo": wanted.repo, "commit": commit, "files": digests}


def _download(wanted: Source, commit: str, remote: RemoteFile, root: Path) -> Path:
    """One hub file into the staging folder, checked against what the hub states."""
    from huggingface_hub import hf_hub_download

    folder = root / STAGING / f"{wanted.repo.replace('/', '--')}@{commit[:12]}"
    with _hub_errors(wanted):
        path = Path(
            hf_hub_download(wanted.repo, remote.name, repo_type=wanted.repo_type, revision=commit, local_dir=folder)
        )
    difference = remote.difference(path)
    if difference:
        path.unlink()
        raise InputError(f"{wanted.paper}: {wanted.name}: {remote.name} as downloaded: {difference}; run it again")
    return path


def _hold(wanted: Source, staged: Path, recorded: dict | None, pinned: str | None) -> None:
    """Refuse a new download that is not the file recorded at first use, or not the pinned one."""
    found = None
    for expected, where in ((recorded or {}).get("sha256"), "MIRROR.json"), (pinned, "sources.yaml"):
        if expected is None:
            continue
        found = found or hub.sha256_of(staged)
        if found != expected:
            staged.unlink()
            raise InputError(
                f"{wanted.paper}: {wanted.name}: {staged.name} differs from {where}: "
                f"expected sha256 {expected}, found {found}"
            )


def _held_revision(wanted: Source, root: Path) -> str:
    """The pinned commit, else the commit recorded when `main` was first mirrored, else `main`."""
    if len(wanted.revision) == 40:
        return wanted.revision
    return hub.read_record(root).get(wanted.name, {}).get("commit") or wanted.revision


def _fetch_archive(wanted: Source, root: Path, target: Path) -> dict:
    held = hub.read_record(root).get(wanted.name, {})
    if target.exists():
        if not hub.is_complete(target, wanted):
            raise InputError(f"{wanted.paper}: {target} is there but incomplete: delete it and run this again")
        if held:
            return held
        # Laid there by hand: the digests of sources.yaml hold (hub.verify), the rest is taken as it is.
        return {"found": "in place, not fetched by this command", "files": _digests(target, root)}
    if wanted.url:
        commit, archive = None, fetch_url(wanted.url, root / STAGING)
    else:
        commit, files = listing(wanted, _held_revision(wanted, root))
        archive = _download(wanted, commit, files[0], root)
    _hold(wanted, archive, held.get("archive"), None)
    with tempfile.TemporaryDirectory(dir=root / STAGING, prefix="unpack-") as folder:
        unpack(archive, wanted, Path(folder) / "content")
        hub.verify(Path(folder) / "content", wanted, None, everything=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "content").replace(target)
    record = {
        **({"repo": wanted.repo, "commit": commit} if commit else {"url": wanted.url}),
        "archive": _digest(archive),
        "files": _digests(target, root),
    }
    if not any(
        other.origin == wanted.origin and not hub.is_complete(root / other.mirror[0], other)
        for other in sources(wanted.paper).values()
    ):
        archive.unlink()
    return record


def _fetch_plain(wanted: Source, root: Path, target: Path) -> dict:
    if not target.is_file():
        held = hub.read_record(root).get(wanted.name, {}).get("files", {})
        staged = fetch_url(wanted.url, root / STAGING)
        _hold(wanted, staged, held.get(target.relative_to(root).as_posix()), wanted.sha256.get(wanted.single))
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)
    return {"url": wanted.url, "files": {target.relative_to(root).as_posix(): _digest(target)}}


def _excerpt(wanted: Source, root: Path, target: Path) -> dict:
    """The first lines of another source that is already in `root`."""
    whole, count = source(wanted.paper, wanted.excerpt["of"]), int(wanted.excerpt["lines"])
    path = root / whole.mirror[0]
    if not target.is_file():
        if not path.is_file():
            raise InputError(f"{wanted.paper}: {wanted.name} is made from {whole.name}: fetch that first")
        with path.open("rb") as lines, (root / STAGING / target.name).open("wb") as out:
            out.writelines(itertools.islice(lines, count))
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / STAGING / target.name).replace(target)
    return {"excerpt": wanted.excerpt, "files": {target.relative_to(root).as_posix(): _digest(target)}}


def _digest(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": hub.sha256_of(path)}


def _digests(folder: Path, root: Path) -> dict:
    return {p.relative_to(root).as_posix(): _digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _write_record(root: Path, wanted: Source, record: dict) -> None:
    with FileLock(root / STAGING / "MIRROR.lock"):
        known = hub.read_record(root)
        entry = {**record, "licence": wanted.licence}
        stamp = known.get(wanted.name, {}).get("recorded_at") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        known[wanted.name] = {**entry, "recorded_at": stamp}
        text = json.dumps({"sources": dict(sorted(known.items()))}, indent=1, ensure_ascii=False)
        staged = root / STAGING / "MIRROR.json"
        staged.write_text(text + "\n", "utf-8")
        staged.replace(root / "MIRROR.json")


def command_line(arguments: list[str]) -> int:
    """`python -m shared.hub mirror|check <paper> [name ...] [--to DIR]`; the exit status (2: said on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.hub", description="Fill or check a mirror of a paper's data"
    )
    parser.add_argument(
        "command", choices=("mirror", "check"), help="mirror: download; check: list and hash what is there"
    )
    parser.add_argument("paper")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help="sources of the paper (default: all but optional ones), or hub model ids",
    )
    parser.add_argument("--to", metavar="DIR", help="the mirror; default $REPRO_MIRROR")
    options = parser.parse_args(arguments)
    try:
        wanted = _chosen(options.paper, options.names)
        root = _mirror_root(options.to) / options.paper
        return {"mirror": fill, "check": check}[options.command](wanted, root)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _chosen(paper: str, names: list[str]) -> list[Source]:
    known = sources(paper)
    if not names:
        names = [name for name, entry in known.items() if not entry.optional]
        if left := [name for name in known if name not in names]:
            print(f"left out, unless you name them: {', '.join(left)}")
    wanted = []
    for name in names:
        if name in known or "/" not in name:
            wanted.append(source(paper, name))
        else:
            wanted.append(Source(paper, name, "model", (f"models/{name}",), repo=name, files=MODEL_FILES))
    return wanted


def _mirror_root(to: str | None) -> Path:
    root = to or os.environ.get("REPRO_MIRROR")
    if not root:
        raise InputError("where to? set REPRO_MIRROR=/path or give --to /path")
    return Path(root).expanduser().absolute()


def fill(wanted: list[Source], root: Path) -> int:
    """Fetch the sources into `root`; 0 if all are there, 2 if one could not be had (the others are fetched anyway)."""
    _show_plan(wanted, root)
    public = [entry for entry in wanted if entry.repo or entry.url or entry.excerpt]
    _room_for(public, root)
    refused: list[str] = []
    cut_off: dict[str, list[str]] = {}
    # Excerpts last: they are made from what the others fetch.
    for entry in sorted(public, key=lambda entry: bool(entry.excerpt)):
        host = entry.url or hub.endpoint()
        reason = None if entry.excerpt else hub.unreachable(host)
        try:
            if not reason:
                fetch(entry, root)
            path = hub.within(root, entry)
            if path is None:
                cut_off.setdefault(f"{host}: {reason}", []).append(entry.name)
                continue
            hub.verify(path, entry, root, everything=True)
            print(f"there: {entry.name}: {path}")
        except InputError as error:
            refused.append(str(error))
    refused += [f"{why}, so these are missing: {', '.join(names)}" for why, names in cut_off.items()]
    for message in refused:
        print(f"error: {message}", file=sys.stderr)
    if not refused:
        shutil.rmtree(root / STAGING, ignore_errors=True)
    return 2 if refused else 0


def _show_plan(wanted: list[Source], root: Path) -> None:
    print(f"into {root}")
    for entry in wanted:
        size = "there" if hub.within(root, entry) else human_bytes(_size(entry, root))
        print(f"  {entry.name:<32} {size:>12}  {entry.origin}\n{'':47}licence: {entry.licence}")


def _size(entry: Source, root: Path) -> int | None:
    """What is to be downloaded, in bytes: from sources.yaml, else from the hub where it answers."""
    if entry.bytes is not None or entry.repo is None or hub.unreachable(hub.endpoint()):
        return entry.bytes
    try:
        return sum(file.size or 0 for file in listing(entry, _held_revision(entry, root))[1])
    except InputError:  # told when it is fetched
        return None


def _room_for(wanted: list[Source], root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    needed = sum(entry.bytes or 0 for entry in wanted if not hub.within(root, entry))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise InputError(f"{root} has {human_bytes(free)} free, {human_bytes(needed)} are needed: name fewer sources")


def check(wanted: list[Source], root: Path) -> int:
    """List what is there and what is missing, hashing every file whose digest is known; 2 if one differs."""
    differs = False
    for entry in wanted:
        path = hub.within(root, entry)
        state = f"{'incomplete' if (root / entry.mirror[0]).exists() else 'missing'}: {root / entry.mirror[0]}"
        try:
            if path is not None:
                hashed = hub.verify(path, entry, root, everything=True)
                state = f"there, {f'{hashed} files hashed' if hashed else 'no digests known'}: {path}"
        except InputError as error:
            differs, state = True, f"DIFFERS: {error}"
        print(f"{entry.name:<32} {state}")
    return 2 if differs else 0
