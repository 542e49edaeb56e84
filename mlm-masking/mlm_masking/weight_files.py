"""Weights on disk: safetensors (one file or shards), or a torch pickle, which is read with `weights_only=True` alone.

A pickle can hold any program; `weights_only=True` admits tensors and plain containers. The one more type admitted is
`argparse.Namespace`, a bag of attributes in which old training checkpoints keep their options.
"""

import argparse
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared import InputError

NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def weight_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's weights: `path` itself, or those of the folder.

    Raises:
        InputError: there is none, or a shard is missing.
    """
    if path.is_file():
        return [path]
    for name in NAMES:
        file = path / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return [file]
        shards = [path / shard for shard in sorted(set(json.loads(file.read_text("utf-8"))["weight_map"].values()))]
        if absent := [shard.name for shard in shards if not shard.is_file()]:
            raise InputError(f"{path}: shard {absent[0]} is missing: the checkpoint is incomplete, fetch it again")
        return shards
    raise InputError(f"{path}: no weights; expected a folder with {', '.join(NAMES)}, or a checkpoint file")


def weight_names(path: Path) -> set[str]:
    """The names of a checkpoint's tensors; of safetensors only the header is read."""
    names: set[str] = set()
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            with _opened(file) as tensors:
                names |= set(tensors.keys())
        else:
            names |= set(read_pickle(file)[0])
    return names


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors on the CPU, and the options that were saved beside them (empty for safetensors)."""
    found: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            with _opened(file) as tensors:
                found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        else:
            tensors, options = read_pickle(file)
            found |= tensors
    return found, options


def _opened(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from None


def read_pickle(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, options) of a torch file: a state dict, or a training checkpoint that keeps one under `model`.

    Raises:
        InputError: the file is cut short, is no checkpoint, or holds objects that `weights_only=True` does not admit.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with file.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # torch's own message ends in advice to load it unsafely
        what = str(error).split("GLOBAL ")[-1].split(" was not")[0] if "GLOBAL" in str(error) else "other objects"
        raise InputError(
            f"{file} holds more than tensors and plain options ({what.splitlines()[0][:80]}) and was not read: save "
            "its state dict alone where it comes from: torch.save({'model': checkpoint['model']}, ...)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a torch checkpoint: {str(error).splitlines()[0]}") from None
    options: dict[str, Any] = {}
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        options = _options(stored)
        stored = stored["model"]
    tensors = (
        {name: value for name, value in stored.items() if isinstance(value, Tensor)} if isinstance(stored, dict) else {}
    )
    if not tensors:
        raise InputError(f"{file} holds no tensors by name: it is not a checkpoint of a model")
    return tensors, options


def _options(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The model's options in a training checkpoint, wherever its version of the framework put them."""
    found: dict[str, Any] = {}
    config = checkpoint.get("cfg")
    for part in (checkpoint.get("args"), config.get("model") if isinstance(config, dict) else None):
        if isinstance(part, argparse.Namespace):
            found |= vars(part)
        elif isinstance(part, dict):
            found |= part
    return found


def fingerprint(folder: Path) -> str:
    """A digest of a model's weights, configuration and tokenizer: another model in the same place is another run."""
    digest = hashlib.sha256()
    others = [folder / name for name in ("config.json", "tokenizer.json", "vocab.json", "merges.txt")]
    for file in [*weight_files(folder), *(file for file in others if file.is_file())]:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
