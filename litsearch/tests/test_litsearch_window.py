"""How many papers are shown at once, and which."""

import itertools

import pytest

from litsearch.rerank.window import sliding_windows, window_sizes
from shared import InputError


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (100, [100, 80, 60]),
        (200, [200, 160, 120]),
        (50, [50, 40, 30]),
        (10, [10, 8, 6]),
        (7, [7, 6, 5, 4, 3]),
        (5, [5, 4, 3, 2]),
    ],
)
def test_a_fifth_is_left_out_down_to_half_as_in_the_release(n, sizes):
    assert window_sizes(n) == sizes


@pytest.mark.parametrize(("n", "sizes"), [(4, [4, 3, 2]), (3, [3, 2]), (2, [2]), (1, [1])])
def test_fewer_than_five_papers_end_where_the_release_tries_for_ever(n, sizes):
    assert window_sizes(n) == sizes


def test_sizes_always_fall_and_end():
    for n in range(1, 300):
        sizes = window_sizes(n)
        assert sizes[0] == n
        assert all(a > b for a, b in itertools.pairwise(sizes))
        assert sizes[-1] >= min(n, max(2, n // 2))


def test_windows_slide_from_the_end_to_the_start():
    assert sliding_windows(40, 20, 10) == [(20, 40), (10, 30), (0, 20)]
    assert sliding_windows(20, 20, 10) == [(0, 20)]
    assert sliding_windows(3, 20, 10) == [(0, 3)]


@pytest.mark.parametrize("n", [1, 19, 21, 25, 99, 100, 101, 200])
def test_windows_overlap_and_reach_the_first_paper(n):
    windows = sliding_windows(n, 20, 10)
    assert windows[0][1] == n
    assert windows[-1][0] == 0
    for (start, end), (next_start, next_end) in itertools.pairwise(windows):
        assert next_start < start < next_end <= end
        assert end - start == 20


@pytest.mark.parametrize(
    ("window", "step", "said"), [(1, 1, "window=1"), (20, 0, "step=0"), (20, 20, "step=20 must be smaller")]
)
def test_windows_in_which_nothing_can_climb_are_refused(window, step, said):
    with pytest.raises(InputError, match=said):
        sliding_windows(100, window, step)
