"""Replies and the orders they are read as."""

import pytest

from litsearch.rerank import parse_permutation, read_reply
from shared import InputError

# Reply -> order of five papers, as the release reads it.
RELEASED = {
    "[3] > [1] > [2]": [2, 0, 1, 3, 4],
    "[2]>[2]>[9]>[5]": [1, 4, 0, 2, 3],
    "": [0, 1, 2, 3, 4],
    "The ranking (GPT-4): [2] > [1]": [3, 1, 0, 2, 4],
    "[0] > [2]": [1, 0, 2, 3, 4],
    "[3.5] > [1]": [2, 4, 0, 1, 3],
    "[-1] > [2]": [0, 1, 2, 3, 4],
    "[2], [4] and 5.": [1, 3, 4, 0, 2],
}


@pytest.mark.parametrize(("reply", "order"), RELEASED.items())
def test_replies_are_read_as_the_release_reads_them(reply, order):
    assert parse_permutation(reply, 5, 0, 5) == order
    assert parse_permutation(reply, n=5, start=0, end=5, mode="compat") == order


def test_a_window_is_numbered_from_its_start_and_the_others_keep_their_places():
    assert parse_permutation("[3] > [1]", 5, 1, 4) == [0, 3, 1, 2, 4]
    assert parse_permutation("[4] > [1]", 5, 1, 4) == [0, 1, 2, 3, 4]  # a fourth one is not shown
    assert parse_permutation("[1]", 5, 5, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("The ranking (GPT-4): [2] > [1]", [1, 0, 2, 3, 4]),
        ("Of 5 papers, 3 fit: [ 4 ] > [2]", [3, 1, 0, 2, 4]),
        ("[3.5] > [1]", [0, 1, 2, 3, 4]),
        ("4 > 2", [3, 1, 0, 2, 4]),  # nothing in brackets: read as the release does
        ("no idea", [0, 1, 2, 3, 4]),
    ],
)
def test_strict_reads_numbers_in_brackets_where_there_are_any(reply, order):
    assert parse_permutation(reply, 5, 0, 5, mode="strict") == order


def test_what_was_dropped_and_what_was_missing_is_counted():
    reading = read_reply("[2]>[2]>[9]>[5] > [0]", 5)
    assert (reading.named, reading.missing, reading.repeated, reading.out_of_range) == (2, 3, 1, 2)
    assert not reading.unparsable
    assert read_reply("I cannot rank these.", 5).unparsable
    assert read_reply("[2] > [1]", 5, "strict").fell_back is False
    assert read_reply("2 > 1", 5, "strict").fell_back is True


@pytest.mark.parametrize("mode", ["compat", "strict"])
@pytest.mark.parametrize(
    "reply", ["[²] > [2]", "[٣] > [1]", "9" * 10_000, "[1]" * 10_000, "\x00[2]\ud800", "[１] > [２]"]
)
def test_any_reply_gives_a_permutation(reply, mode):
    order = parse_permutation(reply, 5, 0, 5, mode)
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_digits_of_other_scripts_count_as_in_the_release():
    assert parse_permutation("[٣] > [1]", 5, 0, 5) == [2, 0, 1, 3, 4]


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (0, 6), (4, 3)])
def test_a_window_outside_of_the_papers_is_refused(start, end):
    with pytest.raises(InputError, match=f"start={start}, end={end}"):
        parse_permutation("[1]", 5, start, end)


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match=r"parser='exact' is not one of compat, strict"):
        parse_permutation("[1]", 5, 0, 5, mode="exact")
