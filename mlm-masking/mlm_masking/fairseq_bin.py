"""Reader of fairseq's memory-mapped data (`train.bin` with `train.idx`), the form of the authors' tokenised corpora.

    .idx   9 bytes `MMIDIDX\\0\\0`, uint64 version (1), uint8 code of the ids' type, uint64 number of lines, then int32
           lengths (lines,) in ids and int64 offsets (lines,) in bytes; little-endian
    .bin   the ids of all lines after one another

A line ends in id 2; a line of that id alone is an empty one. `dict.txt` has a BPE entry and its count on each line and
numbers them from 4; 0 to 3 are <s> <pad> </s> <unk>, and masked language modelling adds <mask> as the last id.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared import InputError

MAGIC, VERSION = b"MMIDIDX\0\0", 1
HEADER_BYTES = len(MAGIC) + 8 + 1 + 8
ID_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
FIRST_IDS = 4


@dataclass(frozen=True)
class FairseqBin:
    """A shard: `tokens` is the mapped stream (tokens,), `bounds` int64 (lines + 1,) where lines begin in it."""

    tokens: np.ndarray
    bounds: np.ndarray
    source: str


def is_fairseq(path: str | Path) -> bool:
    """Whether `path` names fairseq data: a prefix, one of the two files, or a folder with train.bin or train.idx."""
    return any(file.is_file() for file in _files(path))


def read_fairseq(path: str | Path) -> FairseqBin:
    """Map a shard.

    Raises:
        InputError: one of the two files is missing, another format or version, a type that holds no ids, an index or
            data that is truncated, lines that do not lie after one another.
    """
    data, index = _files(path)
    for file, other in ((index, data), (data, index)):
        if not file.is_file():
            raise InputError(f"{other.name} needs {file.name} beside it, but {file} does not exist")
    dtype, lengths, offsets = _read_index(index)
    if (lengths < 0).any():
        raise InputError(f"{index} is damaged: it has a line of {lengths.min()} ids")
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    if (offsets != bounds[:-1] * dtype.itemsize).any():
        raise InputError(f"{index} is damaged, or its lines do not lie after one another in {data.name}")
    expected, size = int(bounds[-1]) * dtype.itemsize, data.stat().st_size
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise InputError(f"{data} is {what}: {size} bytes, but {index.name} speaks of {expected}")
    tokens = np.memmap(data, dtype, mode="r") if size else np.zeros(0, dtype)
    return FairseqBin(tokens, bounds, str(data))


def vocabulary_size(path: str | Path) -> int:
    """Ids of the dictionary beside a shard (dict.txt in its folder or the one above), `<mask>` included.

    Raises:
        InputError: no dictionary there, or a line that is not an entry and its count.
    """
    folder = _files(path)[0].parent
    for candidate in (folder / "dict.txt", folder.parent / "dict.txt"):
        if candidate.is_file():
            lines = candidate.read_text("utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                entry, _, count = line.rpartition(" ")
                if not entry or not count.isdigit():
                    raise InputError(f"{candidate}, line {number}: {line!r} is not an entry and its count")
            return FIRST_IDS + len(lines) + 1
    raise InputError(
        f"fairseq data needs its dict.txt in {folder} or the folder above: without it no id can be checked"
    )


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """(type of the ids, lengths, offsets in bytes) of an .idx file."""
    content = path.read_bytes()
    if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
        raise InputError(f"{path} is no index of fairseq's memory-mapped format (it begins with {content[:9]!r})")
    version, code, lines = struct.unpack_from("<QBQ", content, len(MAGIC))
    if version != VERSION:
        raise InputError(f"{path}: version {version}, but this reads version {VERSION}")
    if code not in ID_TYPES:
        known = ", ".join(f"{number} {np.dtype(name).name}" for number, name in ID_TYPES.items())
        raise InputError(f"{path}: type code {code} is none of integers ({known})")
    if len(content) != HEADER_BYTES + 12 * lines:
        raise InputError(f"{path} is truncated or altered: {len(content)} bytes, {HEADER_BYTES + 12 * lines} expected")
    lengths = np.frombuffer(content, "<i4", lines, HEADER_BYTES)
    return np.dtype(ID_TYPES[code]), lengths, np.frombuffer(content, "<i8", lines, HEADER_BYTES + 4 * lines)


def _files(path: str | Path) -> tuple[Path, Path]:
    """(.bin, .idx) of a folder, a prefix or either file."""
    path = Path(path)
    if path.is_dir():
        path = path / "train"
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
