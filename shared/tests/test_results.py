"""results.json: measured beside the paper, whole or absent, with provenance, without secrets or machine paths."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console

from shared import InputError, provenance
from shared.paper import load_paper
from shared.provenance import command_line
from shared.results import RESULT_KEYS, Run, load_result, over_seeds

PAPER = """
paper: tiny
title: A tiny paper
tables:
  t1:
    title: Scores
    source: Table 1
    metric: "sts.{column}.all"
    scale_by: 100
    columns: [STS12, {key: STSBenchmark, label: STS-B}, {label: Avg, metric: avg}]
    rows:
      ours: {label: Ours, experiment: main, values: [70.0, 80.0, 75.0]}
      quoted: {label: Other, values: [60.0, null, 61.0]}
measured:
  - {label: untrained, metric: scratch.untrained, paper: null, experiment: reproduce, scale_by: 100}
  - {label: trained, metric: scratch.trained, paper: t1.ours.STS-B, experiment: reproduce, note: another encoder}
  - {label: never measured, metric: scratch.nothing, experiment: reproduce}
claims:
  - id: training_helps
    text: Training helps
    laptop: m("scratch.trained") > m("scratch.untrained")
    paper: m("avg") > 0.7
  - {id: both, text: Both agree, laptop: 'm("scratch.trained") > m("score", "second")'}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "paper.yaml").write_text(PAPER, encoding="utf-8")
    monkeypatch.setattr("shared.paper.project_root", lambda: tmp_path)
    monkeypatch.setattr("shared.results.project_root", lambda: tmp_path)
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path


def finish(run):
    stream = io.StringIO()
    path = run.finish(Console(file=stream, width=160))
    return path, stream.getvalue()


def test_a_run_writes_metrics_claims_and_provenance_and_prints_them_beside_the_paper(root):
    run = Run("tiny", "reproduce", "laptop", config=OmegaConf.create({"lr": 0.1}), seed=[1, 2])
    run.metrics["scratch"] = {"untrained": 0.5, "trained": over_seeds([0.69, 0.71])}
    path, printed = finish(run)
    assert path == root / "runs/tiny/laptop/reproduce/results.json"
    result = load_result(path)
    assert set(RESULT_KEYS) <= result.keys()
    assert result["claims"][0]["verdict"] == "holds"
    assert "experiment second has not been run" in result["claims"][1]["verdict"]
    proof = result["provenance"]
    assert proof["config"] == {"lr": 0.1} and proof["seed"] == [1, 2]
    assert proof["wall_time_s"] > 0 and proof["peak_memory_bytes"] > 10_000_000
    assert {"python", "torch", "transformers", "datasets", "numpy"} <= proof["versions"].keys()
    assert proof["hardware"]["cores"] >= 1 and proof["started_at"].endswith("+00:00")
    assert "70.00 ± 1.41" in printed and "80.00" in printed and "-10.00" in printed and "holds" in printed
    assert "never measured" not in printed


def test_a_claim_reads_another_experiments_results_of_the_same_scale(root):
    other = Run("tiny", "second", "laptop")
    other.metrics["score"] = 0.4
    finish(other)
    run = Run("tiny", "reproduce", "laptop")
    run.metrics["scratch"] = {"untrained": 0.5, "trained": 0.7}
    path, _ = finish(run)
    assert [claim["verdict"] for claim in load_result(path)["claims"]] == ["holds", "holds"]


def test_a_committed_record_stands_in_for_a_run_that_is_not_here(root):
    other = Run("tiny", "second", "laptop")
    other.metrics["score"] = 0.9
    path, _ = finish(other)
    record = root / "tiny/records/laptop/second.json"
    record.parent.mkdir(parents=True)
    path.rename(record)
    run = Run("tiny", "reproduce", "laptop")
    run.metrics["scratch"] = {"untrained": 0.5, "trained": 0.7}
    path, _ = finish(run)
    assert load_result(path)["claims"][1]["verdict"] == "does not hold"


def test_numbers_of_numpy_are_stored_as_plain_ones(root):
    run = Run("tiny", "main", "paper")
    run.metrics = {"a": np.float32(0.5), "b": np.arange(3), "c": [np.int64(2)], "d": None, "e": True, "f": "text"}
    path, _ = finish(run)
    expected = {"a": 0.5, "b": [0, 1, 2], "c": [2], "d": None, "e": True, "f": "text"}
    assert load_result(path)["metrics"] == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.array([1.0, -np.inf])])
def test_a_metric_that_is_not_finite_is_refused_by_its_path_and_nothing_is_written(root, value):
    run = Run("tiny", "main", "laptop")
    run.metrics["sts"] = {"STS12": {"all": value}}
    with pytest.raises(InputError, match=r"metrics\.sts\.STS12\.all"):
        run.finish()
    assert not (run.output_dir / "results.json").exists()


def test_values_json_cannot_hold_are_refused_by_their_path(root):
    run = Run("tiny", "main", "laptop")
    run.metrics["when"] = {"x": {1, 2}}
    with pytest.raises(InputError, match=r"metrics\.when\.x is a set"):
        run.finish()
    run.metrics = {"temperature": {0.05: 1.0}}
    with pytest.raises(InputError, match=r"metrics\.temperature: key 0\.05"):
        run.finish()


def test_a_failed_write_leaves_the_old_results_and_no_fragment(root, monkeypatch):
    run = Run("tiny", "main", "laptop")
    run.metrics["x"] = 1
    path, _ = finish(run)
    before = path.read_text()
    monkeypatch.setattr("shared.results.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    run.metrics["x"] = 2
    with pytest.raises(OSError, match="disk full"):
        run.finish(Console(file=io.StringIO()))
    assert path.read_text() == before
    assert [item.name for item in run.output_dir.iterdir()] == ["results.json"]


def test_other_ranks_write_and_print_nothing(root, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = Run("tiny", "main", "laptop")
    run.save_plot("p", Figure(), caption="nothing")
    _, printed = finish(run)
    assert printed == "" and not any(path.is_file() for path in run.output_dir.rglob("*"))


def test_plots_are_listed_with_caption_and_alternative_text(root):
    run = Run("tiny", "main", "laptop")
    for _ in range(2):  # saved again, listed once
        run.save_plot("curve", Figure(figsize=(2, 1)), caption="Loss falls.", alt="A falling line.")
    path, _ = finish(run)
    expected = {"name": "curve", "file": "plots/curve.png", "caption": "Loss falls.", "alt": "A falling line."}
    assert load_result(path)["plots"] == [expected]
    assert (run.output_dir / "plots/curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="plot name"):
        run.save_plot("../curve", Figure(), caption="")


def test_over_seeds_gives_the_sample_deviation():
    assert over_seeds([1, 2, 3]) == {"mean": 2.0, "std": 1.0, "n": 3, "values": [1.0, 2.0, 3.0]}
    assert over_seeds([0.5])["std"] is None
    with pytest.raises(InputError, match="no values"):
        over_seeds([])


def test_secrets_and_machine_paths_stay_out_of_the_provenance(root, monkeypatch):
    monkeypatch.setenv("REPRO_MIRROR", "/data/mirror")
    config = {
        "api_key": "abc",
        "judge": {"openai": {"token": "x", "password": "y", "max_tokens": 10, "pad_token": "[PAD]"}},
        "note": "use hf_abcdefghijklmnopqrstuv and sk-abcdefghijklmnopqrst please",
        "base_url": "https://user:pass@host.example/v1/models",
        "paths": [str(root / "simcse/data"), "/home/somebody/models/bert", "/data/mirror/simcse/SentEval"],
    }
    run = Run("tiny", "main", "laptop", config=config)
    run.metrics["x"] = 1
    text = json.dumps(load_result(finish(run)[0]))
    for leak in ("abc", '"x"}', '"y"', "hf_", "sk-a", "user:pass", "somebody", str(root)):
        assert leak not in text.replace('"x": 1', ""), leak
    kept = json.loads(text)["provenance"]["config"]
    assert kept["judge"]["openai"] == {
        "token": "[removed]", "password": "[removed]", "max_tokens": 10, "pad_token": "[PAD]",
    }  # fmt: skip
    assert kept["paths"] == ["simcse/data", ".../bert", "$REPRO_MIRROR/simcse/SentEval"]
    assert kept["base_url"] == "https://[removed]@host.example/v1/models"


def test_the_command_is_what_a_reader_would_type(tmp_path):
    argv = [
        "/x/python/train.py",
        "scale=paper",
        "hydra.run.dir=.",
        "judge.api_key=abc",
        "--token",
        "abc",
        "model=/a/b/c",
    ]
    command = command_line(argv, "simcse.train", tmp_path)
    assert command == "python -m simcse.train scale=paper judge.api_key=[removed] --token [removed] model=.../c"


def test_without_git_the_commit_is_null(tmp_path, monkeypatch):
    assert provenance.git_state(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) == (None, None)


def test_the_commit_and_local_changes_are_recorded(tmp_path):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.example"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "f").write_text("1")
    subprocess.run([*git, "add", "f"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit, dirty = provenance.git_state(tmp_path)
    assert len(commit) == 40 and dirty is False
    (tmp_path / "f").write_text("2")
    assert provenance.git_state(tmp_path) == (commit, True)


def test_importing_results_does_not_import_torch():
    code = "import sys, shared.results, shared.report; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("values: [70.0, 80.0, 75.0]", "values: [70.0, 80.0]"), "table 't1', row 'ours': 2 values for 3 columns"),
        (("values: [70.0, 80.0, 75.0]", "values: [70.0, 80.0, high]"), "'high' is not a number"),
        (("paper: t1.ours.STS-B", "paper: t1.ours.STS99"), "no table cell is called 't1.ours.STS99'"),
        (("id: both", "id: training_helps"), "claim 'training_helps' is listed twice"),
        (("note: another", "nota: another"), "unknown key nota"),
        (('m("avg") > 0.7', 'm("avg") > > 0.7'), r"claim 'training_helps' \(paper\): cannot parse"),
        (("title: A tiny paper", "title: [A tiny"), "not valid YAML"),
        (("text: Both agree, ", ""), "claim 'both': text is missing"),
    ],
)
def test_a_malformed_paper_yaml_ends_the_run_before_it_starts(root, change, message):
    (root / "tiny" / "paper.yaml").write_text(PAPER.replace(*change), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Run("tiny", "main", "laptop")
    assert not (root / "runs").exists()


def test_an_unknown_paper_is_an_error_that_lists_the_papers(root):
    with pytest.raises(InputError, match="papers here: tiny"):
        load_paper("simsce")


def test_a_paper_scale_run_is_compared_with_the_cells_of_its_experiment(root):
    run = Run("tiny", "main", "paper")
    run.metrics = {"sts": {"STS12": {"all": 0.71}, "STSBenchmark": {"all": 0.795}}, "avg": 0.7525}
    _, printed = finish(run)
    for text in ("Ours, STS12 (Table 1)", "71.00", "+1.00", "Ours, STS-B", "-0.50", "75.25", "+0.25", "holds"):
        assert text in printed
    assert "Other" not in printed  # a quoted baseline is never shown as measured
