"""The laptop reproduction in miniature: every part on a few papers, killed and taken up again, refused where wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from litsearch import findings, reproduce
from litsearch.laptop import Bench, make_plan, onehop_bench
from litsearch.locations import open_benchmark
from litsearch.metrics import recall_at_k
from litsearch.part_work import ENCODER, compose
from litsearch.parts import digests, results_of, run_path
from litsearch.rerank.tiny_ranker import tiny_ranker
from litsearch.runs import Run, RunRecord, read_run
from litsearch.scoring import metric_functions, per_question, question_groups
from shared import InputError
from shared.paper import load_paper
from shared.results import load_result

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)
TOPICS = ("parsing", "translation", "retrieval", "dialogue", "speech", "summaries")
SMALL = [
    "retrievers=[random,bm25,tfidf]",
    "hybrid=[bm25,tfidf]",
    "ceilings=[random,bm25]",
    "onehop.cutoff_count=5",
    "onehop.total_count=15",
    "rerank.max_k=20",
    "prompting.run=false",
    "resamples=50",
    "top_k=30",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """48 papers of six topics that cite within their topic, and 24 questions with two words of their answer."""
    folder, draw = tmp_path_factory.mktemp("papers"), random.Random(0)
    papers, questions = [], []
    for i in range(48):
        topic, own = TOPICS[i % 6], [f"word{draw.randrange(300)}" for _ in range(12)]
        cited = [j for j in range(48) if j % 6 == i % 6 and j != i][:4]
        text = {"title": f"On {topic} {own[0]}", "abstract": " ".join([topic, *own]), "citations": cited}
        papers.append({"corpusid": 100 + i, **text, "full_paper": ""} | {"citations": [100 + j for j in cited]})
        if i % 2 == 0:
            asked = " ".join([*draw.sample(own, 2), f"other{draw.randrange(9)}"])
            source = ("inline_acl", "inline_nonacl", "manual_acl", "manual_iclr")[i // 2 % 4]
            broad = i % 3 == 0
            gold = [100 + i, 100 + (i + 6) % 48] if broad else [100 + i]
            about = {"query": f"Who studies {asked}?", "specificity": int(not broad), "quality": 2}
            questions.append({"query_set": source, **about, "corpusids": gold})
    for name, records in (("papers", papers), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [f"data.corpus={folder / 'papers.jsonl'}", f"data.queries={folder / 'questions.jsonl'}"]


def options(files, folder, *overrides):
    return ["data=files", *files, f"output_dir={folder}", *SMALL, *overrides]


def run_here(files, folder, *overrides) -> dict:
    """Reproduce in this process; what results.json holds."""
    cfg = compose("reproduce", options(files, folder, "processes=1", *overrides))
    return load_result(reproduce.reproduce(cfg, QUIET))


@pytest.fixture(scope="module")
def miniature(files, tmp_path_factory):
    """(folder, results) of a whole reproduction; tests that change it use a copy of the options, not the folder."""
    folder = tmp_path_factory.mktemp("reproduce") / "out"
    return folder, run_here(files, folder)


def test_every_part_runs_and_is_scored_in_the_papers_order(miniature):
    folder, result = miniature
    metrics = result["metrics"]
    shown = ["random", "bm25", "tfidf", "hybrid", "bm25-identity", "bm25-noisy", "bm25-oracle"]
    assert list(metrics["runs"]) == shown and metrics["parts"]["kept"] == []
    assert set(metrics["parts"]["performed"]) == set(metrics["seconds"]) > set(shown)
    header = (folder / "table.md").read_text().splitlines()[4]
    wanted = [cell.key.replace(".", " ").split() for cell in load_paper("litsearch").cells("table3")[:9]]
    cells = [cell.strip() for cell in header.split("|")[2:-1]]
    assert [cell.split()[-1] for cell in cells] == [metric for _, metric in wanted]
    rows = [row["run"] for row in json.loads((folder / "table.json").read_text())]
    assert [row for row in rows if "(" not in row] == shown and "bm25 (difference)" in rows


def test_pipeline_checks_hold_by_themselves(miniature):
    _, result = miniature
    metrics, claims = result["metrics"], {claim["id"]: claim["verdict"] for claim in result["claims"]}
    runs = metrics["runs"]
    assert runs["bm25-identity"]["all"]["R@5"] == runs["bm25"]["all"]["R@5"]
    assert runs["bm25-oracle"]["all"]["R@5"] == pytest.approx(runs["bm25"]["all"]["R@20"])  # max_k=20
    assert claims["identity_changes_nothing"] == "holds"
    assert claims["onehop_raises_the_ceiling"] == "holds"
    assert claims["bm25_reference"].startswith("not testable") and claims["dense_above_bm25"].startswith("not testable")
    expanded = metrics["onehop"]["first_stages"]["bm25"]
    assert metrics["onehop"]["data"] == "files" and expanded["added"] > 0 and expanded["candidates"] <= 15
    assert {test["second"] for test in metrics["paired"]} == {"bm25"}
    assert all(test["p_holm"] >= test["p_randomization"] for test in metrics["paired"])


def test_figures_are_drawn_and_listed(miniature):
    folder, result = miniature
    names = {plot["name"] for plot in result["plots"]}
    wanted = {"systems", "recall_curves", "gold_ranks", "candidate_ceilings", "onehop_ceilings", "reranker_gains"}
    assert names == wanted | {"overlap_against_recall"}
    for plot in result["plots"]:
        pixels = np.asarray(Image.open(folder / plot["file"]).convert("L"))
        assert pixels.shape[0] > 300 and pixels.std() > 5 and plot["caption"]


def test_a_second_call_performs_nothing_and_says_the_same(miniature, files):
    folder, first = miniature
    again = run_here(files, folder)
    assert again["metrics"]["parts"]["performed"] == []
    for name in ("runs", "paired", "ceilings", "onehop", "gains", "overlap", "seconds"):
        assert again["metrics"][name] == first["metrics"][name]


def test_other_options_make_anew_what_they_change(files, tmp_path):
    few = ["retrievers=[bm25]", "hybrid=[]", "ceilings=[bm25]", "onehop.first=[bm25]", "rerank.flavours=[oracle,noisy]"]
    run_here(files, tmp_path / "out", *few)
    kept = (tmp_path / "out/parts/bm25/results.json").read_bytes()
    changed = run_here(files, tmp_path / "out", *few, "rerank.max_k=3")["metrics"]
    assert sorted(changed["parts"]["performed"]) == ["bm25-noisy", "bm25-oracle"]
    assert (tmp_path / "out/parts/bm25/results.json").read_bytes() == kept
    oracle = read_run(run_path(tmp_path / "out", "bm25-oracle"))
    assert {len(retrieved) for retrieved in oracle.retrieved} == {3}


def test_a_killed_reproduction_goes_on_and_ends_the_same(miniature, files, tmp_path):
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "litsearch.reproduce", *options(files, folder, "processes=2")]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not list(folder.glob("parts/*/results.json")) and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    finished = {path: path.read_bytes() for path in folder.glob("parts/*/results.json")}
    assert finished and not (folder / "results.json").exists()
    result = run_here(files, folder)
    assert {path.parent.name for path in finished} == set(result["metrics"]["parts"]["kept"])
    assert all(path.read_bytes() == content for path, content in finished.items())
    _, whole = miniature
    for name in ("runs", "paired", "ceilings", "onehop", "gains"):
        assert result["metrics"][name] == whole["metrics"][name]


def test_a_part_that_was_begun_with_other_options_leaves_nothing_behind(files, tmp_path):
    few = ["retrievers=[bm25]", "hybrid=[]", "ceilings=[bm25]", "onehop.first=[]", "rerank.flavours=[]"]
    begun = tmp_path / "out/parts/bm25"
    begun.mkdir(parents=True)
    (begun / "made_from").write_text("something else")
    (begun / "index").mkdir()
    run_here(files, tmp_path / "out", *few)
    assert not (begun / "index").exists() and results_of(tmp_path / "out", "bm25")["papers"] == 48


def test_the_prompting_path_runs_on_a_real_engine(files, tmp_path):
    few = ["retrievers=[bm25]", "hybrid=[]", "ceilings=[bm25]", "onehop.first=[]", "rerank.flavours=[]"]
    few += ["prompting.run=true", "prompting.backend=transformers", "prompting.questions=2", "prompting.max_k=4"]
    plan = planned(files, tmp_path, *few)
    begun = tmp_path / "out/parts/prompting"
    begun.mkdir(parents=True)
    (begun / "made_from").write_text(digests(plan.parts)["prompting"])
    # What a killed run has left is taken; a model that is taught a single step stands in for one that took longer.
    papers = open_benchmark(compose("reproduce", ["data=files", *files]).data).corpus.papers
    tiny_ranker(begun / "tiny_model", papers, steps=1)
    metrics = run_here(files, tmp_path / "out", *few)["metrics"]
    assert metrics["prompting"]["questions"] == metrics["prompting"]["replies"] == 2
    assert metrics["prompting"]["backend"] == "transformers" and "prompting" not in metrics["runs"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scale=paper"], "scale=paper: reproduce runs at laptop scale"),
        (["retrievers=[random]", "hybrid=[]", "ceilings=[random]", "rerank.first=random"], "bm25 must be among them"),
        (["hybrid=[bm25,minilm]"], "hybrid names minilm"),
        (["hybrid=[bm25]"], "at least two"),
        (["ceilings=[bm25,bm25]"], "give each once"),
        (["retrievers=[bm25,nothing]", "hybrid=[]", "ceilings=[bm25]"], "nothing"),
        (["rerank.flavours=[psychic]"], "'psychic'"),
        (["rerank.max_k=0"], "rerank.max_k=0"),
        (["onehop.cutoff_count=300"], "cutoff_count=300"),
        (["prompting.backend=magic"], "prompting.backend='magic'"),
        (["processes=0"], "processes=0"),
        (["top_k=0"], "top_k=0"),
        (["resamples=-1"], "resamples=-1"),
        (["simcse.model=/nowhere", "retrievers=[bm25,tfidf,random,simcse]"], "simcse.model=/nowhere"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(files, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        run_here(files, tmp_path / "out", *overrides)
    assert not list(tmp_path.glob("out/parts/*"))


def test_a_bad_option_ends_with_status_2(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", *options(files, tmp_path / "out", "rerank.first=grit")])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == 2
    assert "rerank.first names grit" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- parts


def planned(files, tmp_path, *overrides):
    cfg = compose("reproduce", options(files, tmp_path, *overrides))
    bench = Bench(open_benchmark(cfg.data), ("data=files", *files))
    return make_plan(cfg, bench, onehop_bench(cfg, bench, tmp_path), QUIET)


def test_the_simcse_encoder_of_its_own_laptop_run_is_taken_where_there_is_one(files, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    with_simcse = "retrievers=[random,bm25,tfidf,simcse]"
    trained = planned(files, tmp_path, with_simcse)
    assert trained.names.index(ENCODER) < trained.names.index("simcse")
    model = tmp_path / "runs/simcse/laptop/triplets/model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    found = planned(files, tmp_path, with_simcse)
    assert ENCODER not in found.names
    [simcse] = [part for part in found.parts if part.name == "simcse"]
    assert f"retriever.model='{model}'" in simcse.options["overrides"]
    (model / "model.safetensors").write_bytes(b"others!")
    assert digests(planned(files, tmp_path, with_simcse).parts)["simcse"] != digests(found.parts)["simcse"]


def test_what_a_part_is_made_from_includes_what_it_needs(files, tmp_path):
    before = digests(planned(files, tmp_path).parts)
    after = digests(planned(files, tmp_path, "top_k=20").parts)
    assert all(before[name] != after[name] for name in before)
    deeper = digests(planned(files, tmp_path, "onehop.total_count=20").parts)
    changed = {name for name in before if before[name] != deeper[name]}
    assert changed and all("onehop" in name for name in changed)


# ----------------------------------------------------------------------------------------------------------- findings


def test_curves_and_ceilings_are_recall_at_every_depth(queries, corpus):
    lists = [[20, 10, 30], [10, 20, 40], [50, 60], [30]]
    run = Run([RunRecord(query, found) for query, found in zip(queries, lists, strict=True)])
    curve = findings.recall_curve(run, np.arange(4), 5)
    for k in range(1, 6):
        wanted = np.mean([100 * recall_at_k(r.retrieved, r.query.corpusids, k) for r in run])
        assert curve[k - 1] == pytest.approx(wanted)
    assert findings.ceilings(run)["top5"] == pytest.approx(curve[4])
    assert findings.recalls(run, [1, 2, 2, 1]).tolist() == [0, 100, 0, 100]
    overlap = findings.overlaps(run, corpus)
    assert overlap[3] == pytest.approx(2 / 5)  # passages, by; "cosine?" is another word


@pytest.mark.mirror
def test_bm25_gives_the_reference_values_of_paper_yaml(mini_corpus, mini_queries, mini_bm25):
    found = mini_bm25.search([query.query for query in mini_queries], 20)
    retrieved = [[mini_corpus.papers[i].corpusid for i in row] for row in found.tolist()]
    run = Run([RunRecord(query, row) for query, row in zip(mini_queries, retrieved, strict=True)])
    scores = per_question(run, metric_functions([5, 20]))
    groups = {name: {m: v[at].mean() for m, v in scores.items()} for name, at in question_groups(mini_queries).items()}
    values = findings.reference_values(groups)
    cells = [cell for cell in load_paper("litsearch").cells("mini") if cell.row == "bm25"]
    assert len(cells) == len(values) == 8
    assert all(round(values[cell.key], 4) == cell.paper for cell in cells)
