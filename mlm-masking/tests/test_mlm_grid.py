"""The grid: its points, each cell once however many work on it, the best point by mean score."""

import threading

import pytest

from mlm_masking.grid import Cell, Cells, Point, best_point, check_seeds, grid_points, search
from shared import InputError

SMALL = {"lr": [1e-5, 3e-5, 5e-5, 8e-5], "batch_size": [16, 32], "epochs": [3, 5, 10]}


def test_the_papers_small_grid_has_twenty_four_points_in_order():
    points = grid_points(SMALL)
    assert len(points) == len(set(points)) == 24
    assert points[0] == Point(1e-5, 16, 3) and points[-1] == Point(8e-5, 32, 10)
    assert points[0].name == "lr1e-05-bs16-ep3" and Cell(points[0], 2).name == "lr1e-05-bs16-ep3/seed-2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": []}, "grid.lr"),
        ({"lr": [1, 1]}, "different values"),
        ({"wd": [0.1]}, "axis 'wd'"),
        ({"epochs": "3"}, "epochs"),
    ],
)
def test_grids_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        grid_points({**SMALL, **change})


def test_seeds_are_given_once():
    assert check_seeds([1, 2]) == [1, 2] and check_seeds(4) == [4]
    for bad in ([], [1, 1]):
        with pytest.raises(InputError):
            check_seeds(bad)


def scores(table):
    """Results of cells from {(lr, seed): score}."""
    return {Cell(Point(lr, 16, 3), seed): {"score": score} for (lr, seed), score in table.items()}


def test_the_best_point_has_the_highest_mean_and_the_first_of_equals_wins():
    points = [Point(lr, 16, 3) for lr in (1e-5, 2e-5, 3e-5)]
    results = scores({(1e-5, 1): 0.9, (1e-5, 2): 0.5, (2e-5, 1): 0.8, (2e-5, 2): 0.7, (3e-5, 1): 0.75, (3e-5, 2): 0.75})
    assert best_point(points, [1, 2], results) == points[1]
    assert best_point(points, [1], results) == points[0]


def test_a_point_that_diverges_with_one_seed_is_never_the_best():
    points = [Point(lr, 16, 3) for lr in (1e-5, 2e-5)]
    results = scores({(1e-5, 1): 0.2, (1e-5, 2): 0.2, (2e-5, 1): 0.9, (2e-5, 2): None})
    assert best_point(points, [1, 2], results) == points[0]
    with pytest.raises(InputError, match="every point of the grid diverged"):
        best_point(points[1:], [1, 2], results)


def make_cells(tmp_path, **identity):
    return Cells(tmp_path, lambda cell: {"seed": cell.seed, **identity})


def test_the_search_tries_all_points_with_its_seeds_and_the_best_with_the_rest(tmp_path):
    done = []

    def work(cell):
        done.append(cell.name)
        return {"score": cell.point.lr}

    points = [Point(lr, 16, 3) for lr in (1.0, 3.0, 2.0)]
    best, results = search(make_cells(tmp_path), points, [1, 2, 3], [1], work)
    assert best == points[1] and len(results) == 5
    assert done == ["lr1-bs16-ep3/seed-1", "lr3-bs16-ep3/seed-1", "lr2-bs16-ep3/seed-1",
                    "lr3-bs16-ep3/seed-2", "lr3-bs16-ep3/seed-3"]  # fmt: skip
    search(make_cells(tmp_path), points, [1, 2, 3], None, work)
    assert len(done) == 9 and len(set(done)) == 9


def test_several_workers_share_the_cells_and_each_is_run_once(tmp_path):
    points = [Point(float(lr), 16, 3) for lr in range(1, 7)]
    ran, answers = [], []

    def work(cell):
        ran.append(cell.name)
        threading.Event().wait(0.05)
        return {"score": cell.point.lr}

    def worker():
        answers.append(search(make_cells(tmp_path), points, [1], None, work)[0])

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ran) == sorted(set(ran)) and len(ran) == 6
    assert answers == [points[-1]] * 4
    assert not list(tmp_path.rglob("*.lock"))


def test_a_cell_that_failed_can_be_tried_again(tmp_path):
    cells, cell = make_cells(tmp_path), Cell(Point(1.0, 16, 3), 1)

    def fails(cell):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        cells.run([cell], fails)
    assert cells.finished(cell) is None
    assert cells.run([cell], lambda cell: {"score": 1.0}) == {cell: {"score": 1.0}}


def test_cells_of_another_run_and_broken_files_are_refused_before_anything_is_run(tmp_path):
    cell = Cell(Point(1.0, 16, 3), 1)
    make_cells(tmp_path, model="a").run([cell], lambda cell: {"score": 1.0})
    ran = []
    with pytest.raises(InputError, match="of a run with another model"):
        make_cells(tmp_path, model="b").run([Cell(Point(2.0, 16, 3), 1), cell], ran.append)
    make_cells(tmp_path).path(cell).write_text("{")
    with pytest.raises(InputError, match="is not the result of a finished part"):
        make_cells(tmp_path, model="a").run([cell], ran.append)
    assert ran == []
