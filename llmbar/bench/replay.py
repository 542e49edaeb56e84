"""Seconds and memory of replaying every recorded judge on this machine, and how memory grows with the files.

    python llmbar/bench/replay.py
    python llmbar/bench/replay.py --rounds 3 --longer 8

Time: all files one after the other in one process (reading, parsing, second-stage digests, scores), against the plain
way, which decompresses a file, keeps all its judgements in a list and scores that list: the same scores, so that the
comparison is of streaming alone. Memory: a process per measurement, the judge's file as it is and with every text
`--longer` times as long (the same verdicts follow, since a verdict is read from a text's beginning of lines and the
added lines hold none), above a process that has loaded the data sets and nothing else.
"""

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmbar import replay as replaying
from llmbar.data import RELEASED, load_sets
from llmbar.locations import recorded_files
from llmbar.prompts import read_templates
from llmbar.replay import Rules, replay
from llmbar.strategies import all_strategies
from shared import hub
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
FILLER = (
    "\nThis sentence is only here to make the text longer than it was before and says nothing about either of them."
)


def load() -> tuple[dict, dict, dict]:
    strategies = all_strategies()
    sets = load_sets(hub.locate("llmbar", "dataset"), list(RELEASED))
    return sets, strategies, read_templates(hub.locate("llmbar", "prompts"), strategies)


def judge_of(path: Path) -> str:
    return path.name.split(".jsonl")[0].split("-times")[0]


def keep_everything(path: Path):
    """In place of `replay.read_lines`: the whole file as text, then all its judgements, then one by one."""
    with gzip.open(path, "rb") as file:
        text = file.read().decode("utf-8")
    yield from enumerate([json.loads(line) for line in text.splitlines()], start=1)


def peak_bytes() -> int:
    """Of this process image: unlike getrusage's, it does not start from the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def one_replay(path: Path | None, whole_file: bool) -> dict[str, float]:
    """Run in a process of its own: peak resident memory after loading the data and replaying `path` (None: no file)."""
    sets, strategies, templates = load()
    accuracy = 0.0
    if whole_file:
        replaying.read_lines = keep_everything
    if path is not None:
        result = replay(path, sets, Rules(judge_of(path), strategies, templates))
        accuracy = sum(tally.cell().accuracy for tally in result.tallies.values())
    return {"bytes": peak_bytes(), "accuracy": accuracy}


def in_a_process(path: Path | None, whole_file: bool = False) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(path or ""), *(["--whole-file"] if whole_file else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def lengthen(path: Path, folder: Path, times: int) -> Path:
    """The file with every stage's texts made about `times` as long; second-stage digests go (their prompts change)."""
    out = folder / f"{judge_of(path)}-times{times}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as source, gzip.open(out, "wt", 1, encoding="utf-8") as target:
        for line in source:
            record = json.loads(line)
            for stage in record.get("stages", ()):
                stage.pop("prompt_sha256", None)
                for answer in stage["out"]:
                    answer[0] += FILLER * max(1, (times - 1) * max(len(answer[0]), 40) // len(FILLER))
            for answer in record.get("aux", ()):
                answer[0] += FILLER * max(1, (times - 1) * len(answer[0]) // len(FILLER))
            target.write(json.dumps(record) + "\n")
    return out


def unpacked_bytes(path: Path) -> int:
    with gzip.open(path, "rb") as file:
        return sum(len(line) for line in file)


def time_all(files: list[Path], rounds: int) -> dict[str, list[float]]:
    sets, strategies, templates = load()
    streaming = replaying.read_lines
    seconds: dict[str, list[float]] = {"streaming": [], "whole file": []}
    for _ in range(rounds):
        for name, reader in (("streaming", streaming), ("whole file", keep_everything)):
            replaying.read_lines = reader
            start = time.perf_counter()
            for path in files:
                replay(path, sets, Rules(judge_of(path), strategies, templates))
            seconds[name].append(time.perf_counter() - start)
    replaying.read_lines = streaming
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longer", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--whole-file", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-replay.json beside this script")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one_replay(Path(options.one) if options.one else None, options.whole_file)))
        return
    watch = Watch(ROOT, config={"rounds": options.rounds, "longer": options.longer})
    files = recorded_files()
    seconds = time_all(files, options.rounds)
    biggest = max(files, key=lambda path: path.stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        longer = lengthen(biggest, Path(folder), options.longer)
        base, plain, long = (in_a_process(path) for path in (None, biggest, longer))
        kept = in_a_process(longer, whole_file=True)
        sizes = {"plain": unpacked_bytes(biggest), "longer": unpacked_bytes(longer)}
    assert plain["accuracy"] == long["accuracy"], "the longer texts changed a verdict"

    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    peaks = {"plain": plain, "longer": long, "longer, whole file in memory": kept}
    memory = {name: peak["bytes"] - base["bytes"] for name, peak in peaks.items()}
    table = Table("", "seconds (median)", "unpacked", "memory above the data sets", title=f"{len(files)} judges")
    table.add_row("all judges, streaming", f"{median['streaming']:.2f}", "", "")
    table.add_row("all judges, whole file in memory", f"{median['whole file']:.2f}", "", "")
    for name in memory:
        size = sizes["plain" if name == "plain" else "longer"]
        table.add_row(f"{judge_of(biggest)}, {name}", "", f"{size / 2**20:.1f} MiB", f"{memory[name] / 2**20:.1f} MiB")
    console = Console()
    console.print(table)
    record = {
        "benchmark": "replay",
        "files": [path.name for path in files],
        "seconds": seconds,
        "median_seconds": median,
        "memory": {"judge": judge_of(biggest), "unpacked_bytes": sizes, "bytes_above_data_sets": memory,
                   "growth_of_file": sizes["longer"] / sizes["plain"],
                   "growth_of_memory": memory["longer"] / max(memory["plain"], 1)},
        "provenance": watch.record(),
    }  # fmt: skip
    write_record(record, __file__, "cpu-replay", options.out)


if __name__ == "__main__":
    main()
