"""Every experiment composes, names itself, and says what the paper's tables say."""

from pathlib import Path

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from shared.sources import sources
from simcse.augment import KINDS
from simcse.pairs import OBJECTIVES
from simcse.pooling import POOLERS
from simcse.text_sources import BUILDERS
from simcse.train import DELETE_ONE_WORD, check_options

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))

# Table A.1: batch, learning rate, epochs
TABLE_A1 = {
    "unsup_bert_base": ("bert-base-uncased", 64, 3e-5, 1),
    "unsup_bert_large": ("bert-large-uncased", 64, 1e-5, 1),
    "unsup_roberta_base": ("roberta-base", 512, 1e-5, 1),
    "unsup_roberta_large": ("roberta-large", 512, 3e-5, 1),
    "sup_bert_base": ("bert-base-uncased", 512, 5e-5, 3),
    "sup_bert_large": ("bert-large-uncased", 512, 1e-5, 3),
    "sup_roberta_base": ("roberta-base", 512, 5e-5, 3),
    "sup_roberta_large": ("roberta-large", 512, 1e-5, 3),
}


def _rows(compose, experiment: str) -> list:
    """The configurations that `experiment=...` runs: one, or those of its sweep."""
    cfg = compose([f"experiment={experiment}"], with_hydra=True)
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.get("params") or {}).items()]
    assert bool(params) == (cfg.hydra.mode is not None)
    if not params:
        return [compose([f"experiment={experiment}"])]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(params), None)[0]
    return [compose([f"experiment={experiment}", *job]) for job in jobs]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_row_composes_with_known_values_and_a_name_of_its_own(compose_train, experiment):
    rows = _rows(compose_train, experiment)
    names = [cfg.experiment for cfg in rows]
    assert len(set(names)) == len(names)
    for cfg in rows:
        check_options(cfg)
        assert cfg.paper == "simcse" and cfg.experiment.split("-")[0] == experiment and "/" not in cfg.experiment
        assert cfg.pooler in POOLERS and cfg.augment.kind in (None, *KINDS)
        assert cfg.objective in (*OBJECTIVES, DELETE_ONE_WORD)
        assert cfg.data.source == "auto" or cfg.data.source in BUILDERS or cfg.data.source in sources("simcse")
        assert cfg.loss.temperature > 0 and cfg.data.max_length == 32
        assert cfg.scale == ("laptop" if cfg.model in ("tiny", "minilm") else "paper")
        assert cfg.optim.get("bf16") is (cfg.scale == "paper")


@pytest.mark.parametrize("experiment", TABLE_A1)
def test_released_models_have_the_papers_hyper_parameters(compose_train, experiment):
    cfg = compose_train([f"experiment={experiment}"])
    unsupervised = experiment.startswith("unsup")
    assert (cfg.model, cfg.batch_size, cfg.optim.learning_rate, cfg.optim.num_train_epochs) == TABLE_A1[experiment]
    assert (cfg.pooler, cfg.mlp_only_train, cfg.data.source) == (
        "cls",
        unsupervised,
        "wiki1m" if unsupervised else "nli",
    )
    assert (cfg.loss.temperature, cfg.loss.similarity, cfg.loss.hard_negative_weight) == (0.05, "cos", 0.0)
    assert (cfg.optim.lr_scheduler_type, cfg.optim.warmup_steps, cfg.optim.weight_decay) == ("linear", 0, 0.0)
    assert (cfg.optim.max_grad_norm, cfg.eval.steps, cfg.seed) == (1.0, 125, 42)
    assert list(cfg.eval.final) == ["sts", "transfer"]


def test_sweeps_cover_the_papers_tables(compose_train):
    def values(experiment: str, read) -> list:
        return [read(cfg) for cfg in _rows(compose_train, experiment)]

    augment = values("ablation_augment", lambda cfg: (cfg.augment.kind, cfg.augment.percent))
    assert augment[:4] == [(None, None), ("crop", 10), ("crop", 20), ("crop", 30)] and len(augment) == 10
    assert values("ablation_dropout", lambda cfg: (cfg.dropout.p, cfg.dropout.fixed_mask)) == [
        *((p, False) for p in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.5)),
        (0.1, True),
    ]
    assert len(values("ablation_objective", lambda cfg: (cfg.objective, cfg.encoders))) == 8
    assert values("ablation_temperature", lambda cfg: cfg.loss.temperature) == [0.001, 0.01, 0.05, 0.1, 1.0]
    assert values("ablation_mlm", lambda cfg: (cfg.loss.mlm, cfg.loss.mlm_weight)) == [
        (True, w) for w in (0.01, 0.1, 1.0)
    ]
    assert len(values("ablation_pairs", lambda cfg: cfg.data.source)) == 7
    assert len(values("ablation_batch", lambda cfg: (cfg.batch_size, cfg.optim.learning_rate))) == 12
    for table in ("ablation_pooler_unsup", "ablation_pooler_sup"):
        poolers = values(table, lambda cfg: (cfg.pooler, cfg.mlp_only_train))
        assert poolers == [(pooler, False) for pooler in ("cls", "cls_before_pooler", "avg_first_last")]


def test_every_trained_row_of_paper_yaml_is_an_experiment_that_runs(compose_train):
    paper = yaml.safe_load((ROOT / "paper.yaml").read_text())
    named = set()
    for table in paper["tables"].values():
        for row in table["rows"].values():
            experiment = row.get("experiment")
            named |= {name for name in (experiment if isinstance(experiment, list) else [experiment]) if name}
    trained = {name for name in named if not name.startswith(("eval_", "analyze_"))}
    runs = {cfg.experiment for experiment in EXPERIMENTS for cfg in _rows(compose_train, experiment)}
    # The 134k column of Table 4 is the same sweep with data.sample=134000.
    runs |= {name.removesuffix("None") + "134000" for name in runs if name.startswith("ablation_pairs-")}
    assert trained and trained <= runs, sorted(trained - runs)
