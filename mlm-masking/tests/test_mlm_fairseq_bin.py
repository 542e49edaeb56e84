"""fairseq's binary corpora, written here from the description of their format."""

import struct
from pathlib import Path

import numpy as np
import pytest

from mlm_masking.data import MODES, BlockDataset, open_blocks
from mlm_masking.fairseq_bin import is_fairseq, read_fairseq, vocabulary_size
from shared import InputError

LINES = [[5, 6, 7, 2], [2], [8, 9, 2], [10] * 20 + [2]]
CODES = {"<u1": 1, "<i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8, "<u4": 9, "<u8": 10}


def write_shard(folder: Path, lines=LINES, dtype="<u2", entries: int = 20) -> Path:
    """A shard `folder/train` of the lines, with a dictionary of `entries`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(line) for line in lines], "<i4")
    offsets = (np.cumsum([0, *sizes[:-1]]) * np.dtype(dtype).itemsize).astype("<i8") if lines else np.zeros(0, "<i8")
    np.concatenate([np.array(line, dtype) for line in lines] or [np.zeros(0, dtype)]).tofile(folder / "train.bin")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, CODES[dtype], len(lines))
    (folder / "train.idx").write_bytes(header + sizes.tobytes() + offsets.tobytes())
    (folder / "dict.txt").write_text("".join(f"{number} {entries - number}\n" for number in range(entries)))
    return folder / "train"


@pytest.mark.parametrize("dtype", list(CODES))
def test_every_type_of_integers_is_read(tmp_path, dtype):
    shard = read_fairseq(write_shard(tmp_path, dtype=dtype))
    assert shard.tokens.tolist() == [number for line in LINES for number in line]
    assert shard.bounds.tolist() == [0, 4, 5, 8, 29]


@pytest.mark.parametrize("name", ["", "train", "train.bin", "train.idx"])
def test_a_shard_is_named_by_folder_prefix_or_file(tmp_path, name):
    write_shard(tmp_path)
    assert is_fairseq(tmp_path / name)
    assert len(read_fairseq(tmp_path / name).tokens) == 29


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_those_of_a_token_stream(tmp_path, mode):
    found = open_blocks(write_shard(tmp_path), 8, mode)
    expected = BlockDataset(np.concatenate(LINES), 8, vocab_size=25, mask_id=24, mode=mode)
    assert [found[i]["input_ids"].tolist() for i in range(len(found))] == [
        expected[i]["input_ids"].tolist() for i in range(len(expected))
    ]
    assert (found.vocab_size, found.mask_id, found.bos_id, found.pad_id, found.eos_id) == (25, 24, 0, 1, 2)


def test_parts_of_a_shard_keep_its_lines(tmp_path):
    prefix = write_shard(tmp_path)
    train, valid = (open_blocks(prefix, 8, "eos", part=part, valid_percent=80.0) for part in ("train", "valid"))
    assert [len(train[i]["input_ids"]) for i in range(len(train))] == [5, 2, 4]
    assert [len(valid[i]["input_ids"]) for i in range(len(valid))] == [22]


def test_the_dictionary_may_lie_above_the_shard(tmp_path):
    write_shard(tmp_path / "shard", entries=50_260)
    (tmp_path / "shard" / "dict.txt").rename(tmp_path / "dict.txt")
    assert vocabulary_size(tmp_path / "shard") == 50_265


def cut(path: Path, bytes_left: int) -> None:
    path.write_bytes(path.read_bytes()[:bytes_left])


def patch(path: Path, position: int, content: bytes) -> None:
    before = path.read_bytes()
    path.write_bytes(before[:position] + content + before[position + len(content) :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train.idx").unlink(), "train.bin needs train.idx beside it"),
        (lambda f: (f / "train.bin").unlink(), "train.idx needs train.bin beside it"),
        (lambda f: patch(f / "train.idx", 17, b"\x06"), "type code 6 is none of integers"),
        (lambda f: patch(f / "train.idx", 17, b"\x63"), "type code 99 is none of integers"),
        (lambda f: patch(f / "train.idx", 9, b"\x02"), "version 2, but this reads version 1"),
        (lambda f: patch(f / "train.idx", 0, b"TNTIDX\0\0\0"), "no index of fairseq's memory-mapped format"),
        (lambda f: cut(f / "train.idx", 10), "no index of fairseq's memory-mapped format"),
        (lambda f: cut(f / "train.idx", 60), "train.idx is truncated or altered: 60 bytes, 74 expected"),
        (lambda f: cut(f / "train.bin", 40), "train.bin is truncated: 40 bytes, but train.idx speaks of 58"),
        (lambda f: (f / "train.bin").open("ab").write(b"\0\0"), "train.bin is too long: 60 bytes"),
        (lambda f: patch(f / "train.idx", 26, b"\x05"), "lines do not lie after one another"),
        (lambda f: patch(f / "train.idx", 26, b"\xff\xff\xff\xff"), "a line of -1 ids"),
        (lambda f: (f / "dict.txt").unlink(), "needs its dict.txt"),
        (lambda f: (f / "dict.txt").write_text("12 4\nodd\n"), "line 2: 'odd' is not an entry and its count"),
        (lambda f: (f / "dict.txt").write_text("12 4\n"), "holds id 10, but the vocabulary has 6 ids"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, damage, message):
    write_shard(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        blocks = open_blocks(tmp_path / "train", 16)
        [blocks[i] for i in range(len(blocks))]


def test_an_empty_shard_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        open_blocks(write_shard(tmp_path, lines=[]), 16)
    with pytest.raises(InputError, match="empty lines alone"):
        open_blocks(write_shard(tmp_path, lines=[[2], [2]]), 16)
