"""A judge on vLLM against the release's way, `generate` with one prompt at a time: same texts, and how much faster.

    python llmbar/bench/batched_generation.py
    python llmbar/bench/batched_generation.py --instances 10 --rounds 2 --cases random:cot

fp32 on both sides, greedy, the strategy's own token limits, both orders and all stages. Start-up of either side is
excluded. Each round has instances of its own, because vLLM would find the prompts of an earlier round in its prefix
cache; the first round warms up and is not counted. Two models of 100,000 parameters:

    random   writes up to the limit (Vanilla: 50 tokens, CoT: 300), as real judges do when they explain: time goes into
             decoding, which is what batching is for
    judge    `llmbar.tiny_judge`: answers in its form with some five tokens, so nearly all time goes into reading
             prompts, where one prompt at a time already fills a CPU

Texts are compared without trailing U+FFFD: the two libraries differ in what they show of an answer that is cut in the
middle of a character.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmbar.data import HOUSE, HOUSE_FOLDER, RELEASED, Instance, load_sets
from llmbar.judges import Judged, PromptJudge
from llmbar.locations import data_folder, prompt_folder
from llmbar.prompts import read_templates
from llmbar.strategies import Strategy, all_strategies
from llmbar.tiny_judge import tiny_judge
from shared import InputError, hub
from shared.bench import write_record
from shared.generation import Completion, Request, make_generator
from shared.generation.tiny_model import write_tiny_llama
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"vanilla": "Vanilla", "cot": "CoT", "metrics_reference": "Metrics_Reference", "swap_cot": "Swap_CoT"}


def instances() -> tuple[list[Instance], str]:
    """LLMBar's 419 instances, or ours."""
    try:
        names = [name for name in RELEASED if name.startswith("LLMBar/")]
        sets, source = load_sets(data_folder(names), names), "LLMBar"
    except hub.NotAvailable:
        sets, source = load_sets(HOUSE_FOLDER, list(HOUSE)), "instances written for this project"
    return [one for some in sets.values() for one in some], source


class OneByOne:
    """`model.generate` for one prompt after the other, as the release runs local models."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        answers = []
        for request in requests:
            text = self.tokenizer.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
            prompt = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            out = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=request.max_tokens, do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
            new = out[0, prompt.shape[1] :]
            finish = "stop" if new[-1] == self.tokenizer.eos_token_id else "length"
            answers.append(Completion(request.id, self.tokenizer.decode(new, skip_special_tokens=True), finish))
        return answers


def texts_of(judged: Judged) -> list[str]:
    """Every answer of a run, in order, in the form in which they are compared."""
    return [
        text.rstrip("\ufffd")
        for record in judged.records
        for pair in (*record.get("aux", ()), *(pair for stage in record["stages"] for pair in stage["out"]))
        for text in pair[:1]
    ]


def measure(ways: dict[str, Callable], strategy: Strategy, parts: list[list[Instance]], templates: dict) -> dict:
    """Seconds per counted part and way, their medians, tokens a round, texts compared and texts that differ."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = {"prompt_tokens": 0, "answer_tokens": 0}
    compared = differ = 0

    def counting(requests: Sequence[Request]) -> list[Completion]:
        answers = ways["vllm"](requests)
        tokens["prompt_tokens"] += sum(answer.prompt_tokens for answer in answers)
        tokens["answer_tokens"] += sum(answer.completion_tokens for answer in answers)
        return answers

    for round_number, part in enumerate(parts):
        texts = {}
        for name, ask in {**ways, "vllm": counting}.items():
            judge = PromptJudge(ask, {strategy.name: strategy}, templates)
            start = time.perf_counter()
            judged = judge.run(part)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
            texts[name] = texts_of(judged)
        first, second = texts.values()
        compared += len(first)
        differ += sum(a != b for a, b in zip(first, second, strict=True))
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    counts = {name: total / len(parts) for name, total in tokens.items()} | {"texts": compared, "differ": differ}
    return {"seconds": seconds, "median": median, "ratio": median["one by one"] / median["vllm"], **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=50, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="one more is the warm-up")
    cases = [f"{model}:{strategy}" for model in ("random", "judge") for strategy in NAMES]
    parser.add_argument("--cases", nargs="+", choices=cases, default=["random:vanilla", "judge:vanilla"])
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-batched-generation.json")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    watch = Watch(ROOT, config={k: v for k, v in vars(options).items() if k != "out"})
    strategies = all_strategies()
    templates = read_templates(prompt_folder("auto")[1], strategies)
    found, source = instances()
    rounds = options.rounds + 1
    if len(found) < rounds * options.instances:
        raise InputError(f"--instances {options.instances}: {rounds} rounds need more than the {len(found)} there are")
    parts = [found[k :: len(found) // options.instances][: options.instances] for k in range(rounds)]
    console, rows = Console(), {}
    columns = ("model", "strategy", "prompt tokens", "answer tokens", "one by one", "vLLM", "times", "texts", "differ")
    table = Table(*columns, title=f"{options.instances} instances a round ({source})")
    with tempfile.TemporaryDirectory() as folder:
        for kind in dict.fromkeys(case.split(":")[0] for case in options.cases):
            model = Path(folder) / kind
            if kind == "judge":
                tiny_judge(model)
            else:
                write_tiny_llama(model, [template.text for template in templates.values()])
            chosen = [NAMES[case.split(":")[1]] for case in options.cases if case.startswith(f"{kind}:")]
            engine = {"backend": "vllm", "model": str(model), "dtype": "float32", "kv_cache_gib": 1}
            with make_generator(engine) as generator:
                ways = {"one by one": OneByOne(model), "vllm": partial(generator.generate, progress=False)}
                for name in chosen:
                    rows[f"{kind}:{name}"] = row = measure(ways, strategies[name], parts, templates)
                    table.add_row(kind, name, *(f"{row[key]:,.0f}" for key in ("prompt_tokens", "answer_tokens")),
                                  *(f"{row['median'][way]:.2f} s" for way in ways), f"{row['ratio']:.1f}",
                                  str(row["texts"]), str(row["differ"]))  # fmt: skip
    console.print(table)
    record = {"benchmark": "batched_generation", "data": source, "instances": options.instances, "results": rows,
              "threads": torch.get_num_threads(), "provenance": watch.record()}  # fmt: skip
    write_record(record, __file__, "cpu-batched-generation", options.out)


if __name__ == "__main__":
    main()
