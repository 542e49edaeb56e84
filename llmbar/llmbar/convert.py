"""From the release's result files to replay files: `python -m llmbar.convert [release=FOLDER output_dir=FOLDER]`.

The release keeps one `evaluators/<judge>/<strategy>/result.json` per set, 499 files of 250 MB in all, most of it the
same instances and prompts over again. A replay file holds what a judge said and nothing else: one line per instance and
strategy, 3 MB per judge. Winners are left out (a replay reads them from the texts), and a second stage's prompt is kept
as a digest, so that what is rebuilt from data and first-stage texts can be checked against what was asked.

Where only the release's files are at hand (`make mirror-llmbar`), `locations.recorded_files` converts them once, into
the local cache.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from llmbar.data import RELEASED
from llmbar.prompts import sha256_16
from shared import InputError, hub
from shared.launch import entrypoint

ORDERS = ("swap = False", "swap = True")
RATINGS = ("score_1", "score_2")


def convert_release(release: Path, output_dir: Path) -> dict[str, int]:
    """Write `<judge>.jsonl.gz` for every judge below `release`; judge -> lines. All files appear together or none does.

    Args:
        release: a folder with `LLMBar/`, `CaseStudy/` and `Processed/` as in the release, or some of them.
        output_dir: a folder that does not exist yet, or is empty.

    Raises:
        InputError: nothing to convert, an output folder with files in it, a result file of another layout.
    """
    judges = sorted({path.parts[-3] for path in release.glob("**/evaluators/*/*/result.json")})
    if not judges:
        raise InputError(f"release={release}: no <set>/evaluators/<judge>/<strategy>/result.json below it")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"output_dir={output_dir} has files in it; name a new folder")
    unfinished = output_dir.with_name(f"{output_dir.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    lines = {}
    for judge in judges:
        # No time stamp and no name in the header: the same release gives the same bytes.
        with (unfinished / f"{judge}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
            lines[judge] = 0
            for record in judge_records(release, judge):
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                lines[judge] += 1
    if output_dir.is_dir():
        output_dir.rmdir()
    unfinished.rename(output_dir)
    return lines


def judge_records(release: Path, judge: str) -> Iterator[dict[str, Any]]:
    """A judge's judgements in the replay format, set by set in the order of the paper, strategies by name."""
    for name in RELEASED:
        for path in sorted((release / name / "evaluators" / judge).glob("*/result.json")):
            try:
                instances = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise InputError(f"{path} is not JSON ({error}); fetch it again") from None
            if not isinstance(instances, list):
                raise InputError(f"{path} holds no list of instances; fetch it again")
            for i, instance in enumerate(instances):
                where = f"{path}, instance {i}"
                yield {"set": name, "i": i, "strategy": path.parent.name, **_answers(where, instance)}


def _answers(where: str, instance: Any) -> dict[str, Any]:
    results = instance.get("results") if isinstance(instance, dict) else None
    if not isinstance(results, list):
        raise InputError(f"{where}: results is {results!r}, not a list")
    auxiliary = [_pair(where, part) for part in results if isinstance(part, list)]
    parts = [part for part in results if isinstance(part, dict)]
    answers: dict[str, Any] = {"aux": auxiliary} if auxiliary else {}
    if len(parts) == 1 and set(RATINGS) <= set(parts[0]):
        return answers | {"scores": [_pair(where, parts[0][name]) for name in RATINGS]}
    if len(parts) not in (1, 2) or not all(set(ORDERS) <= set(part) for part in parts):
        raise InputError(f"{where}: results has neither two scores nor one or two stages in both orders")
    answers["stages"] = [_stage(where, part) for part in parts]
    return answers


def _stage(where: str, part: dict[str, Any]) -> dict[str, Any]:
    orders = [part[order] for order in ORDERS]
    stage: dict[str, Any] = {"out": [_pair(where, order.get("completion")) for order in orders]}
    if all("prompt" in order for order in orders):
        stage["prompt_sha256"] = [sha256_16(order["prompt"]) for order in orders]
    return stage


def _pair(where: str, pair: Any) -> list[str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise InputError(f"{where}: an answer is {pair!r}, not [text, finish reason]")
    return [pair[0].strip(), pair[1]]


@entrypoint(config_name="convert")
def main(cfg: DictConfig) -> None:
    release = hub.locate("llmbar", "recorded_release") if cfg.release is None else Path(cfg.release).expanduser()
    if not release.is_dir():
        raise InputError(f"release={release}: there is no such folder")
    output_dir = Path(cfg.output_dir).expanduser()
    lines = convert_release(release, output_dir)
    for judge, count in lines.items():
        Console(soft_wrap=True).print(f"{output_dir / judge}.jsonl.gz: {count:,} judgements", highlight=False)


if __name__ == "__main__":
    main()
