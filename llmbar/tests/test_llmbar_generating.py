"""Judging with real back ends: the tiny model, kills and resumes, a server that fails, vLLM against transformers."""

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmbar.data import HOUSE_FOLDER, load_file
from llmbar.evaluate import evaluate
from llmbar.generating import by_family, planned_requests
from llmbar.judges import PromptJudge
from llmbar.strategies import all_strategies
from llmbar.tiny_judge import tiny_judge
from shared import InputError
from shared.generation.cost import dry_run
from shared.generation.prompts import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ["data=house", "prompts=house"]
# A small engine that starts soon, in the precision in which texts can be compared.
VLLM = ["judge.generator.dtype=float32", "judge.generator.kv_cache_gib=1", "judge.generator.enforce_eager=true"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("models") / "tiny")


def lines(folder: Path, name: str = "judgements.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_tiny_model_knows_the_forms_and_no_truth(config, tiny, tmp_path):
    """All released strategies end in answers that parse, conflicts reach the second stage, and calls are shared."""
    overrides = ["judge=transformers", f"model={tiny}", "data.limit=2", "strategy=[all,vanilla_logprob]", *HOUSE]
    result = evaluate(config(*overrides), tmp_path)
    answers = sum(2 * cell["n"] for cell in result["cells"])
    assert sum(cell["unparsed"] + cell["unparsed_ratings"] for cell in result["cells"]) <= 0.1 * answers
    assert {len(record["stages"]) for record in lines(tmp_path) if record["strategy"] == "Swap"} & {2}
    calls = result["calls"]
    assert calls["instances"] == 10
    assert calls["asked"] < calls["naive"]
    assert result["second_stage_prompts_checked"] > 0
    assert result["prompts"] == "house"


def test_two_kills_and_a_restart_end_like_an_uninterrupted_run(config, tiny, tmp_path):
    overrides = ["judge=transformers", f"model={tiny}", "data.limit=4", "strategy=[cot,swap,metrics_reference]", *HOUSE,
                 "judge.generator.batch_tokens=1500"]  # fmt: skip
    whole = evaluate(config(*overrides), tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "llmbar.evaluate", *overrides, f"output_dir={folder}"]
    journal = folder / "answers.jsonl"
    for wanted in (8, 25):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (journal.exists() and len(journal.read_bytes().splitlines()) > wanted):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "it never got there"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "judgements.jsonl").exists()
    kept = len(lines(folder, "answers.jsonl")) - 1
    result = evaluate(config(*overrides), folder)
    assert (folder / "judgements.jsonl").read_text() == (tmp_path / "whole" / "judgements.jsonl").read_text()
    assert result["cells"] == whole["cells"]
    keys = [line["key"] for line in lines(folder, "answers.jsonl")[1:]]
    assert len(keys) == len(set(keys)), "a question was asked twice"
    assert kept >= 25


class FailingServer:
    """A chat completion server that answers by a rule and, while `broken`, refuses some items with status 400."""

    def __init__(self):
        self.broken, self.asked = True, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                outer.asked.append(text)
                if outer.broken and "Australia" in text:
                    return self._send(400, {"error": {"message": "cannot read this item"}})
                if "French" in text:
                    message = {"role": "assistant", "content": None}
                    choice = {"index": 0, "message": message, "finish_reason": "content_filter"}
                else:
                    message = {"role": "assistant", "content": "Output (b)"}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                          "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}  # fmt: skip
                return self._send(200, answer)

            def _send(self, status, content):
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    failing = FailingServer()
    yield failing
    failing.close()


def test_failed_items_are_named_and_only_they_are_asked_again(config, server, tmp_path):
    overrides = ["judge=openai", "model=m", f"base_url={server.base_url}", "strategy=vanilla",
                 "data.sets=[House/Natural]", *HOUSE]  # fmt: skip
    with pytest.raises(InputError) as error:
        evaluate(config(*overrides), tmp_path)
    assert "1 of 20 judgements have no answer, first House/Natural[13] Vanilla" in str(error.value)
    assert "the same command again asks only for what is missing" in str(error.value)
    partial = evaluate(config(*overrides, "allow_partial=true"), tmp_path)
    assert (partial["failed"], partial["cells"][0]["n"], partial["cells"][0]["missing"]) == (1, 19, 1)
    server.broken, server.asked = False, []
    whole = evaluate(config(*overrides), tmp_path)
    assert len(server.asked) == 2
    assert all("Australia" in text for text in server.asked)
    assert (whole["cells"][0]["n"], whole["failed"]) == (20, 0)


def test_a_content_filter_is_recorded_as_an_empty_answer_with_its_reason(config, server, tmp_path):
    server.broken = False
    overrides = [
        "judge=openai",
        "model=m",
        f"base_url={server.base_url}",
        "strategy=vanilla",
        "data.sets=[House/Natural]",
    ]
    result = evaluate(config(*overrides, *HOUSE), tmp_path)
    (cell,) = result["cells"]
    assert cell["filtered"] == cell["unparsed"] == 2
    record = next(record for record in lines(tmp_path) if record["i"] == 5)
    assert record["stages"][0]["out"] == [["", "content_filter"]] * 2


def test_a_journal_of_another_model_is_refused(config, tiny, server, tmp_path):
    server.broken = False
    same = ["strategy=vanilla", "data.limit=1", *HOUSE]
    evaluate(config("judge=openai", "model=m", f"base_url={server.base_url}", *same), tmp_path)
    with pytest.raises(InputError, match="belongs to another run"):
        evaluate(config("judge=transformers", f"model={tiny}", *same), tmp_path)


def test_a_prompt_longer_than_the_context_names_the_instance(config, tiny, tmp_path):
    overrides = ["judge=transformers", f"model={tiny}", "judge.generator.max_model_len=300", "strategy=vanilla", *HOUSE]
    with pytest.raises(InputError, match=r"item 'House/.*\[\d+\] comparison/Vanilla.txt .* exceed the 300 positions"):
        evaluate(config(*overrides), tmp_path)
    assert not (tmp_path / "judgements.jsonl").exists()


def test_logit_biases_need_a_tokenizer_that_can_be_had(config, server, tmp_path):
    overrides = ["judge=openai", "model=mystery", f"base_url={server.base_url}", "decoding=released_api", *HOUSE]
    with pytest.raises(InputError, match=r"tokenizer of 'mystery' is not known; set decoding\.tokenizer="):
        evaluate(config(*overrides, "data.limit=1"), tmp_path)


def test_a_dry_run_counts_what_could_be_asked_and_asks_nothing(config, tiny, server, tmp_path, house, house_templates,
                                                               strategies):  # fmt: skip
    overrides = ["judge=openai", "model=m", f"base_url={server.base_url}", f"judge.generator.tokenizer={tiny}",
                 "judge.generator.price={prompt: 10, completion: 30}", "data.limit=1", "strategy=comparison", *HOUSE,
                 "dry_run=true"]  # fmt: skip
    assert evaluate(config(*overrides), tmp_path) is None
    assert server.asked == []
    ten = {n: s for n, s in strategies.items() if not s.is_rating and s.stages[0].decide_by == "text"}
    instances = [some[0] for some in house.values()]

    def judge(ask, chosen):
        return PromptJudge(ask, chosen, house_templates)

    cost = dry_run(planned_requests(judge, [(ten, instances)]), load_tokenizer(str(tiny)))
    assert cost.prompts == 22 * 5  # the dearest case: every CoT a conflict
    assert cost.max_completion_tokens > 0


def test_a_family_of_sets_may_be_judged_with_fewer_strategies(config, tiny, tmp_path):
    own = tmp_path / "own.json"
    own.write_text((HOUSE_FOLDER / "House/Natural/dataset.json").read_text())
    sets = {"House/Natural": load_file(own, "House/Natural")[:2], "own": load_file(own, "own")[:3]}
    strategies = {name: one for name, one in all_strategies().items() if name in ("Vanilla", "CoT")}
    everything, vanilla_only = by_family(strategies, sets, {"own": ["Vanilla", "Swap"]})
    assert (list(everything[0]), len(everything[1])) == (list(strategies), 2)
    assert (list(vanilla_only[0]), len(vanilla_only[1])) == (["Vanilla"], 3)
    for limits, message in (
        ({"Elsewhere": ["Vanilla"]}, "data.strategies.Elsewhere: no set of this family"),
        ({"own": ["Vanila"]}, "data.strategies.own: strategy Vanila is unknown"),
        ({"own": [], "House": []}, "leaves nothing of strategy"),
    ):
        with pytest.raises(InputError, match=message):
            by_family(strategies, sets, limits)
    overrides = ["judge=transformers", f"model={tiny}", "data.limit=1", "strategy=[vanilla,cot]", *HOUSE,
                 "+data.strategies={House: [Vanilla]}"]  # fmt: skip
    result = evaluate(config(*overrides), tmp_path / "run")
    assert {cell["strategy"] for cell in result["cells"]} == {"Vanilla"}
    assert result["calls"] == {"naive": 10, "asked": 10, "instances": 5}


@pytest.mark.vllm
def test_vllm_judges_as_transformers_does(config, tiny, tmp_path):
    """The whole path on the real engine: the same judgements, text for text, in fp32."""
    same = [f"model={tiny}", "data.limit=2", "strategy=[all,vanilla_logprob]", *HOUSE]
    fast = evaluate(config("judge=vllm", *VLLM, *same), tmp_path / "vllm")
    slow = evaluate(config("judge=transformers", *same), tmp_path / "transformers")
    vllm_lines, slow_lines = lines(tmp_path / "vllm"), lines(tmp_path / "transformers")
    for record in (*vllm_lines, *slow_lines):
        record.pop("logprobs", None)  # equal to five digits, not to the last
    assert vllm_lines == slow_lines
    assert fast["calls"] == slow["calls"]
