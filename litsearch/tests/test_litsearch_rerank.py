"""Listwise reranking from the command: runs in, runs out, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from litsearch.rerank.__main__ import rerank
from litsearch.runs import read_run, write_run
from shared import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_oracle_puts_answers_first_and_nothing_is_lost(run_overrides, config, queries):
    out = rerank(config(*run_overrides, "llm=oracle", name="rerank"), Console(quiet=True))
    run = read_run(out)
    assert out.name == "small.title_abstract.bm25.rerank-oracle.jsonl"
    assert run.retrieved == [[30, 10, 20, 40, 50, 60], [20, 10, 30, 40, 50, 60], [40, 60, 50], [20]]
    assert [record.extra["pre_reranked"] for record in run] == [
        [20, 30, 10, 40, 50, 60], [10, 30, 40, 50, 60, 20], [60, 50, 40], [20],
    ]  # fmt: skip
    assert run.system == "bm25+rerank:oracle"
    assert run.metadata["rerank"]["max_k"] == 100
    assert json.loads(out.with_name(out.stem + ".stats.json").read_text())["questions"] == 4


def test_identity_changes_nothing_and_noise_is_a_function_of_its_seed(run_overrides, config, tmp_path):
    def made(llm: str, *more: str):
        changed = [f"output_dir={tmp_path / '-'.join([llm, *more]).replace('=', '')}", f"llm={llm}", *more]
        return read_run(rerank(config(*run_overrides, *changed, name="rerank"), Console(quiet=True))).retrieved

    identity = made("identity")
    assert identity[0] == [20, 30, 10, 40, 50, 60]
    noisy = made("noisy", "llm.generator.noise=5")
    assert noisy == made("noisy", "llm.generator.noise=5.0")
    assert noisy != made("noisy", "llm.generator.noise=5", "llm.generator.seed=1")
    assert all(sorted(a) == sorted(b) for a, b in zip(noisy, identity, strict=True))


def test_only_the_first_max_k_are_reranked_and_the_rest_is_dropped_unless_kept(run_overrides, config, tmp_path):
    cut = rerank(config(*run_overrides, "llm=oracle", "max_k=3", name="rerank"), Console(quiet=True))
    assert read_run(cut).retrieved == [[30, 10, 20], [10, 30, 40], [40, 60, 50], [20]]
    kept = [*run_overrides, "llm=oracle", "max_k=3", "keep_rest=true", f"output_dir={tmp_path / 'kept'}"]
    assert read_run(rerank(config(*kept, name="rerank"), Console(quiet=True))).retrieved[0] == [30, 10, 20, 40, 50, 60]


def test_results_of_another_input_are_neither_reused_nor_overwritten(run_overrides, config, run_file):
    rerank(config(*run_overrides, "llm=oracle", name="rerank"), Console(quiet=True))
    other = read_run(run_file)
    other.records[0].retrieved.reverse()
    write_run(run_file, other)
    with pytest.raises(InputError, match="was made from another run"):
        rerank(config(*run_overrides, "llm=oracle", name="rerank"), Console(quiet=True))


def test_a_dry_run_counts_and_asks_nothing_and_needs_no_key(run_overrides, config, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert rerank(config(*run_overrides, "llm=gpt4o", "dry_run=true", name="rerank")) is None
    printed = capsys.readouterr().out
    assert "USD" in printed
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="OPENAI_API_KEY holds no key"):
        rerank(config(*run_overrides, "llm=gpt4o", name="rerank"), Console(quiet=True))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["llm=vllm"], "model is missing"),
        (["llm=openai"], "model is missing"),
        (["llm=oracle", "max_k=0"], "max_k=0"),
        (["llm=oracle", "run=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["llm=oracle", "key=paragraphs"], "key='paragraphs'"),
        (["llm=oracle", "parser=exact"], "parser='exact'"),
        (["llm=oracle", "out=answers.txt"], "must end in .jsonl"),
        (["llm=recorded", "recorded=nowhere.jsonl"], "is not a file"),
        (["llm=noisy", "llm.generator.noise=-1"], "llm.noise=-1"),
    ],
)
def test_what_cannot_be_reranked_is_refused(run_overrides, config, more, said):
    with pytest.raises(InputError, match=said):
        rerank(config(*run_overrides, *more, name="rerank"), Console(quiet=True))


def test_the_run_itself_is_never_the_output(run_overrides, config, run_file):
    with pytest.raises(InputError, match="is the run that is reranked"):
        rerank(config(*run_overrides, "llm=oracle", f"out={run_file}", name="rerank"), Console(quiet=True))


def test_every_llm_configuration_composes(config):
    for llm in ("identity", "oracle", "noisy", "vllm", "vllm_qwen", "openai", "gpt4o", "transformers", "recorded"):
        assert config("run=x", f"llm={llm}", name="rerank").llm.generator.backend


def test_recorded_replies_give_the_same_run(run_overrides, config, tmp_path):
    first = rerank(config(*run_overrides, "llm=noisy", name="rerank"), Console(quiet=True))
    journal = first.with_name(first.stem + ".answers.jsonl")
    replay = [*run_overrides, "llm=recorded", f"recorded={journal}", f"output_dir={tmp_path / 'replay'}"]
    again = rerank(config(*replay, name="rerank"), Console(quiet=True))
    assert read_run(again).retrieved == read_run(first).retrieved


def test_from_the_shell_bad_input_ends_with_status_2(run_overrides):
    command = [sys.executable, "-m", "litsearch.rerank", *run_overrides, "llm=oracle", "max_k=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: max_k=0: give a whole number of at least 1"


# --------------------------------------------------------------------------------------------------------- real models


def test_a_real_model_ranks_and_its_context_decides_how_many_papers_it_is_shown(config, run_overrides, tmp_path):
    """The whole path on transformers: chat template, lengths known beforehand, replies of the right form."""
    settings = [*run_overrides, "llm=transformers", "model=tiny", "max_tokens=60", "llm.generator.dtype=float32"]
    out = rerank(config(*settings, name="rerank"), Console(quiet=True))
    stats = read_run(out).metadata["rerank"]
    assert (stats["questions"], stats["replies"], stats["shrunk"], stats["unparsable"]) == (4, 3, 0, 0)
    model = tmp_path / "out" / "tiny_model"
    narrow = [*settings, f"model={model}", "llm.generator.max_model_len=500", f"output_dir={tmp_path / 'narrow'}"]
    stats = read_run(rerank(config(*narrow, name="rerank"), Console(quiet=True))).metadata["rerank"]
    assert stats["shrunk"] + stats["too_long_at_any_size"] >= 1


@pytest.mark.vllm
def test_vllm_ranks_as_transformers_does(config, run_overrides, tmp_path):
    same = [*run_overrides, "max_tokens=60", "llm.generator.dtype=float32"]
    slow = rerank(config(*same, "llm=transformers", "model=tiny", name="rerank"), Console(quiet=True))
    model = tmp_path / "out" / "tiny_model"
    engine = ["llm.generator.kv_cache_gib=0.5", "llm.generator.enforce_eager=true", "llm.generator.max_model_len=4096"]
    fast_settings = [*same, "llm=vllm", f"model={model}", *engine, f"output_dir={tmp_path / 'vllm'}"]
    fast = rerank(config(*fast_settings, name="rerank"), Console(quiet=True))
    assert read_run(fast).retrieved == read_run(slow).retrieved
    assert read_run(fast).metadata["rerank"]["replies"] == 3
