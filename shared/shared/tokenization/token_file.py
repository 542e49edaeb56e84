"""A token file: a folder of plain arrays, read by memory mapping, and refused where it is not what was written.

    tokens.bin       the ids, little-endian uint16 (vocabularies up to 65,536) or uint32, one document after another
    documents.npy    int64 (documents + 1,): document i is tokens[documents[i]:documents[i + 1]]
    metadata.arrow   one row per document (URL, domain, ...); Arrow's stream format; only where there is metadata
    header.json      dtype, counts, the tokenizer's hash and special ids, size and CRC-32 of each file, and of itself

Nothing else is needed to read one (`np.memmap(folder / "tokens.bin", dtype)`, `np.load(folder / "documents.npy")`,
`datasets.Dataset.from_file(str(folder / "metadata.arrow"))`), nor to write one: put the first two there with any tool,
then `seal(folder, tokenizer)` counts, checks and adds the header (an example with `datasets` is in `seal`).

Opening compares every file's size, and the CRC-32 of all that is not larger than 256 MB (0.2 s at worst); larger files
are read whole only by `TokenFile.verify()`. CRC-32, not SHA-256: it guards against accidents, and its state is one
number, so that an interrupted writer can go on from it.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import InputError
from shared.results import write_atomic
from shared.tokenization.encoding import TokenizerFacts, tokenizer_facts

FORMAT, VERSION = "token-file", 1
TOKENS, DOCUMENTS, METADATA, HEADER = "tokens.bin", "documents.npy", "metadata.arrow", "header.json"
CHECK_ON_OPEN_BYTES = 256 * 2**20
READ_BYTES = 4 * 2**20
READ_STARTS = 2**17


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id of the vocabulary fits, else uint32; little-endian either way."""
    if not 0 < vocab_size <= 2**32:
        raise InputError(f"vocab_size={vocab_size}: ids must fit into 32 bits")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class Documents(Sequence):
    """The documents of a token file: `documents[i]` is the ids of one, a view into the mapped file.

    `starts` is int64 (documents + 1,): where each begins in the stream, and the stream's length at the end.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, metadata_file: Path | None):
        self._tokens, self.starts, self._metadata_file, self._table = tokens, starts, metadata_file, None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if isinstance(index, slice):
            raise TypeError("documents are taken one at a time; a run of them is tokens[starts[i]:starts[j]]")
        position = range(len(self))[index]  # negative indices, and IndexError beyond the end
        return self._tokens[self.starts[position] : self.starts[position + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document, int64 (documents,)."""
        return np.diff(self.starts)

    @property
    def table(self):
        """The metadata as a memory-mapped `pyarrow.Table`, one row per document; no columns where there is none."""
        if self._table is None:
            import pyarrow

            if self._metadata_file is None:
                self._table = pyarrow.table({})
            else:
                with pyarrow.memory_map(str(self._metadata_file)) as source:
                    self._table = pyarrow.ipc.open_stream(source).read_all()
        return self._table

    def metadata(self, index: int) -> dict[str, Any]:
        """What is known of one document: {column: value}."""
        position = range(len(self))[index]
        return {name: self.table[name][position].as_py() for name in self.table.column_names}

    def column(self, name: str) -> np.ndarray:
        """One column of the metadata over all documents (documents,); InputError for an unknown name."""
        if name not in self.table.column_names:
            raise InputError(f"the token file has no metadata {name!r}; it has: {self.table.column_names or 'none'}")
        return self.table[name].to_numpy()

    def of_token(self, positions: np.ndarray) -> np.ndarray:
        """Which document each position of the stream lies in (empty documents are passed over)."""
        return np.searchsorted(self.starts, positions, side="right") - 1


class TokenFile:
    """A token file opened for reading: a stream of ids with its documents.

        file = TokenFile.open("wiki.tokens", tokenizer=tokenizer)
        len(file), file[0], file[1000:2000]          # tokens of the stream, as a numpy array
        len(file.documents), file.documents[3], file.documents.metadata(3)["url"]

    It is as cheap to pickle as its path; worker processes map the same pages.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path, self.header = path, header
        self.dtype = np.dtype(header["dtype"]).newbyteorder("<")
        count = header["tokens"]
        empty = np.zeros(0, self.dtype)
        self.tokens = np.memmap(path / TOKENS, self.dtype, mode="r", shape=(count,)) if count else empty
        starts = np.load(path / DOCUMENTS, mmap_mode="r", allow_pickle=False)
        has_metadata = METADATA in header["files"]
        self.documents = Documents(self.tokens, starts, path / METADATA if has_metadata else None)
        self.tokenizer = TokenizerFacts(**header["tokenizer"])

    @classmethod
    def open(cls, path: str | Path, tokenizer: Any = None) -> "TokenFile":
        """Open a token file; with a `tokenizer` (of transformers or tokenizers), only if it was made with that one.

        Raises:
            InputError: no token file there, one that is unfinished, truncated or altered, or another tokenizer's.
        """
        path = Path(path)
        header = read_header(path)
        for name, known in header["files"].items():
            _check_file(path / name, known, known["bytes"] <= CHECK_ON_OPEN_BYTES)
        _check_counts(path, header)
        file = cls(path, header)
        _check_documents(path, file.documents.starts, header)
        if tokenizer is not None:
            file.require_tokenizer(tokenizer)
        return file

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, item: int | slice) -> np.ndarray | np.integer:
        return self.tokens[item]

    def __reduce__(self):
        return TokenFile, (self.path, self.header)

    def __repr__(self) -> str:
        return (
            f"TokenFile({self.path.name}: {len(self):,} tokens, {len(self.documents):,} documents, {self.dtype.name})"
        )

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokenizer's special ids by role ("bos", "eos", "pad", "mask", ...), as far as it has them."""
        return self.tokenizer.special_ids

    def require_tokenizer(self, tokenizer: Any) -> None:
        """Raise InputError unless the file was made with this tokenizer."""
        found = tokenizer_facts(tokenizer)
        if found.sha256 != self.tokenizer.sha256:
            raise InputError(
                f"{self.path} was made with another tokenizer (hash {self.tokenizer.sha256[:12]}, "
                f"{self.vocab_size} ids; the one given has {found.sha256[:12]}, {found.vocab_size} ids). "
                "Give the tokenizer it was made with, or make the token file again."
            )

    def verify(self) -> None:
        """Read every file whole and compare it with the header (about 1 GB/s). Raises InputError."""
        for name, known in self.header["files"].items():
            _check_file(self.path / name, known, content=True)


def read_header(path: Path) -> dict[str, Any]:
    """The checked header of a token file. Raises InputError where there is none or it was altered."""
    if not path.is_dir():
        unfinished = partial_folder(path).is_dir()
        why = "its making was not finished; run the same command again" if unfinished else "there is no such folder"
        raise InputError(f"token file {path}: {why}")
    try:
        header = json.loads((path / HEADER).read_text("utf-8"))
        format_, version, recorded = header["format"], header["version"], header.pop("crc32")
    except FileNotFoundError:
        raise InputError(f"{path} is no token file: it has no {HEADER}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path / HEADER} is damaged: make the token file again") from None
    if format_ != FORMAT or version != VERSION:
        raise InputError(f"{path / HEADER}: format {format_!r} version {version!r}, but this reads {FORMAT} {VERSION}")
    if recorded != _header_crc(header):
        raise InputError(f"{path / HEADER} was altered (its checksum does not fit): make the token file again")
    return header


def write_header(folder: Path, header: dict[str, Any]) -> None:
    header = {"format": FORMAT, "version": VERSION, **header}
    header["crc32"] = _header_crc(header)
    write_atomic(folder / HEADER, json.dumps(header, indent=1) + "\n")


def partial_folder(path: Path) -> Path:
    """Where a token file grows until it is whole."""
    return path.with_name(f".{path.name}.partial")


def file_record(path: Path, crc: int | None = None) -> dict[str, int]:
    """Size and CRC-32 of a file, as the header keeps them."""
    return {"bytes": path.stat().st_size, "crc32": crc_of(path) if crc is None else crc}


def crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def seal(folder: str | Path, tokenizer: Any, dtype: str | np.dtype | None = None) -> TokenFile:
    """Make a token file of a folder in which another program has put `tokens.bin` and `documents.npy`.

    With `datasets`:

        ids = texts.map(lambda rows: {"ids": tokenizer(rows["text"])["input_ids"]}, batched=True).with_format("numpy")
        with open(folder / "tokens.bin", "wb") as out:
            lengths = [out.write(row["ids"].astype("<u2").tobytes()) // 2 for row in ids]
        np.save(folder / "documents.npy", np.cumsum([0] + lengths))
        seal(folder, tokenizer)

    A `metadata.arrow` (Arrow stream format, one row per document) is taken along. `dtype` is by default the one that
    the vocabulary asks for.

    Raises:
        InputError: a missing file, a length that is no multiple of the id's size, documents that do not partition the
            stream, an id outside the vocabulary, or metadata with another number of rows.
    """
    folder = Path(folder)
    facts = tokenizer_facts(tokenizer)
    dtype = token_dtype(facts.vocab_size) if dtype is None else np.dtype(dtype).newbyteorder("<")
    for name in (TOKENS, DOCUMENTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: write it first (see shared.tokenization.seal)")
    size = (folder / TOKENS).stat().st_size
    if size % dtype.itemsize:
        raise InputError(f"{folder / TOKENS} has {size} bytes, no multiple of {dtype.itemsize} ({dtype.name})")
    starts = np.load(folder / DOCUMENTS, allow_pickle=False)
    largest = -1
    with (folder / TOKENS).open("rb") as file:
        while block := file.read(READ_BYTES):
            largest = max(largest, int(np.frombuffer(block, dtype).max()))
    header = {
        "dtype": dtype.name,
        "tokens": size // dtype.itemsize,
        "documents": len(starts) - 1,
        "largest_id": largest,
        "tokenizer": facts.as_dict(),
    }
    names = [name for name in (TOKENS, DOCUMENTS, METADATA) if (folder / name).is_file()]
    header["files"] = {name: file_record(folder / name) for name in names}
    _check_counts(folder, header)
    _check_documents(folder, starts, header)
    _check_metadata_rows(folder, header)
    write_header(folder, header)
    return TokenFile.open(folder, tokenizer)


def _header_crc(header: dict[str, Any]) -> int:
    content = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _check_file(path: Path, known: dict[str, int], content: bool) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing: make the token file again")
    size = path.stat().st_size
    if size != known["bytes"]:
        what = "truncated" if size < known["bytes"] else "too long"
        raise InputError(f"{path} is {what}: {size} bytes, the header says {known['bytes']}. Make it again.")
    if content and crc_of(path) != known["crc32"]:
        raise InputError(f"{path} was altered: its content does not fit the header's checksum. Make it again.")


def _check_counts(path: Path, header: dict[str, Any]) -> None:
    size = np.dtype(header["dtype"]).itemsize
    if header["files"][TOKENS]["bytes"] != header["tokens"] * size:
        raise InputError(f"{path}: the header speaks of {header['tokens']} tokens, {TOKENS} holds another number")
    vocab_size = header["tokenizer"]["vocab_size"]
    if header["largest_id"] >= vocab_size:
        raise InputError(f"{path}: holds token id {header['largest_id']}, but the vocabulary has {vocab_size} ids")


def _check_documents(path: Path, starts: np.ndarray, header: dict[str, Any]) -> None:
    whole = starts.ndim == 1 and starts.dtype == np.int64 and len(starts) == header["documents"] + 1
    whole = whole and starts[0] == 0 and starts[-1] == header["tokens"]
    if whole and starts.nbytes <= CHECK_ON_OPEN_BYTES:
        parts = (starts[start : start + READ_STARTS + 1] for start in range(0, len(starts), READ_STARTS))
        whole = all((part[1:] >= part[:-1]).all() for part in parts)
    if not whole:
        raise InputError(
            f"{path / DOCUMENTS} does not fit: it must be int64, rise from 0 to {header['tokens']} (the number of "
            "tokens) and have one entry more than there are documents"
        )


def _check_metadata_rows(folder: Path, header: dict[str, Any]) -> None:
    if METADATA in header["files"]:
        rows = Documents(np.zeros(0), np.zeros(1, np.int64), folder / METADATA).table.num_rows
        if rows != header["documents"]:
            raise InputError(f"{folder / METADATA} has {rows} rows for {header['documents']} documents")
