"""Text as blocks: the paper's reference values, and what cannot be a block."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mlm_masking.data import MODES, BlockDataset, line_bounds, open_blocks
from mlm_masking.tokenizer import train_tokenizer
from shared import InputError
from shared.tokenization import text_files, tokenize_documents

# Lines of 10, 3, 1, 7, 20, 1 and 15 ids, each ended by id 2: blocks of at most 16 ids, <s> included, by mode.
LENGTHS = (10, 3, 1, 7, 20, 1, 15)
BLOCKS = {
    "none": [16, 16, 16, 13],
    "complete": [15, 8, 21, 2, 16],
    "complete_doc": [14, 8, 21, 16],
    "eos": [11, 4, 2, 8, 21, 2, 16],
}
VOCABULARY = {"vocab_size": 1000, "mask_id": 999}


def stream_of(lengths) -> np.ndarray:
    """Ids 4, 5, 6, ... so that each shows its place, with id 2 at the end of every line."""
    ids = np.arange(4, sum(lengths) + 4, dtype=np.uint16)
    ids[np.cumsum(lengths) - 1] = 2
    return ids


def blocks_of(lengths, block_length=16, mode="none", **options) -> list[list[int]]:
    dataset = BlockDataset(stream_of(lengths), block_length, mode=mode, **{**VOCABULARY, **options})
    assert dataset.lengths.tolist() == [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    assert dataset.max_length == dataset.lengths.max()
    return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize("mode", MODES)
def test_reference_lines_give_the_reference_blocks(mode):
    assert [len(block) for block in blocks_of(LENGTHS, mode=mode)] == BLOCKS[mode]


def test_blocks_of_128_are_the_first_id_and_127_of_the_stream():
    found = blocks_of([300], 128)
    assert [len(block) for block in found] == [128, 128, 47]
    assert all(block[0] == 0 for block in found)
    assert found[1][1:4] == [131, 132, 133]


LINES = st.lists(st.integers(1, 40), min_size=1, max_size=40).filter(lambda lengths: max(lengths) > 1)


@given(LINES, st.integers(2, 30), st.sampled_from(MODES))
def test_every_token_is_in_one_block_in_order(lengths, block_length, mode):
    stream = stream_of(lengths).tolist()
    found = blocks_of(lengths, block_length, mode)
    assert all(block[0] == 0 and len(block) >= 2 for block in found)
    body = [number for block in found for number in block[1:]]
    if mode == "complete_doc":  # only empty lines are dropped
        starts = np.cumsum([0, *lengths])
        stream = [n for i, size in enumerate(lengths) if size > 1 for n in stream[starts[i] : starts[i + 1]]]
    assert body == stream


@given(LINES, st.integers(2, 30), st.sampled_from(["complete", "complete_doc"]))
def test_blocks_of_whole_lines_take_as_many_as_fit(lengths, block_length, mode):
    expected, block, limit = [], 0, block_length - 1
    for size in [*lengths, None]:  # line by line, as the modes are defined
        ends = size is None or (mode == "complete_doc" and size == 1)
        if block and (ends or block + size > limit):
            expected.append(block + 1)
            block = 0
        if not ends:
            block += size
    assert [len(block) for block in blocks_of(lengths, block_length, mode)] == expected


def test_the_last_line_needs_no_end():
    assert line_bounds(np.array([5, 2, 2, 6, 7]), 2).tolist() == [0, 2, 3, 5]
    assert line_bounds(np.array([5, 2]), 2).tolist() == [0, 2]


def test_line_ends_are_found_across_parts(monkeypatch):
    monkeypatch.setattr("mlm_masking.data.READ_TOKENS", 3)
    assert line_bounds(stream_of(LENGTHS), 2).tolist() == np.cumsum([0, *LENGTHS]).tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat", "a dog ran in the park"] * 10, 280)


@pytest.fixture
def token_file(tmp_path, tokenizer):
    lines = [f"  the cat {i} sat on the mat " if i % 7 else "" for i in range(200)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    source = text_files(tmp_path / "text.txt")
    return tokenize_documents(source, tokenizer, tmp_path / "text.tokens", by_line=True, processes=1)


def test_raw_text_becomes_stripped_lines_that_end_in_id_2(token_file, tokenizer):
    dataset = open_blocks(token_file.path, 128)
    expected = [2, *tokenizer.encode("the cat 1 sat on the mat"), 2]
    assert dataset[0]["input_ids"][: len(expected) + 1].tolist() == [0, *expected]
    assert (
        dataset[0]["input_ids"].dtype == np.int64
        and dataset[3]["index"] == 3
        and dataset[-1]["index"] == len(dataset) - 1
    )
    ids = (dataset.vocab_size, dataset.bos_id, dataset.pad_id, dataset.eos_id, dataset.mask_id)
    assert ids == (280, 0, 1, 2, 279)


def test_training_and_validation_parts_divide_the_stream_at_a_line(token_file):
    parts = {part: open_blocks(token_file.path, 32, part=part, valid_percent=20) for part in ("all", "train", "valid")}
    train, valid = parts["train"].tokens, parts["valid"].tokens
    assert np.array_equal(np.concatenate([train, valid]), parts["all"].tokens)
    assert train[-1] == 2 and len(valid) / len(parts["all"].tokens) == pytest.approx(0.2, abs=0.02)
    assert len(open_blocks(token_file.path, 32, mode="eos", part="valid", valid_percent=20)) == np.sum(valid == 2)


def test_worker_processes_open_the_file_themselves(token_file):
    dataset = open_blocks(token_file.path, 32, part="train", valid_percent=10)
    assert len(pickle.dumps(dataset)) < 1000
    sizes = [len(batch[0]["input_ids"]) for batch in DataLoader(dataset, num_workers=2, collate_fn=list)]
    assert sizes == dataset.lengths.tolist()


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "is empty: it has no tokens"),
        ([2, 2, 2], {}, "holds empty lines alone"),
        ([5, 2], {"block_length": 1}, "data.block_length=1: a block needs at least 2"),
        ([5, 2], {"mode": "doc"}, "data.mode='doc': choose one of none, complete, complete_doc, eos"),
    ],
)
def test_what_makes_no_blocks_is_refused(tokens, options, message):
    with pytest.raises(InputError, match=message):
        BlockDataset(np.array(tokens, np.uint16), **{"block_length": 8, **VOCABULARY, **options})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, 999, 2], r"block 0 already contains <mask> \(id 999\)"),
        ([5, 1000, 2], "block 0 holds id 1000, but the vocabulary has 1000 ids"),
        ([5, -1, 2], "block 0 holds id -1"),
    ],
)
def test_ids_that_cannot_be_text_are_refused_where_they_are_read(tokens, message):
    dataset = BlockDataset(np.array(tokens, np.int32), 8, source="file", **VOCABULARY)
    with pytest.raises(InputError, match=f"file: {message}"):
        dataset[0]


def test_a_token_file_for_another_purpose_is_refused(tmp_path, tokenizer):
    (tmp_path / "text.txt").write_text("the cat\n")
    raw = tokenizer.backend_tokenizer
    file = tokenize_documents(text_files(tmp_path / "text.txt"), raw, tmp_path / "t", after=None, processes=1)
    with pytest.raises(InputError, match="its tokenizer has no bos token"):
        open_blocks(file.path, 16)


def test_parts_that_cannot_be_are_refused(token_file):
    with pytest.raises(InputError, match=r"data\.part='test'"):
        open_blocks(token_file.path, 16, part="test")
    with pytest.raises(InputError, match=r"data\.valid_percent=0"):
        open_blocks(token_file.path, 16, part="valid", valid_percent=0)
    with pytest.raises(InputError, match="leaves nothing for part=valid"):
        open_blocks(token_file.path, 16, part="valid", valid_percent=0.001)
