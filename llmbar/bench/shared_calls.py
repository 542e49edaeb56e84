"""Calls per instance of the ten comparison strategies: each on its own, and with auxiliary and CoT texts asked once.

    python llmbar/bench/shared_calls.py

The judge's own state machine asks; CoT questions are answered with what each recorded judge wrote, so second stages
run exactly where that judge contradicted itself; of all other answers only the number matters. Without recorded judges
on this machine, the two extremes are counted: no conflict at all, and nothing but conflicts.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmbar.data import HOUSE, HOUSE_FOLDER, RELEASED, Instance, load_sets
from llmbar.judges import PromptJudge
from llmbar.locations import data_folder, prompt_folder, recorded_files
from llmbar.prompts import read_templates
from llmbar.replay import read_lines
from llmbar.strategies import Strategy, all_strategies
from shared import hub
from shared.bench import write_record
from shared.generation import Completion, Request
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
COT = re.compile(r"^(?P<set>.+)\[(?P<i>\d+)\] comparison/CoT\.txt (?P<order>given|swapped) ")
VERDICT = "Therefore, Output ({}) is better."


def answering(cot: Callable[[str, int, str], str]) -> Callable[[Sequence[Request]], list[Completion]]:
    """Answers CoT questions by `cot(set, i, order)`, everything else by "Output (a)"."""

    def ask(requests: Sequence[Request]) -> list[Completion]:
        answers = []
        for request in requests:
            match = COT.match(request.id)
            text = cot(match["set"], int(match["i"]), match["order"]) if match else "Output (a)"
            answers.append(Completion(request.id, text, "stop"))
        return answers

    return ask


def recorded_cot(path: Path) -> Callable[[str, int, str], str]:
    """What a recorded judge wrote under CoT."""
    texts = {}
    for _, record in read_lines(path):
        if record["strategy"] == "CoT":
            for order, (text, _) in zip(("given", "swapped"), record["stages"][0]["out"], strict=True):
                texts[record["set"], record["i"], order] = text
    return lambda name, i, order: texts[name, i, order]


def count(cot: Callable, strategies: dict[str, Strategy], instances: list[Instance], templates: dict) -> dict:
    judged = PromptJudge(answering(cot), strategies, templates).run(instances)
    conflicts = sum(len(r["stages"]) == 2 for r in judged.records if r["strategy"] == "Swap")
    per_instance = judged.calls.per_instance(len(instances))
    return {
        "conflicts": conflicts / len(instances),
        **per_instance,
        "saved": 1 - per_instance["asked"] / per_instance["naive"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-shared-calls.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config={})
    strategies = {
        name: one for name, one in all_strategies().items()
        if not one.is_rating and one.stages[0].decide_by == "text"
    }  # fmt: skip
    templates = read_templates(prompt_folder("auto")[1], strategies)
    cases: dict[str, Callable] = {
        "no conflict": lambda name, i, order: VERDICT.format("a" if order == "given" else "b"),
        "nothing but conflicts": lambda name, i, order: VERDICT.format("a"),
    }
    try:
        names = [name for name in RELEASED if name.startswith("LLMBar/")]
        sets = load_sets(data_folder(names), names)
        cases |= {path.name.removesuffix(".jsonl.gz"): recorded_cot(path) for path in recorded_files()}
    except hub.NotAvailable:
        sets = load_sets(HOUSE_FOLDER, list(HOUSE))
    instances = [one for some in sets.values() for one in some]
    rows = {name: count(cot, strategies, instances, templates) for name, cot in cases.items()}
    table = Table("judge", "conflicts", "each strategy alone", "shared", "saved",
                  title=f"calls per instance, {len(strategies)} strategies, {len(instances)} instances")  # fmt: skip
    for name, row in rows.items():
        table.add_row(
            name, f"{row['conflicts']:.1%}", f"{row['naive']:.2f}", f"{row['asked']:.2f}", f"{row['saved']:.1%}"
        )
    console = Console()
    console.print(table)
    record = {"benchmark": "shared_calls", "strategies": list(strategies), "instances": len(instances), "results": rows,
              "provenance": watch.record()}  # fmt: skip
    write_record(record, __file__, "cpu-shared-calls", options.out)


if __name__ == "__main__":
    main()
