"""Bring a file here by URL, and open an archive without trusting it.

For what the hub's own client does not carry: releases of code repositories and authors' servers. A download goes on
where it stopped (HTTP Range, guarded by the ETag so that two versions are never glued together), and a tar file may
write nowhere but into its folder: absolute paths, `..`, links and devices refuse the whole archive.
"""

import contextlib
import fnmatch
import hashlib
import logging
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from shared import InputError
from shared.sources import Source

log = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 2**20


def fetch_url(url: str, folder: Path) -> Path:
    """Download `url` into `folder`, resuming an earlier part; InputError where it cannot be had.

    Five attempts without progress end it; every attempt that brought bytes starts the count again.
    """
    name = Path(urlsplit(url).path).name or "download"
    final = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    part, tag = final.with_name(final.name + ".part"), final.with_name(final.name + ".etag")
    failures = 0
    while not final.is_file():
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _transfer(url, part, tag):
                part.replace(final)
                tag.unlink(missing_ok=True)
                break
            error: object = "connection closed early"
        except urllib.error.HTTPError as answer:
            if answer.code < 500 and answer.code not in (408, 416, 429):
                raise InputError(f"{url}: the server answered {answer.code} {answer.reason}") from None
            if answer.code == 416:  # our part is not a beginning of what is there now
                part.unlink(missing_ok=True)
            error = answer
        except OSError as broken:
            error = broken
        progressed = part.is_file() and part.stat().st_size > before
        failures = 0 if progressed else failures + 1
        if failures == ATTEMPTS:
            raise InputError(f"{url}: download broke off ({error}): run the same command again, it resumes")
        log.warning("%s: %s; resuming", url, error)
        time.sleep(min(2**failures - 1, 10))
    return final


def _transfer(url: str, part: Path, tag: Path) -> bool:
    """Append to `part` what one request brings; whether the file is then complete."""
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    headers = {"User-Agent": "shared.hub", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text("utf-8")}
    with contextlib.closing(
        urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    ) as answer:
        resumed = answer.status == 206
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        expected = start + int(length) if length else None
        etag = answer.headers.get("ETag", "")
        # A weak tag does not promise equal bytes, so such a download starts again from nothing.
        if etag and not etag.startswith("W/"):
            tag.write_text(etag, "utf-8")
        else:
            tag.unlink(missing_ok=True)
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(desc=part.stem[13:], total=expected, initial=start, unit="B", unit_scale=True, leave=False) as bar,
        ):
            while chunk := answer.read(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    return expected is None or part.stat().st_size == expected


def unpack(archive: Path, wanted: Source, into: Path) -> None:
    """Unpack the members that `wanted.unpack` names into the new folder `into`; InputError if unsafe or not as told."""
    into.mkdir(parents=True)
    tops = set()
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = _checked(member, archive, wanted)
                tops.add(path.parts[0] if path.parts else ".")
                target = destination(path, wanted)
                if member.isfile() and target is not None:
                    tar.extract(member.replace(name=target.as_posix(), deep=False), into, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{wanted.paper}: {wanted.name}: {archive.name} cannot be unpacked: {error}") from None
    missing = [target for target in wanted.unpack.values() if not (into / target).exists()]
    if missing or not any(into.iterdir()):
        raise InputError(
            f"{wanted.paper}: {wanted.name}: {archive.name} has nothing for {', '.join(missing) or 'any target'}; "
            f"at its top are {', '.join(sorted(tops)[:10])}: correct `unpack` in {wanted.paper}/sources.yaml"
        )


def _checked(member: tarfile.TarInfo, archive: Path, wanted: Source) -> PurePosixPath:
    path = PurePosixPath(member.name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name.split("/")[0]
    if unsafe or not (member.isfile() or member.isdir() or member.type in (tarfile.XGLTYPE, tarfile.XHDTYPE)):
        raise InputError(
            f"{wanted.paper}: {wanted.name}: {archive.name} is refused: member {member.name!r} "
            f"{'leaves its folder' if unsafe else 'is a link or a device'}"
        )
    return path


def destination(path: PurePosixPath, wanted: Source) -> PurePosixPath | None:
    """Where an archive's member goes below the source's folder; None if it is not wanted."""
    if not any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in wanted.keep):
        return None
    for pattern, target in wanted.unpack.items():
        parts = tuple(pattern.split("/"))
        starts = range(len(path.parts)) if parts[0] == "**" else (0,)
        parts = parts[1:] if parts[0] == "**" else parts
        for start in starts:
            head = path.parts[start : start + len(parts)]
            if len(head) == len(parts) and all(map(fnmatch.fnmatchcase, head, parts)):
                return PurePosixPath(target, *path.parts[start + len(parts) :])
    return None
