"""The plan: trials as the tables have them, costs by their formulas, nothing downloaded."""

import json
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from lm_bff import plan as planning
from lm_bff.plan import BLOCKS, GRID, MEAN_BATCH, PROMPT, SEEDS, STEPS, TEST, make_plan
from lm_bff.tasks import TASKS
from shared import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def config(*overrides):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("plan", list(overrides))


def rows(*overrides):
    return {(plan.table, plan.row): plan for plan in make_plan(config(*overrides))[0]}


def test_a_trained_row_has_five_splits_and_nine_points_per_task():
    table = rows("tables=[table3]")
    assert table["table3", "prompt"].trials == 15 * SEEDS * GRID  # mnli-mm is another test set of mnli's trials
    assert table["table3", "zero_shot"].trials == 15 * SEEDS
    assert table["table3", "majority"].flops == 0


def test_flops_follow_the_formula():
    (plan,) = [p for key, p in rows("tables=[table2]").items() if key[1] == "finetune"]
    training, evaluated = STEPS * MEAN_BATCH * PROMPT, 10 * 16 * 2 + TEST["sst-2"]
    assert plan.flops == pytest.approx(45 * BLOCKS["roberta-large"] * (6 * training + 2 * evaluated * PROMPT))
    assert plan.hours == pytest.approx(plan.flops / (989e12 * 0.2) / 3600)


def test_every_task_of_the_tables_has_a_test_size_and_demonstrations_cost_more():
    assert set(TEST) <= set(TASKS)
    table = rows("tables=[table3]")
    assert table["table3", "prompt_demo"].flops > 3 * table["table3", "prompt"].flops


def test_ensembles_count_their_members():
    table = rows("tables=[table4]")
    assert table["table4", "twenty"].trials == 20 * table["table4", "single"].trials


@pytest.mark.parametrize(
    ("override", "message"),
    [("gpu=H1000", "gpu=H1000 is not listed"), ("utilisation=2", "utilisation=2"), ("gpus=0", "gpus=0"),
     ("tables=[table9]", "tables=table9 is unknown"), ("output=xml", "output=xml: give table or json")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(override, message):
    with pytest.raises(InputError, match=message):
        planning.main.__wrapped__(config(override))


def test_json_names_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    planning.main.__wrapped__(config("tables=[bert]", "output=json", f"output_dir={tmp_path}"))
    whole = json.loads(capsys.readouterr().out)
    assert "make mirror-lm-bff" in whole["missing"]["bert-large-uncased"]
    assert whole == json.loads((tmp_path / "plan.json").read_text())
