"""The laptop reproduction in miniature: it runs end to end, goes on after a kill, and its claims follow its numbers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from mlm_masking import findings
from mlm_masking.laptop_plan import CORPUS, cells_of, check, text_overrides, write_documents
from mlm_masking.word_order import held_out_lines, order_pairs
from shared import InputError
from shared.paper import load_paper

CONFIG = Path(__file__).parents[1] / "configs" / "reproduce.yaml"
SMALL = ",".join(
    f"model.{name}"
    for name in ("num_hidden_layers=1", "hidden_size=16", "intermediate_size=32", "max_position_embeddings=66")
)
COMMON = "data.vocab_size=300 data.block_length=16 batch_size=8 optim.max_steps=6 optim.logging_steps=3 eval.steps=3"


def quoted(items: str | list[str]) -> str:
    """Overrides as an element of Hydra's command line: ["a=1","b=2"]."""
    return json.dumps(items.replace(",", " ").split() if isinstance(items, str) else items, separators=(",", ":"))


@pytest.fixture
def miniature(pretrain_text, files):
    """Overrides of a reproduction of seconds: seven runs of six updates and an untrained model."""
    tiny, mini = (f"{{overrides:{quoted(SMALL)},rates:{rates}}}" for rates in ("[0.15,0.4,0.8]", "[0.4]"))
    return [
        f"text={quoted(['data=textfiles', f'data.path={pretrain_text}'])}",
        f"overrides={quoted(COMMON + ' eval.blocks=8')}",
        f"sizes={{tiny:{tiny},mini:{mini}}}",
        "strategies={span_t5:[0.4]}",
        "replace={p801010:[0.4]}",
        "decoupled={corruption:[0.4],prediction:[0.15,0.4]}",
        "seeds=[1]",
        "final_blocks=20",
        "probes.order_pairs=8",
        "probes.blimp_pairs=null",
        "probes.finetune={lr:1e-3,batch_size:16,epochs:1,size:48}",
        f"probes.files=[{files / 'train.jsonl'},{files / 'dev.jsonl'}]",
        "processes=1",
    ]


def parts_of(folder: Path) -> dict[str, int]:
    """Every finished part below a run's folder, and when it was written."""
    names = ("training", "order", "finetune")
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("cells/*/*/*/*.json") if p.stem in names}


def test_a_killed_reproduction_goes_on_and_runs_nothing_twice(miniature, command, environment, runs, tmp_path):
    """SIGKILL in the middle; the restart leaves finished parts as they are, and ends in table, plots and claims."""
    folder = tmp_path / "out"
    arguments = [*miniature, f"output_dir={folder}"]
    started = subprocess.Popen(
        [sys.executable, "-m", "mlm_masking.reproduce", *arguments],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while len(parts_of(folder)) < 3 and started.poll() is None:
        time.sleep(0.02)
    started.kill()
    assert started.wait() == -9, started.stderr.read().decode()
    before = parts_of(folder)
    assert not (folder / "results.json").exists()

    status, errors = command("reproduce", *arguments)
    assert status == 0, errors
    after = parts_of(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) == 8 + 2 * 4  # seven runs and the untrained model; two probes of four of them
    result = json.loads((folder / "results.json").read_text())
    metrics = result["metrics"]
    assert metrics["runs"] == 8 and metrics["runs_now"] == 8 - sum(
        1 for path in before if Path(path).stem == "training" and not _probed_but_unfinished(path, before)
    )
    assert all((folder / plot["file"]).stat().st_size > 5000 for plot in result["plots"])
    assert {plot["name"] for plot in result["plots"]} >= {"quality_by_rate", "decoupling", "probes"}
    verdicts = {claim["id"]: claim["verdict"] for claim in result["claims"]}
    assert verdicts.keys() == {claim["id"] for claim in load_paper("mlm-masking").claims}
    assert verdicts["rates_as_asked"] in ("holds", "does not hold")
    assert verdicts["blimp_survives"].startswith("not testable")

    status, errors = command("reproduce", *arguments)
    assert status == 0, errors
    again = json.loads((folder / "results.json").read_text())["metrics"]
    assert again.pop("runs_now") == 0 and parts_of(folder) == after
    metrics.pop("runs_now")
    assert again == metrics


def _probed_but_unfinished(path: str, parts: dict[str, int]) -> bool:
    """Whether a cell with a finished training lacks a probe that it is asked for."""
    folder = Path(path).parent
    probed = folder.parent.name in ("m15", "m40", "m80", "untrained") and folder.parent.parent.name == "tiny"
    return probed and not all(str(folder / f"{name}.json") in parts for name in ("order", "finetune"))


@pytest.mark.parametrize(
    "bad, named",
    [
        ("scale=paper", "scale=paper"),
        ("seeds=[1,1]", "seeds=[1, 1]"),
        ("probes.rates=[0.33]", "probes.rates has 0.33"),
        ("sizes.tiny.rates=[1.5]", "sizes.tiny.rates"),
        ("processes=0", "processes=0"),
        ("probes.files=[one.tsv]", "probes.files"),
        ("seds=[1]", "seds"),
    ],
)
def test_bad_options_end_with_status_2(command, tmp_path, bad, named):
    status, errors = command("reproduce", bad, f"output_dir={tmp_path / 'out'}")
    assert status == 2 and named in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_refused(miniature, command, runs, tmp_path):
    part = tmp_path / "out" / "cells" / "tiny" / "m15" / "seed-1" / "training.json"
    part.parent.mkdir(parents=True)
    part.write_text(json.dumps({"identity": {"seed": 9}, "result": {}}))
    status, errors = command("reproduce", *miniature, f"output_dir={tmp_path / 'out'}")
    assert status == 2 and "another" in errors and "output_dir" in errors


# ----------------------------------------------------------------------------------------------------------- the plan


def test_the_plan_holds_every_cell_once_and_equal_pairs_are_the_ordinary_runs():
    cfg = OmegaConf.load(CONFIG)
    check(cfg)
    cells = cells_of(cfg, ["data=wikitext2"])
    names = [(cell.name, cell.seed) for cell in cells]
    assert len(names) == len(set(names))
    wanted = {f"tiny/m{rate}" for rate in (15, 20, 30, 40, 50, 60, 70, 80)}
    assert wanted <= {name for name, _ in names}
    assert "tiny/c20_p40" in dict(names) and "tiny/c40_p40" not in dict(names)
    assert {seed for _, seed in names} == set(cfg.seeds) and len(cfg.seeds) >= 3


def test_without_wikitext_the_offline_corpus_is_read(monkeypatch, tmp_path):
    from rich.console import Console

    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("mlm_masking.laptop_plan.hub.cache_folder", lambda paper: tmp_path / "cache")
    assert text_overrides(OmegaConf.load(CONFIG), Console(quiet=True)) == list(CORPUS)


def test_the_offline_task_has_both_classes_and_no_example_on_both_sides(tmp_path):
    """From the beginning of the offline corpus alone."""
    train, dev = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in write_documents(tmp_path, 60, 12, max_bytes=100_000)
    )
    assert {row["label"] for row in train} == {0, 1} and len(dev) == 12 and 20 < len(train) <= 60
    assert not {row["sentence"] for row in train} & {row["sentence"] for row in dev}


# ---------------------------------------------------------------------------------------------------------- word order


def test_pairs_differ_by_two_neighbours_alone():
    lines = [f"the {a} saw one very {b} house today ." for a in ("dog", "cat", "man") for b in ("red", "old")]
    pairs = order_pairs(lines, 6)
    assert len(set(pairs.good)) == len(pairs) == 6
    for good, bad in zip(pairs.good, pairs.bad, strict=True):
        good, bad = good.split(), bad.split()
        places = [place for place in range(len(good)) if good[place] != bad[place]]
        assert len(places) == 2 and places[1] == places[0] + 1
        assert good[places[0]] == bad[places[1]] and good[places[1]] == bad[places[0]]
    assert order_pairs(lines, 6).bad == pairs.bad
    with pytest.raises(InputError, match=r"probes\.order_pairs=7"):
        order_pairs(lines, 7)


def test_held_out_lines_leave_out_what_may_be_cut(tokenizer):
    lines = ["the cat sat on the mat .", "a dog ran .", "the house is red ."]
    ids = [np.array([*tokenizer(line, add_special_tokens=False)["input_ids"], 2]) for line in lines]
    assert held_out_lines(np.concatenate(ids), tokenizer) == [lines[1], lines[2]]
    assert held_out_lines(np.concatenate(ids)[3:-2], tokenizer) == [lines[1]]


# ------------------------------------------------------------------------------------------------------------ findings


def training(own: float, *fixed: float) -> dict:
    return {"training": {"loss": dict(zip(("own", "15", "40", "80"), (own, *fixed), strict=True))}}


def test_differences_are_taken_within_seeds():
    """Two seeds far apart and one constant difference: no spread."""
    found = findings.Findings(
        {
            "tiny/m40": [training(3, 2.0, 3, 4), training(3, 5.0, 3, 4)],
            "tiny/m15": [training(3, 2.5, 3, 4), training(3, 5.5, 3, 4)],
        }
    )
    gain = found.gain("tiny/m40", "tiny/m15")
    assert gain["values"] == [0.5, 0.5] and gain["std"] == 0
    assert found.best_rate({0.15: "tiny/m15", 0.4: "tiny/m40"})["values"] == [0.4, 0.4]
    assert found.gain("tiny/m40", "tiny/m80") is None


def test_what_eighty_percent_keeps_is_undefined_where_nothing_was_gained():
    def cells(untrained: float, fifteen: float, eighty: float) -> dict:
        scores = {"untrained": untrained, "m15": fifteen, "m40": fifteen, "m80": eighty}
        return {
            f"tiny/{name}": [{"blimp": {"accuracy": score + noise}} for noise in (0.0, 0.01, -0.01)]
            for name, score in scores.items()
        }

    learned = findings.probe_findings(findings.Findings(cells(0.5, 0.8, 0.76)), "tiny")["blimp"]
    assert learned["eighty_keeps"]["mean"] == pytest.approx(0.95, abs=1e-3)
    at_chance = findings.probe_findings(findings.Findings(cells(0.5, 0.5, 0.6)), "tiny")["blimp"]
    assert at_chance["eighty_keeps"] is None
