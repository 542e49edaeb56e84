"""The plan of the paper's scale: an experiment for every row, costs by their formulas, nothing downloaded."""

import json

import pytest

from litsearch import plan as planning
from litsearch.keys import KEYS
from litsearch.plan import (
    CONFIGS,
    ENCODERS,
    PAPERS,
    QUESTIONS,
    READERS,
    Measured,
    make_plan,
    measured,
    prompt_tokens,
    stage_of,
)
from shared import InputError
from shared.paper import load_paper
from shared.plan import experiment_files, runs_of

RETRIEVERS = ("bm25", "gtr", "instructor", "e5", "grit")
QWEN = "Qwen/Qwen3-30B-A3B-Instruct-2507"


@pytest.fixture(autouse=True)
def sheet_figures(monkeypatch, request):
    """Without the mirror's texts, whatever is on this machine: 190 tokens a key, 275 a paper of a prompt."""
    if request.node.get_closest_marker("mirror") is None:
        monkeypatch.setattr(planning, "measured", lambda: Measured("figures", None, 275.0, 1e5))


@pytest.fixture
def plans(config):
    """plans("experiments=[...]") by experiment and model."""

    def make(*overrides: str):
        return {(plan.experiment, plan.model): plan for plan in make_plan(config(*overrides, name="plan"))[0]}

    return make


def test_every_row_of_the_tables_has_an_experiment():
    files = set(experiment_files(CONFIGS))
    for table, suffix in (("table3", ""), ("table5", "_full"), ("table8", "")):
        rows = load_paper("litsearch").tables[table]["rows"]
        assert {f"{row}{suffix}" for row in rows} <= files
    assert {f"{retriever}{suffix}" for retriever in RETRIEVERS for suffix in ("", "_full")} <= files


@pytest.mark.parametrize("name", experiment_files(CONFIGS))
def test_experiments_are_the_papers_settings(name):
    stage = stage_of(name)
    (cfg,) = runs_of(CONFIGS, name, config_name={"retrieve": "config"}.get(stage, stage))
    assert (cfg.experiment, cfg.scale, cfg.data.source) == (name, "paper", "release")
    if stage == "retrieve":
        retriever, _, key = name.partition("_")
        assert cfg.retriever.name == retriever and cfg.top_k == 200
        assert cfg.key.name == ("full_paper" if key else "title_abstract") and cfg.key.name in KEYS
        assert cfg.index is None
    elif stage == "onehop":
        assert (cfg.cutoff_count, cfg.total_count) == (50, 200)
    else:
        assert cfg.max_k == (200 if name.endswith("onehop") else 100)
        assert cfg.llm.generator.model == "gpt-4o-2024-05-13" and cfg.mode == "single"


def test_dense_indexing_follows_the_formula(plans):
    found = plans("experiments=[grit,grit_full,e5,e5_full,gtr]", "utilisation=0.5")
    grit, full = found["grit", "GritLM-7B"], found["grit_full", "GritLM-7B"]
    assert grit.tokens == PAPERS * 190 and full.tokens == PAPERS * 2048
    assert full.flop == 2 * ENCODERS["GritLM-7B"].blocks * full.tokens
    assert full.hours == pytest.approx(full.flop / (989e12 * 0.5) / 3600)
    assert grit.index == PAPERS * 4096 * 2
    assert found["e5_full", "e5-large-v2"].tokens == PAPERS * 512
    # The same model size and texts, in float32 in place of bfloat16.
    e5, gtr = found["e5", "e5-large-v2"], found["gtr", "gtr-t5-large"]
    assert gtr.hours / e5.hours == pytest.approx((0.5 / 0.068) * (302.0 / 302.3))


def test_the_sheets_arithmetic_comes_out(plans):
    found = plans("experiments=[grit,grit_full,grit_rerank]", "utilisation=0.4")
    assert found["grit", "GritLM-7B"].flop == pytest.approx(1.8e17, rel=0.1)
    assert found["grit_full", "GritLM-7B"].flop == pytest.approx(1.9e18, rel=0.1)
    assert 15e6 < found["grit_rerank", "gpt-4o-2024-05-13"].tokens < 18e6


def test_an_api_is_paid_by_the_token(plans):
    found = plans("experiments=[bm25_rerank,bm25_onehop]", "tokens_per_minute=1000000")
    plan, twice = found["bm25_rerank", "gpt-4o-2024-05-13"], found["bm25_onehop", "gpt-4o-2024-05-13"]
    assert plan.tokens == QUESTIONS * 100 * 275 and twice.tokens == 2 * plan.tokens
    assert plan.money == pytest.approx((plan.tokens * 5e-6, plan.tokens * 5e-6 + plan.answer_tokens * 15e-6))
    assert plan.hours == pytest.approx((plan.tokens + plan.answer_tokens) / 6e7)
    cheap = plans("experiments=[bm25_rerank]", "price={prompt: 1, completion: 0}")["bm25_rerank", "gpt-4o-2024-05-13"]
    assert cheap.money == pytest.approx((plan.tokens / 1e6, plan.tokens / 1e6))


def test_an_open_model_reads_prompts_with_their_attention_and_as_many_as_fit(plans):
    model = READERS[QWEN]
    plan = plans("experiments=[bm25_onehop]", "at_once=4")["bm25_onehop", QWEN]
    prompt = 200 * 275
    assert plan.flop == QUESTIONS * (2 * model.active * prompt + 2 * 48 * 32 * 128 * prompt**2)
    assert plan.memory == 2 * model.parameters + 4 * model.kv_bytes(prompt + 800)
    many = plans("experiments=[bm25_onehop]", "at_once=1000")["bm25_onehop", QWEN]
    assert plan.memory < many.memory < 0.9 * 141e9 and many.hours < plan.hours


def test_a_gpu_that_is_too_small_is_told(config):
    lacks = make_plan(config("gpu=L4", "experiments=[bm25_rerank]", name="plan"))[2]
    assert any(lack.startswith(f"memory: {QWEN}") and "one L4" in lack for lack in lacks)


def test_what_is_missing_is_named(config, monkeypatch):
    monkeypatch.setenv("REPRO_MIRROR", "")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, missing, lacks = make_plan(config("experiments=[grit,grit_rerank]", name="plan"))
    assert set(missing) == {"query", "corpus_clean", "GritLM-7B", "Qwen3-30B-A3B-Instruct-2507"}
    assert "$OPENAI_API_KEY is not set" in lacks


def test_the_plan_is_printed_and_written(config, tmp_path, capsys):
    chosen = "experiments=[grit_onehop,grit_expand,grit,instructor_full]"
    planning.main.__wrapped__(config(f"output_dir={tmp_path}", chosen, name="plan"))
    out = capsys.readouterr().out
    assert "python -m litsearch.retrieve experiment=instructor_full" in out
    assert out.index("experiment=grit\n") < out.index("experiment=grit_expand") < out.index("experiment=grit_onehop")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert len(written["estimates"]) == 5  # two models for a reranking
    assert written["assumptions"]["price_date"] == "2024-05-13"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu=H1000", "gpu=H1000 is not listed"),
        ("experiments=[bm26]", "there is no bm26"),
        ("utilisation=0", "utilisation=0: give a fraction"),
        ("at_once=0", "at_once=0: give a whole number"),
        ("llms=[gpt5]", "there is no configs/llm/gpt5.yaml"),
        ("output=xml", "output=xml: give table or json"),
    ],
)
def test_settings_that_make_no_sense_are_named(config, override, message):
    overrides = [] if override.startswith("experiments") else ["experiments=[bm25,bm25_rerank]"]
    with pytest.raises(InputError, match=message):
        planning.main.__wrapped__(config(*overrides, override, name="plan"))


def test_prompts_are_counted_with_what_surrounds_the_papers():
    ten = prompt_tokens(["Which papers?"], ["a" * 450] * 10)
    twenty = prompt_tokens(["Which papers?"], ["a" * 450] * 20)
    assert 10 * 100 < twenty - ten < 10 * 125 and ten > 1100


@pytest.mark.mirror
def test_real_texts_are_measured():
    measured.cache_clear()
    found = measured()
    assert found.source == "400 real papers" and found.words_per_second > 0
    assert 170 < found.key_tokens("title_abstract", 512) < 270  # 134 words in the whole corpus
    assert found.key_tokens("title_abstract", 100) < 100 and found.key_tokens("full_paper", 2048) == 2048
    assert 250 < found.prompt_tokens < 300  # the release: 25,000 to 30,000 for a hundred papers
