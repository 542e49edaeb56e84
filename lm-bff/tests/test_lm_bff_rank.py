"""Ranking of candidates by dev score, on models that are really trained."""

import subprocess
import sys

import hydra
import pytest

from lm_bff.candidates import Candidate, read_candidates
from lm_bff.rank import dev_scores, rank
from lm_bff.store import Store
from lm_bff.tasks import CONFIGS, TASKS
from shared import InputError

TEMPLATES = [
    "*cls**sent_0*_It_was*mask*.*sep+*",
    "*cls**sent_0*_A*mask*film.*sep+*",
    "*cls**mask*:*+sent_0**sep+*",
]


@pytest.fixture
def arguments(few_shot_folder, model_folder, tmp_path):
    return [
        "task=sst-2",
        "k=4",
        "seed=13",
        f"data_dir={few_shot_folder((13,))}",
        f"model={model_folder('roberta')}",
        f"store={tmp_path / 'trials.jsonl'}",
        "lr=0.003",
        "max_steps=4",
        "eval_every=2",
    ]


def compose(*overrides: str):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("rank", ["candidates=none", "seeds=[13]", "ks=[4]", *overrides])


def test_candidates_are_ranked_by_dev_and_the_test_set_is_not_looked_at(arguments, tmp_path):
    found = rank(compose(*arguments), [Candidate(template) for template in TEMPLATES], progress=False)
    assert sorted(one.template for one in found) == sorted(TEMPLATES)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    records = Store(tmp_path / "trials.jsonl").records()
    assert len(records) == 3
    assert all(record["test"] == {} and "outputs" not in record for record in records)
    scores = {record["settings"]["template"]: record["dev"]["acc"] for record in records}
    assert {one.template: one.score for one in found} == scores


def test_mappings_and_prompts_are_ranked_too(arguments):
    swapped = {"0": "great", "1": "terrible"}
    found = rank(compose(*arguments), [Candidate(None, swapped), Candidate(TEMPLATES[1], swapped)], progress=False)
    assert {one.template for one in found} == {None, TEMPLATES[1]}
    assert all(one.mapping == swapped for one in found)


def test_the_command_writes_the_ranked_file(arguments, tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("\n".join(TEMPLATES) + "\n")
    out = tmp_path / "ranked.txt"
    command = [sys.executable, "-m", "lm_bff.rank", *arguments, f"candidates={path}", f"output={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranked = read_candidates(out, "template", TASKS["sst-2"])
    assert sorted(one.template for one in ranked) == sorted(TEMPLATES)
    assert ranked[0].score >= ranked[-1].score


def test_a_file_with_a_template_without_a_mask_ends_the_command_with_status_2(arguments, tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text(f"{TEMPLATES[0]}\n*cls**sent_0*_It_was.*sep+*\n")
    command = [sys.executable, "-m", "lm_bff.rank", *arguments, f"candidates={path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "line 2" in done.stderr
    assert not (tmp_path / "trials.jsonl").exists()


def test_several_seeds_and_a_trial_without_dev_score_are_refused(arguments):
    with pytest.raises(InputError, match="one task, seed"):
        rank(compose(*arguments, "seeds=[13,42]"), [Candidate(TEMPLATES[0])], progress=False)
    with pytest.raises(InputError, match="no dev score"):
        dev_scores([{"key": "x", "metric": "acc", "dev": {}}])
