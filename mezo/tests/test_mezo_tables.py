"""The paper's tables from finished runs: the best of a grid by dev, means over splits, nothing over half a grid."""

import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mezo import tables
from shared import InputError
from shared.paper import load_paper


def write(root, name, dev, test, metric="accuracy"):
    folder = root / name
    folder.mkdir(parents=True)
    metrics = {"metric": metric, "test": {metric: test}, "dev": dev}
    (folder / "results.json").write_text(json.dumps({"metrics": metrics}))


def config(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tables.CONFIGS), version_base="1.3"):
        return compose("tables", list(overrides))


def test_a_causal_cell_is_the_run_with_the_lowest_dev_loss(tmp_path):
    write(tmp_path, "opt13b_mezo-copa-lr1e-06", {"loss": 0.5, "accuracy": 0.1}, 0.8)
    write(tmp_path, "opt13b_mezo-copa-lr1e-07", {"loss": 0.6, "accuracy": 0.9}, 0.7)
    cells = tables.row_cells(["opt13b_mezo"], tmp_path)
    assert list(cells) == ["copa"] and cells["copa"]["values"] == [80.0]


def test_a_masked_cell_is_the_mean_over_splits_of_the_best_dev_metric(tmp_path):
    for split in (13, 21, 42, 87, 100):
        for number, rate in enumerate(("1e-07", "1e-06", "1e-05")):
            dev = {"loss": float(number), "accuracy": number / 10}
            write(tmp_path, f"roberta_k16_mezo-trec-seed{split}-lr{rate}", dev, split / 1000 + number / 10)
    cell = tables.row_cells(["roberta_k16_mezo"], tmp_path)["trec"]
    assert cell["n"] == 5 and cell["values"] == pytest.approx([21.3, 22.1, 24.2, 28.7, 30.0])


def test_a_grid_with_a_hole_is_refused_with_the_missing_runs(tmp_path):
    write(tmp_path, "opt13b_mezo-copa-lr1e-06", {"loss": 0.5}, 0.8)
    with pytest.raises(InputError, match="opt13b_mezo-copa-lr1e-07 of the 2 runs of copa are missing"):
        tables.row_cells(["opt13b_mezo"], tmp_path)


def test_every_row_of_the_paper_that_is_offered_has_its_experiments():
    paper, specification = load_paper("mezo"), tables.read_specification()
    offered = {(cell.table, cell.row) for cell in paper.cells() if cell.experiment == "tables"}
    assert offered == {(name, row) for name, table in specification.items() for row in table["rows"]}
    files = {path.stem for path in (tables.CONFIGS / "experiment").glob("*.yaml")}
    named = [one for table in specification.values() for some in table["rows"].values() for one in some]
    assert set(named) <= files and files - set(named) == {"opt13b_f1_full"}
    for name, table in specification.items():
        keys = {cell.key for cell in paper.cells(name)}
        assert keys <= set(table["columns"].values()), name


def test_the_tables_are_printed_and_kept_as_results(tmp_path, capsys):
    write(tmp_path, "opt13b_zero_shot-rte", {}, 0.596)
    tables.main.__wrapped__(config("table=table1", f"root={tmp_path}"))
    results = json.loads((tmp_path / "tables" / "results.json").read_text())
    assert results["metrics"]["tables"]["table1"]["zero_shot"]["rte"]["mean"] == pytest.approx(59.6)
    assert "59.6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"), [("table=table99", "table=table99"), ("root=/nowhere/at/all", "root=/nowhere/at/all")]
)
def test_bad_options_are_refused(override, message):
    with pytest.raises(InputError, match=message):
        tables.main.__wrapped__(config(override))


def test_no_run_at_all_is_said(tmp_path, capsys):
    tables.main.__wrapped__(config("table=table19", f"root={tmp_path}"))
    assert "table19: none of its runs is there" in capsys.readouterr().out
