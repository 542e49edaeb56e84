"""Which model this is, cheaply: what a journal is bound to, so that answers of two checkpoints are never mixed.

A hub id with a revision names its weights; a folder does not (a training run overwrites its own). For a folder the
digest covers the small files whole and of each weight file its size, first and last MiB: milliseconds where a full hash
of 140 GB takes minutes. Every optimizer step changes all of those.
"""

import hashlib
from pathlib import Path

PROBE = 1 << 20
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """`<folder name>@<16 hex digits>` for a folder (wherever it lies), `<hub id>@<revision>` otherwise."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in SMALL_FILES:
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(PROBE))
                file.seek(max(0, path.stat().st_size - PROBE))
                digest.update(file.read())
    return f"{folder.resolve().name}@{digest.hexdigest()[:16]}"


def text_fingerprint(text: str | None) -> str | None:
    """16 hex digits of a text (a chat template), None for None."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]
