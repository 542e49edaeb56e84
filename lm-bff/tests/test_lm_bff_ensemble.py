"""Ensembles over templates: chosen members, averaged outputs, one record per seed."""

import hydra
import numpy as np
import pytest

from lm_bff.ensemble import average, members, run_ensemble
from lm_bff.store import Store
from lm_bff.tasks import CONFIGS
from shared import InputError

TEMPLATES = ["*cls**sent_0*_It_was*mask*.*sep+*", "*cls**mask*:*+sent_0**sep+*", "*cls**sent_0*_A*mask*film.*sep+*"]


@pytest.fixture
def arguments(few_shot_folder, model_folder, tmp_path):
    (tmp_path / "ranked").mkdir()
    for seed, order in ((13, (0, 1, 2)), (42, (2, 0, 1))):
        text = "".join(f"{TEMPLATES[i]}\t0.9\n" for i in order)
        (tmp_path / "ranked" / f"sst-2-{seed}.txt").write_text(text)
    return [
        "task=sst-2",
        "k=4",
        "seeds=[13,42]",
        "method=prompt",
        f"data_dir={few_shot_folder()}",
        f"model={model_folder('roberta')}",
        f"store={tmp_path / 'trials.jsonl'}",
        f"templates='{tmp_path}/ranked/{{task}}-{{seed}}.txt'",
        "n_models=2",
        "max_steps=4",
        "eval_every=2",
        "grid.lr=[0.001,0.003]",
    ]


def compose(*overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("ensemble", list(overrides))


def test_each_seed_averages_the_chosen_trials_of_its_own_first_templates(arguments, tmp_path):
    records = run_ensemble(compose(*arguments), progress=False)
    store = Store(tmp_path / "trials.jsonl")
    assert [record["seed"] for record in records] == [13, 42]
    for record, templates in zip(records, (TEMPLATES[:2], [TEMPLATES[2], TEMPLATES[0]]), strict=True):
        trials = [store.get(key) for key in record["members"]]
        assert [one["settings"]["template"] for one in trials] == templates
        for one in trials:
            rivals = store.records(seed=one["seed"], method="prompt")
            rivals = [r for r in rivals if r["settings"]["template"] == one["settings"]["template"]]
            assert len(rivals) == 2
            assert one["dev"]["acc"] == max(r["dev"]["acc"] for r in rivals)
        outputs = np.mean([store.outputs(one)["test:sst-2"] for one in trials], axis=0)
        gold = np.array([0] * 6 + [1] * 6)
        assert record["test"]["sst-2"]["acc"] == pytest.approx((outputs.argmax(axis=1) == gold).mean())
    assert store.records(method="ensemble", experiment="ensemble-20") == records


def test_an_ensemble_is_stored_once(arguments, tmp_path):
    first = run_ensemble(compose(*arguments), progress=False)
    assert run_ensemble(compose(*arguments), progress=False) == first
    assert len(Store(tmp_path / "trials.jsonl").records()) == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [("n_models=4", "fewer than n_models=4"), ("templates=null", "templates is missing"), ("seeds=[7]", "7.txt")],
)
def test_what_cannot_be_an_ensemble_is_refused(arguments, override, message):
    with pytest.raises(InputError, match=message):
        run_ensemble(compose(*arguments, override), progress=False)


def test_members_are_chosen_by_dev_with_the_first_of_equals():
    def record(key, dev, template):
        return {
            "key": key,
            "seed": 1,
            "task": "t",
            "metric": "acc",
            "dev": {"acc": dev},
            "settings": {"template": template, "mapping": None},
        }

    found = members([record("a", 0.5, "x"), record("b", 0.5, "x"), record("c", 0.1, "y"), record("d", 0.2, "y")])
    assert [one["key"] for one in found[1]] == ["a", "d"]


def test_outputs_of_different_shapes_are_not_averaged():
    with pytest.raises(InputError, match="shapes"):
        average([np.zeros((3, 2)), np.zeros((4, 2))])
    np.testing.assert_allclose(average([np.array([[1.0, 3.0]]), np.array([[3.0, 3.0]])]), [[2.0, 3.0]])
