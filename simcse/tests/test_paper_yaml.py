"""paper.yaml: the numbers agree with their own averages, every row can be run, every claim can be judged."""

import re

import pytest
from hydra import compose, initialize_config_dir

from shared.claims import SCALES, find_metric
from shared.paper import load_paper
from shared.plan import experiment_files, runs_of
from simcse.plan import CONFIGS

# The paper's own averages of these rows differ from the mean of the printed columns.
OFF_IN_THE_PAPER = {("table5", "sbert_base"), ("table_e1", "bert_avg")}
# Experiments of simcse.evaluate and simcse.analyze: checkpoints that are not trained here.
EVALUATIONS = re.compile(r"eval_|analyze_")


@pytest.fixture(scope="module")
def paper():
    return load_paper("simcse")


@pytest.fixture(scope="module")
def trained():
    """Names of all runs that the experiment files of scale paper expand to."""
    names = set()
    for experiment in experiment_files(CONFIGS):
        configs = runs_of(CONFIGS, experiment)
        if configs[0].scale == "paper":
            names |= {cfg.experiment for cfg in configs}
    return names | {cfg.experiment for cfg in runs_of(CONFIGS, "ablation_pairs", ("data.sample=134000",))}


def test_every_table_is_there_with_its_average(paper):
    assert len(paper.tables["table5"]["rows"]) == 23 and len(paper.tables["table_e1"]["rows"]) == 15
    rows = {}
    for cell in paper.cells():
        rows.setdefault((cell.table, cell.row), []).append(cell)
    checked = 0
    for row, cells in rows.items():
        if cells[-1].column == "Avg" and len(cells) == 8 and row not in OFF_IN_THE_PAPER:
            mean = sum(cell.paper for cell in cells[:-1]) / 7
            assert abs(mean - cells[-1].paper) < 0.0051, (row, mean)
            checked += 1
    assert checked == 23 + 15 - 2 + 2 + 2 + 2  # tables 5 and E.1, BERT-large, printout and first-last, B.3


def test_known_numbers_of_the_paper(paper):
    assert paper.number("table5.unsup_bert_base.Avg") == 76.25
    assert paper.number("table5.sup_roberta_large.STS-B") == 86.70
    assert paper.number("table3.fixed_01.dev") == 43.6
    assert paper.number("table2.next_sentence.two") == 68.9
    assert paper.number("table_d1.t_1.dev") == 64.0
    assert paper.number("table_d2.l_1.transfer") == 85.8
    assert paper.number("zoo.sup_bert_large.Avg") == 82.21


def test_every_trained_row_has_an_experiment_file_of_its_name(paper, trained):
    wanted = {cell.experiment for cell in paper.cells() if cell.experiment}
    missing = sorted(name for name in wanted - trained if not EVALUATIONS.match(name))
    assert missing == []


def test_every_row_of_a_checkpoint_has_an_evaluation_file_that_gives_it_that_name(paper):
    wanted = {cell.experiment for cell in paper.cells() if cell.experiment and EVALUATIONS.match(cell.experiment)}
    assert len(wanted) == 13
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in sorted(wanted):
            cfg = compose("evaluate", [f"evaluation={name}"])
            assert (cfg.experiment, cfg.scale) == (name, "paper")


def test_every_claim_names_experiments_that_exist(paper, trained):
    for claim in paper.claims:
        if isinstance(claim.get("paper"), str):
            named = set(re.findall(r'", "([^"]+)"\)', claim["paper"]))
            missing = {name for name in named - trained if not EVALUATIONS.match(name)}
            assert missing == set(), claim["id"]
            assert named, f"{claim['id']}: a claim at scale paper must say which experiments decide it"


def test_every_claim_has_a_predicate_or_a_reason_at_both_scales(paper):
    assert len(paper.claims) >= 25
    for claim in paper.claims:
        for scale in SCALES:
            assert scale in claim, (claim["id"], scale)


def summary(value):
    return {"mean": value, "std": 0.002, "n": 3, "values": [value] * 3}


def laptop_metrics():
    """The metrics of the laptop experiment in their agreed form, with values in which every claim holds."""
    cells = {
        "untrained": (0.596, 0.034, -0.23),
        "unsup": (0.539, 0.514, -3.28),
        "pairs": (0.69, 0.465, -3.35),
        "triplets": (0.703, 0.457, -3.31),
        "tau1": (0.421, 0.272, -2.29),
    }
    return {
        "scratch": {
            cell: dict(zip(("stsb_dev", "align", "uniform"), map(summary, values), strict=True))
            for cell, values in cells.items()
        },
        "baseline": {"bag_of_words": {"stsb_dev": 0.56}, "random_vectors": {"stsb_dev": 0.56}},
        "minilm": {
            "before": {"stsb_dev": 0.75, "align": 0.30, "uniform": -2.0},
            "after": {"stsb_dev": 0.78, "align": 0.31, "uniform": -2.6},
            "avg": {"stsb_dev": 0.867},
        },
        "retrieval": {
            model: {f"recall_at_{k}": 0.5 for k in (1, 5, 20)}
            for model in ("bag_of_words", "untrained", "triplets", "minilm_before", "minilm_after")
        },
        "spectrum": {
            model: {"top1_share": share}
            for model, share in {"untrained": 0.9, "triplets": 0.1, "minilm_before": 0.2, "minilm_after": 0.1}.items()
        },
        "sts_data": "STS-B dev (mirror)",
    }


def judged(paper, metrics):
    return {
        verdict.id: verdict.verdict for verdict in paper.judge("laptop", lambda path, _: find_metric(metrics, path))
    }


def test_the_laptop_metrics_decide_every_claim_that_has_a_laptop_predicate(paper):
    verdicts = judged(paper, laptop_metrics())
    with_predicate = {claim["id"] for claim in paper.claims if isinstance(claim["laptop"], str)}
    assert len(with_predicate) >= 10
    assert {name for name, verdict in verdicts.items() if verdict == "holds"} == with_predicate


@pytest.mark.parametrize(
    ("path", "value", "claim"),
    [
        ("scratch.triplets.stsb_dev", summary(0.691), "hard_negatives_help"),  # inside the spread over seeds
        ("scratch.tau1.stsb_dev", summary(0.65), "temperature_one_destroys"),
        ("scratch.triplets.stsb_dev", summary(0.55), "supervision_helps"),
        ("minilm.after.stsb_dev", 0.70, "unsup_improves_cls"),
        ("minilm.after.align", 0.40, "alignment_stays_steady"),
        ("scratch.pairs.uniform", summary(-0.1), "uniformity_improves"),
        ("spectrum.triplets.top1_share", 0.95, "spectrum_flattens"),
    ],
)
def test_a_claim_that_the_numbers_contradict_does_not_hold(paper, path, value, claim):
    metrics = laptop_metrics()
    *parents, last = path.split(".")
    find_metric(metrics, ".".join(parents))[last] = value
    assert judged(paper, metrics)[claim] == "does not hold"


def test_every_measured_row_is_found_in_the_laptop_metrics(paper):
    rows = paper.compare("reproduce", "laptop", laptop_metrics())
    assert len(rows) == len(paper.data["measured"])
    triplets = next(row for row in rows if row.label.startswith("from scratch, triplets, "))
    assert (triplets.measured_text(), triplets.paper_text(), triplets.difference_text()) == (
        "70.3 ± 0.2",
        "86.2",
        "-15.9",
    )
