"""Shared fixtures: a BERT of 16 units whose every weight is a formula, its batches, and a tiny saved encoder.

The formula model lets the loss be compared with numbers computed by the authors' training code on the same weights
(`test_model.py`): nothing is random, so nothing depends on a library's generator.
"""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertTokenizer

from simcse.model import SentenceEncoder

WORDS = """
the a of and in on is are was man woman dog cat child plays runs eats sits sleeps drives reads sings guitar piano
ball park street house river green red small big old young quickly slowly not two three people outside inside
"""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def formula_config() -> BertConfig:
    """Vocabulary 50, 3 layers of 16 units, 2 heads, 40 positions, no dropout."""
    return BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def released_name(name: str) -> str:
    """A SentenceEncoder's parameter name as the authors' `BertForCL` has it."""
    owner, rest = name.split(".", 1)
    if owner == "backbone":
        return f"bert.{rest}"
    if owner == "head":
        return f"mlp.{rest}"
    return f"lm_head.{rest}" if rest.startswith("decoder") else f"lm_head.transform.{rest}"


@pytest.fixture(scope="session")
def released_names():
    """A function from our parameter names to the authors'."""
    return released_name


@pytest.fixture(scope="session")
def fill_by_formula():
    """A function that fills an encoder: tensor i in order of its released name gets a sine of its element numbers."""

    def fill(encoder: SentenceEncoder) -> SentenceEncoder:
        ours = {released_name(name): parameter for name, parameter in encoder.named_parameters()}
        # The release's MLM head carries a second bias that its forward never uses; it takes a place in the order.
        names = sorted([*ours, "lm_head.bias"] if encoder.mlm_head is not None else ours)
        for i, name in enumerate(names):
            if name not in ours:
                continue
            parameter = ours[name]
            j = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
            u = torch.sin(12.9898 * j + 78.233 * i) * 43758.5453
            v = 2 * (u - torch.floor(u)) - 1
            value = 1 + 0.1 * v if "LayerNorm.weight" in name else 0.3 * v
            with torch.no_grad():
                parameter.copy_(value.view_as(parameter).float())
        return encoder

    return fill


@pytest.fixture(scope="session")
def formula_encoder(formula_config, fill_by_formula):
    """A function: pooler and `mlm` -> the formula model as SentenceEncoder, in training mode."""

    def build(pooler: str = "cls", mlm: bool = False, **options) -> SentenceEncoder:
        return fill_by_formula(SentenceEncoder.from_config(formula_config, pooler=pooler, mlm=mlm, **options)).train()

    return build


@pytest.fixture(scope="session")
def formula_batch():
    """A function: sentences per example -> `input_ids`, `attention_mask`, `token_type_ids`, each (4, num_sent, 9)."""

    def build(num_sent: int, batch: int = 4, longest: int = 9) -> dict[str, torch.Tensor]:
        ids = torch.zeros(batch, num_sent, longest, dtype=torch.long)
        for b in range(batch):
            for s in range(num_sent):
                length = min(longest, 3 + (2 * (b * num_sent + s)) % 7)
                for p in range(length):
                    ids[b, s, p] = 5 + (7 * b + 11 * s + 3 * p + b * s * p) % 45
                ids[b, s, 0], ids[b, s, length - 1] = 1, 2
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}

    return build


@pytest.fixture(scope="session")
def gradient_norm():
    """A function: the norm of all parameters' gradients, as one vector."""

    def norm(module: torch.nn.Module) -> float:
        return math.sqrt(sum(p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None))

    return norm


@pytest.fixture(scope="session")
def tiny_tokenizer() -> BertTokenizer:
    """WordPiece over 50 words and all lower-case letters, so that every text has tokens of its own."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "!", "?", "'"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces += letters + [f"##{letter}" for letter in letters] + [word for word in WORDS.split() if len(word) > 1]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer) -> BertConfig:
    """2 layers of 32 units with BERT's dropout of 0.1."""
    return BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory, tiny_config, tiny_tokenizer) -> Path:
    """A saved encoder with a tokenizer, pooler `cls` with head weights; read-only for tests."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    return SentenceEncoder.from_config(tiny_config, pooler="cls").save_pretrained(folder, tiny_tokenizer)


@pytest.fixture(scope="session")
def sentences():
    """A function: n distinct sentences of 4 to 12 words, the same every time."""

    def make(count: int, seed: int = 0) -> list[str]:
        rng = random.Random(seed)
        found: dict[str, None] = {}
        while len(found) < count:
            found[" ".join(rng.choices(WORDS.split(), k=rng.randint(4, 12))) + " ."] = None
        return list(found)

    return make


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory, sentences) -> Path:
    """A SentEval folder with nothing but dev files: 40 STS-B and 20 SICK pairs that share words as their score says."""
    folder = tmp_path_factory.mktemp("senteval")
    texts = sentences(80, seed=1)
    rows = []
    for i in range(0, 80, 2):
        score = (i // 2) % 6
        first, second = texts[i].split(), texts[i + 1].split()
        kept = round(len(first) * score / 5)
        rows.append((score, " ".join(first), " ".join(first[:kept] + second[kept:])))
    sts, sick = folder / "STS" / "STSBenchmark" / "sts-dev.csv", folder / "SICK" / "SICK_trial.txt"
    sts.parent.mkdir(parents=True)
    sick.parent.mkdir()
    sts.write_text("".join(f"a\tb\tc\t{i}\t{score}\t{x}\t{y}\n" for i, (score, x, y) in enumerate(rows)))
    sick.write_text(
        "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
        + "".join(f"{i}\t{x}\t{y}\t{score}\tNEUTRAL\n" for i, (score, x, y) in enumerate(rows[:20]))
    )
    return folder


@pytest.fixture(scope="session")
def train_overrides(tmp_path_factory, sentences, dev_folder, tiny_encoder_folder):
    """A function: output folder -> overrides of a training that takes a second: 128 sentences, batch 16, 32 units."""
    text = tmp_path_factory.mktemp("text") / "sentences.txt"
    text.write_text("\n".join(sentences(128)) + "\n")

    def build(output_dir: Path, *more: str) -> list[str]:
        return [
            "experiment=unsup",
            f"output_dir={output_dir}",
            f"model={tiny_encoder_folder}",
            f"data.path={text}",
            f"eval.data_dir={dev_folder}",
            "eval.trajectory_steps=null",
            "eval.steps=10",
            "batch_size=16",
            "optim.logging_steps=1",
            "optim.disable_tqdm=true",
            *more,
        ]

    return build


@pytest.fixture(scope="session")
def compose_train():
    """A function: overrides -> the composed configuration of `python -m simcse.train`."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)

    folder = Path(__file__).parents[1] / "configs"

    def compose(overrides: list[str], with_hydra: bool = False):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            return hydra.compose("config", overrides=overrides, return_hydra_config=with_hydra)

    return compose


@pytest.fixture
def run_here(compose_train, train_overrides, tmp_path, monkeypatch):
    """A function: more overrides -> a training in this process; its folder."""
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))

    def run(*more: str, output_dir: Path | None = None) -> Path:
        from simcse.train import train

        return train(compose_train(train_overrides(output_dir or tmp_path / "run", *more)))

    return run


@pytest.fixture
def start_train(train_overrides, tmp_path):
    """A function: output folder, more overrides -> a running `python -m simcse.train`, its output in <folder>.log."""
    started: list[subprocess.Popen] = []

    def start(output_dir: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "simcse.train", *train_overrides(output_dir, *more)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "REPRO_RUNS": str(tmp_path / "runs")}
        with output_dir.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
