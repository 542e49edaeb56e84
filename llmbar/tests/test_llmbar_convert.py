"""The release's result files become replay files that say the same."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmbar import locations
from llmbar.convert import ORDERS, RATINGS, convert_release
from llmbar.replay import Rules, replay
from llmbar.stages import read_stage, second_stage_prompts
from shared import InputError, hub

ROOT = Path(__file__).resolve().parents[2]


def write_release(folder: Path, judge: str, records: list[dict], sets: dict, strategies: dict, templates: dict) -> Path:
    """The result files of the release's layout, from replay records and the data they are about."""
    results: dict[tuple[str, str], list] = {}
    for record in records:
        one, strategy = sets[record["set"]][record["i"]], strategies[record["strategy"]]
        parts = [list(pair) for pair in record.get("aux", [])]
        if "scores" in record:
            parts.append(dict(zip(RATINGS, record["scores"], strict=True)))
        prompts: tuple = (None, None)
        for k, stage in enumerate(record.get("stages", [])):
            if k == 1:
                texts = [text for text, _ in record["stages"][0]["out"]]
                winners = read_stage(strategy.stages[0], texts, judge, "released").winners
                prompts = second_stage_prompts(one, templates[strategy.stages[1].prompt], texts, winners)
            orders = zip(ORDERS, stage["out"], prompts, strict=True)
            parts.append(
                {order: {"completion": pair} | ({"prompt": prompt} if prompt else {}) for order, pair, prompt in orders}
            )
        instance = {"input": one.input, "output_1": one.output_1, "output_2": one.output_2, "label": one.label}
        results.setdefault((record["set"], record["strategy"]), []).append(instance | {"results": parts})
    for (name, strategy), instances in results.items():
        path = folder / name / "evaluators" / judge / strategy / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(instances))
    return folder


def by_place(path: Path) -> dict[tuple, dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return {(r["set"], r["i"], r["strategy"]): r for r in map(json.loads, file)}


@pytest.mark.mirror
def test_released_layout_and_replay_files_say_the_same(
    tmp_path, released, released_templates, strategies, recorded_folder
):
    """Auxiliary texts, both orders, ratings, and the digests of second-stage prompts survive the way there and back."""
    source = recorded_folder / "GPT-4.jsonl.gz"
    wanted = {
        key: r for key, r in by_place(source).items() if key[0] in ("LLMBar/Adversarial/Manual", "CaseStudy/Normal")
    }
    release = write_release(
        tmp_path / "release", "GPT-4", list(wanted.values()), released, strategies, released_templates
    )
    lines = convert_release(release, tmp_path / "recorded")
    assert lines == {"GPT-4": len(wanted)}
    assert by_place(tmp_path / "recorded" / "GPT-4.jsonl.gz") == wanted
    assert any("prompt_sha256" in r["stages"][-1] for r in wanted.values() if "stages" in r)
    rules = Rules("GPT-4", strategies, released_templates)
    sets = {name: released[name] for name in ("LLMBar/Adversarial/Manual", "CaseStudy/Normal")}
    assert replay(tmp_path / "recorded" / "GPT-4.jsonl.gz", sets, rules).prompts_checked > 0


def a_rating(judge: str = "Mine", **changes) -> dict:
    return {
        "results": [{"score_1": ["7 ", "stop"], "score_2": ["8", "stop"], "swap = False": {"winner": "2"}}],
        **changes,
    }


def write_result(folder: Path, content, name: str = "LLMBar/Natural", judge: str = "Mine") -> Path:
    path = folder / name / "evaluators" / judge / "Rating" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_same_release_gives_the_same_bytes(tmp_path):
    release = write_result(tmp_path / "release", [a_rating(), a_rating()])
    for name in ("first", "second"):
        convert_release(release, tmp_path / name)
    first, second = (tmp_path / name / "Mine.jsonl.gz" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert by_place(first)["LLMBar/Natural", 1, "Rating"]["scores"] == [["7", "stop"], ["8", "stop"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ({"results": []}, "no list of instances"),
        ([{"input": "x"}], "instance 0: results is None"),
        ([a_rating(), {"results": [{"swap = False": {"completion": ["x", ""]}}]}], "instance 1: results has neither"),
        ([{"results": [{"score_1": ["7"], "score_2": ["8", ""]}]}], r"instance 0: an answer is \['7'\]"),
    ],
)
def test_a_result_file_of_another_layout_is_refused_and_nothing_is_left(tmp_path, content, message):
    release = write_result(tmp_path / "release", content)
    with pytest.raises(InputError, match=message):
        convert_release(release, tmp_path / "recorded")
    assert not (tmp_path / "recorded").exists()


def test_the_command_names_what_is_wrong_and_ends_with_status_2(tmp_path):
    command = [sys.executable, "-m", "llmbar.convert", f"output_dir={tmp_path / 'out'}", f"release={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "result.json below it" in ended.stderr
    with pytest.raises(InputError, match="has files in it"):
        convert_release(write_result(tmp_path / "release", [a_rating()]), tmp_path / "release")


def test_a_mirror_with_the_releases_files_alone_can_be_replayed(tmp_path, monkeypatch):
    """`make mirror-llmbar` fetches the release; the first use converts it, the second finds what the first made."""
    mirror = tmp_path / "mirror"
    for name in ("LLMBar/Natural", "CaseStudy/Normal", "Processed/FairEval"):
        write_result(mirror / "llmbar" / "recorded_release", [a_rating()], name)
    monkeypatch.setenv("REPRO_MIRROR", str(mirror))
    monkeypatch.setattr(hub, "cache_folder", lambda paper: tmp_path / "cache" / paper)
    (first,) = locations.recorded_files()
    written = first.stat().st_mtime_ns
    assert first.name == "Mine.jsonl.gz"
    assert locations.recorded_files() == [first]
    assert first.stat().st_mtime_ns == written
