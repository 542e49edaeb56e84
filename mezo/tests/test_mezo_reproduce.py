"""The laptop reproduction in miniature: every run, claim and plot, and nothing twice."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mezo import plots, reproduce
from mezo.precision import compare, projected_gradients


@pytest.fixture
def small(tmp_path, masked_folder, opt_folder):
    """Its configuration with untrained models, a task of this project and a few steps."""

    def configure(*more: str):
        overrides = [
            f"output_dir={tmp_path / 'out'}", "processes=1", "masked.real=house-sentiment",
            f"masked.model={masked_folder}",
            "masked.seeds=[13]", "masked.steps=8", "masked.fine_tuning_steps=2", f"causal.model={opt_folder}",
            "causal.tasks=[house-sentiment,house-answer]", "causal.seeds=[0]", "causal.steps=2", "causal.num_train=16",
            "causal.num_test=8", "causal.demonstrations=1", "precision.directions=6", "memory.layers=[1]",
            "memory.rows=2", "memory.tokens=16",
        ]  # fmt: skip
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(reproduce.CONFIGS), version_base="1.3"):
            return compose("reproduce", [*overrides, *more])

    return configure


def test_the_reproduction_ends_in_claims_and_plots_and_repeats_nothing(small, tmp_path, monkeypatch, capsys):
    reproduce.main.__wrapped__(small())
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    metrics = results["metrics"]
    assert set(metrics["masked"]) == set(reproduce.MASKED) and metrics["masked"]["mezo"]["n"] == 1
    assert set(metrics["causal"]) == {"house_sentiment", "house_answer", "average"}
    assert metrics["replay"]["identical"] == 1.0 and metrics["replay"]["bytes"] > 24 * metrics["replay"]["steps"]
    assert metrics["memory"]["ratio"]["inference"] == 1.0 and metrics["memory"]["ratio"]["adam_full"] > 1
    assert metrics["precision"]["float32_fp32"]["correlation"] == pytest.approx(1)
    assert {claim["verdict"] for claim in results["claims"]} <= {"holds", "does not hold"}
    assert len(results["claims"]) == 11
    names = {"steps", "forward_passes", "memory", "trajectory_size"}
    assert {path.stem for path in (out / "plots").glob("*.png")} == names

    def never(*_):
        raise AssertionError("a finished part was run again")

    monkeypatch.setattr(reproduce, "run_cell", never)
    monkeypatch.setattr(reproduce, "peak", never)
    monkeypatch.setattr(reproduce, "projected_gradients", never)
    reproduce.main.__wrapped__(small())
    assert "bit for bit" in capsys.readouterr().out


def test_runs_of_a_sweep_differ_in_what_their_names_say(small, tmp_path):
    cells = [*reproduce.masked_cells(small(), tmp_path), *reproduce.causal_cells(small(), tmp_path)]
    assert len({cell.folder for cell in cells}) == len(cells)
    configs = {cell.name: reproduce.composed(cell) for cell in cells}
    passes = {name: 2 * cfg.zo.n * cfg.steps for name, cfg in configs.items() if cfg.trainer == "zo"}
    assert passes["masked mezo"] == passes["masked mezo_n4"] == 16
    assert configs["masked mezo_no_prompt"].prompt is False
    assert configs["house-answer icl"].evaluation.num_demos == 1
    assert Path(configs["masked mezo"].output_dir).parts[-2:] == ("mezo", "seed-13")


def test_half_precision_losses_are_coarse_and_fp32_ones_are_not():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4))
    x, y = torch.randn(32, 64), torch.randint(0, 4, (32,))
    found = {}
    for weights in (torch.float32, torch.float16, torch.bfloat16):
        typed = copy.deepcopy(model).to(weights)
        for loss in ("fp32", "native"):

            def value(typed=typed, weights=weights, loss=loss):
                logits = typed(x.to(weights))
                return torch.nn.functional.cross_entropy(logits.float() if loss == "fp32" else logits, y)

            name = str(weights).removeprefix("torch.")
            found[name, loss] = projected_gradients(typed, value, range(30), 1e-3)
    lines = {(line["weights"], line["loss"]): line for line in compare(found)}
    assert lines["float16", "native"]["distinct"] < lines["float16", "fp32"]["distinct"] == 30
    assert lines["float16", "fp32"]["correlation"] > 0.9 > lines["bfloat16", "native"]["correlation"]


def test_plots_hold_what_they_are_given():
    lines = [{"step": k, "loss": 1 / k, "projected_gradient": (-1) ** k} for k in range(1, 30)]
    figure = plots.loss_and_gradient(lines)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "projected gradient"]
    figure = plots.forward_pass_efficiency({"one": [(2, 0.5), (4, 0.75)]})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50, 75]
    figure = plots.memory_against_size({"MeZO": [(10**6, 5 * 10**6), (2 * 10**6, 10**7)]}, {"MeZO": [4e6, 8e6]})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [4, 8]
    figure = plots.trajectory_size(24, {"run": (1000, 4e6)})
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["24 kB", "4 MB"]


def test_a_misspelt_option_ends_with_status_two(tmp_path):
    command = [sys.executable, "-m", "mezo.reproduce", "masked.step=3", f"output_dir={tmp_path / 'x'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "masked.step" in done.stderr and not (tmp_path / "x").exists()
