"""Index folders: memory-mapped arrays, lines of text, and a metadata.json that refuses what was not asked for.

    with new_folder(folder, metadata) as making:      # a temporary folder beside it, renamed when all is written
        np.save(making / "vectors.npy", vectors)
    metadata = read_metadata(folder, expected)         # InputError naming the field that differs
    vectors = open_array(folder, "vectors")            # read-only, memory-mapped

Nothing is pickled, so an index from elsewhere can be opened without running its code.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import InputError
from shared.results import write_atomic

METADATA = "metadata.json"
FORMAT = 1


@contextlib.contextmanager
def new_folder(folder: str | Path, metadata: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder to fill; it takes `folder`'s place whole, with `metadata`, or (on an error) not at all.

    `metadata` is written when the block ends, so the block may still add to it.
    """
    folder = check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield making
        content = json.dumps({"format": FORMAT, **metadata}, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(making / METADATA, content + "\n")
        making.chmod(0o755)
        _take_place(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def check_place(folder: str | Path) -> Path:
    """Raises InputError where something else than an index would be replaced."""
    folder = Path(folder).expanduser()
    if folder.exists() and not ((folder / METADATA).is_file() or (folder.is_dir() and not any(folder.iterdir()))):
        raise InputError(f"{folder} exists and is not an index; give a new folder or an index to replace")
    return folder


def _take_place(making: Path, folder: Path) -> None:
    if not folder.exists():
        making.rename(folder)
        return
    # A folder cannot be renamed over a full one: for one instant there is none, never a mixture of both.
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    making.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_metadata(folder: str | Path, expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of an index folder.

    Args:
        expected: values that must be the same in the index; None stands for "not asked for" and is not compared.

    Raises:
        InputError: no index there, one of another format, or a value that differs (both values are named).
    """
    path = Path(folder).expanduser() / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} is not an index: it has no {METADATA}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); make the index again") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{path.parent} is an index of another version of this program; make it again")
    for field, wanted in (expected or {}).items():
        if wanted is not None and metadata.get(field) != wanted:
            raise InputError(
                f"{path.parent} was made with {field}={metadata.get(field)!r}, but {field}={wanted!r} is asked for; "
                "make the index again or ask for what it was made with"
            )
    return metadata


def add_metadata(folder: str | Path, more: Mapping[str, Any]) -> None:
    """Add values to an index's metadata. Raises InputError where there is no index."""
    metadata = {**read_metadata(folder), **more}
    content = json.dumps(metadata, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(Path(folder).expanduser() / METADATA, content + "\n")


def open_array(folder: str | Path, name: str) -> np.ndarray:
    """`<folder>/<name>.npy`, memory-mapped and read-only. Raises InputError where it is missing or cut off."""
    path = Path(folder).expanduser() / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if path.is_file() and _is_empty(path):
            return np.load(path, allow_pickle=False)  # an array without elements cannot be mapped
        raise InputError(f"{path} cannot be read ({error}); make the index again") from None


def _is_empty(path: Path) -> bool:
    try:
        return np.load(path, allow_pickle=False).size == 0
    except (OSError, ValueError, EOFError):
        return False


class GrowingArray:
    """A one-dimensional `.npy` file written piece by piece, its length known only at the end.

    numpy's header is padded, so a header of the final length is written over the first one in place.
    """

    HEADER_BYTES = 128

    def __init__(self, path: Path, dtype: np.dtype | type):
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0

    def __enter__(self) -> GrowingArray:
        self.file = self.path.open("wb")
        self.file.write(self._header())
        return self

    def append(self, values: np.ndarray) -> None:
        np.ascontiguousarray(values, self.dtype).tofile(self.file)
        self.length += len(values)

    def __exit__(self, *_: object) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()

    def _header(self) -> bytes:
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        text = repr(about).encode("latin1")
        magic = b"\x93NUMPY\x01\x00"
        room = self.HEADER_BYTES - len(magic) - 2
        return magic + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n"
