"""Blocks and documents cut from a stream, whatever the lengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import InputError
from shared.tokenization import fixed_blocks, packed_documents, seal, whole_documents
from shared.tokenization.token_file import Documents

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


class Stream:
    """A token file in memory: token i is the number i, so that a block shows where it was cut."""

    path = "stream"

    def __init__(self, lengths: list[int]):
        self.tokens = np.arange(sum(lengths), dtype=np.uint16)
        self.documents = Documents(self.tokens, np.cumsum([0, *lengths]), None)

    def __len__(self) -> int:
        return len(self.tokens)


def check_bounds(stream: Stream, example: dict[str, np.ndarray]) -> None:
    """Bounds rise from 0 to n, positions begin anew at each, and no document's beginning lies between two of them."""
    ids, bounds = example["input_ids"], example["cu_seqlens"]
    assert bounds[0] == 0 and bounds[-1] == len(ids) and (np.diff(bounds) > 0).all() and bounds.dtype == np.int32
    for start, stop in itertools.pairwise(bounds):
        assert example["position_ids"][start:stop].tolist() == list(range(stop - start))
        assert ids[start:stop].tolist() == list(range(ids[start], ids[start] + stop - start))
        assert len(set(stream.documents.of_token(ids[start:stop]).tolist())) == 1


@given(LENGTHS, st.integers(1, 50))
def test_fixed_blocks_hold_every_token_once_in_order(lengths, length):
    stream = Stream(lengths)
    blocks = fixed_blocks(stream, length, keep_last=True)
    found = [blocks[i] for i in range(len(blocks))]
    assert np.concatenate([example["input_ids"] for example in found]).tolist() == list(range(len(stream)))
    assert all(len(example["input_ids"]) == length for example in found[:-1])
    for example in found:
        check_bounds(stream, example)
        before = np.diff(stream.documents.of_token(example["input_ids"]))
        assert len(example["cu_seqlens"]) - 2 == np.count_nonzero(before)
    if len(stream) >= length:
        assert len(fixed_blocks(stream, length)) == len(stream) // length


@given(LENGTHS, st.integers(1, 50))
def test_packed_documents_are_whole_and_blocks_as_full_as_their_order_allows(lengths, max_length):
    stream = Stream(lengths)
    blocks = packed_documents(stream, max_length)
    found = [blocks[i] for i in range(len(blocks))]
    assert np.concatenate([example["input_ids"] for example in found]).tolist() == list(range(len(stream)))
    assert (
        blocks.lengths.tolist() == [len(example["input_ids"]) for example in found]
        and blocks.lengths.max() <= max_length
    )
    for example, following in zip(found, [*found[1:], None], strict=True):
        check_bounds(stream, example)
        if following is not None:
            assert len(example["input_ids"]) + following["cu_seqlens"][1] > max_length
    starts = {int(example["input_ids"][0]) for example in found} - set(stream.documents.starts.tolist())
    pieces = [start - stream.documents.starts[stream.documents.of_token(np.array(start))] for start in starts]
    assert all(piece % max_length == 0 for piece in pieces), "a document that fits was cut"


@given(LENGTHS, st.integers(1, 50), st.sampled_from(["split", "truncate", "drop"]))
def test_whole_documents_are_one_each(lengths, max_length, longer):
    stream = Stream(lengths)
    expected = []
    for document in stream.documents:
        ids = document.tolist()
        pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        if longer == "truncate":
            pieces = pieces[:1]
        elif longer == "drop" and len(ids) > max_length:
            pieces = []
        expected += pieces
    if not expected:
        with pytest.raises(InputError, match="no documents that can be taken"):
            whole_documents(stream, max_length, longer)
        return
    blocks = whole_documents(stream, max_length, longer)
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == expected
    assert all(blocks[i]["cu_seqlens"].tolist() == [0, len(ids)] for i, ids in enumerate(expected))


def test_documents_of_any_length_are_taken_whole_without_a_limit():
    blocks = whole_documents(Stream([3, 0, 500]))
    assert [len(blocks[i]["input_ids"]) for i in range(2)] == [3, 500] and len(blocks) == 2


def test_an_example_by_hand():
    blocks = packed_documents(Stream([3, 2, 0, 9, 1]), 6)
    assert [blocks[i]["cu_seqlens"].tolist() for i in range(len(blocks))] == [[0, 3, 5], [0, 6], [0, 3, 4]]
    assert fixed_blocks(Stream([3, 2, 0, 9, 1]), 6)[0]["cu_seqlens"].tolist() == [0, 3, 5, 6]
    assert fixed_blocks(Stream([3, 2, 0, 9, 1]), 6)[0]["position_ids"].tolist() == [0, 1, 2, 0, 1, 0]


def test_it_reads_a_file_on_disk(tmp_path, bpe):
    np.arange(10, dtype="<u2").tofile(tmp_path / "tokens.bin")
    np.save(tmp_path / "documents.npy", np.array([0, 4, 10]))
    blocks = packed_documents(seal(tmp_path, bpe), 6)
    assert [blocks[-1]["input_ids"].tolist(), blocks[0]["input_ids"].tolist()] == [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3]]
    with pytest.raises(IndexError):
        blocks[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed_blocks(Stream([5]), 0), "length=0"),
        (lambda: fixed_blocks(Stream([5]), 6), "5 tokens, less than one block of length=6"),
        (lambda: packed_documents(Stream([5]), 0), "max_length=0"),
        (lambda: whole_documents(Stream([5]), 6, longer="cut"), "longer='cut'"),
        (lambda: whole_documents(Stream([0, 0])), "no documents that can be taken"),
    ],
)
def test_what_cannot_be_packed_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
