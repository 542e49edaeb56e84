"""Tiny real checkpoints for the tests of this paper: a byte-level BPE tokenizer and random encoders, made here."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

TEXT = """the cat sat on the mat . a dog ran in the park . a good film , warm and funny . a bad film , dull and long .
who is in the house ? where did the dog run ? the house is red and the river is wide . she said that he was late ."""


def train_tokenizer(folder: Path, vocab_size: int = 320):
    """A RoBERTa tokenizer with <s>, <pad>, </s>, <unk> as ids 0 to 3 and <mask> last, saved in `folder`."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(
        TEXT.split("\n"), vocab_size=vocab_size, min_frequency=1, special_tokens=special, show_progress=False
    )
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_config(norm: str = "pre", **changes):
    """Two layers of 32 units, vocabulary 400, 66 rows of positions (64 tokens)."""
    from transformers import RobertaConfig, RobertaPreLayerNormConfig

    values = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
    }
    return (RobertaPreLayerNormConfig if norm == "pre" else RobertaConfig)(**{**values, **changes})


def random_model(config, seed: int = 0):
    """A masked-LM model whose every parameter is random (LayerNorms and biases too), so that a swap of two shows."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith(("LayerNorm.weight", "layer_norm.weight")) else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    return model.eval()


GOOD = ["a good film , warm", "good and funny", "warm and good", "a funny film , good"]
BAD = ["a bad film , dull", "bad and long", "dull and bad", "a long film , bad"]


def write_examples(path: Path, count: int, seed: int = 0) -> Path:
    """JSON lines of sentences that say good (1) or bad (0), of different lengths."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(generator.integers(2))
        text = (GOOD if label else BAD)[generator.integers(4)] + " ." * int(generator.integers(1, 12))
        rows.append(json.dumps({"sentence": text, "label": label}))
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def write_sentences():
    """The function `write_examples`."""
    return write_examples


@pytest.fixture
def files(tmp_path):
    """A folder with train.jsonl (96 sentences) and dev.jsonl (60)."""
    write_examples(tmp_path / "train.jsonl", 96)
    write_examples(tmp_path / "dev.jsonl", 60, seed=1)
    return tmp_path


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from transformers import RobertaTokenizer

    return RobertaTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer, tmp_path_factory):
    """A function: norm and changes of the configuration -> the folder of a random encoder with its tokenizer."""

    def make(norm: str = "pre", seed: int = 0, **changes) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
        random_model(tiny_config(norm, **changes), seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    """A pre-LayerNorm encoder with its tokenizer."""
    return make_checkpoint()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs go below the test's own folder, and the hub is out of reach."""
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "runs"


@pytest.fixture
def command(runs, monkeypatch, capsys):
    """An entrypoint run in this process, as from the command line: ("probe", "task=blimp", ...) -> (status, stderr)."""
    import importlib
    import logging
    import sys

    from hydra.core.global_hydra import GlobalHydra

    def run(module: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"mlm_masking.{module}", *arguments])
        GlobalHydra.instance().clear()
        before = list(logging.getLogger().handlers)
        capsys.readouterr()
        try:
            importlib.import_module(f"mlm_masking.{module}").main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        finally:  # Hydra's handlers write to what capsys has put in place of stdout, for this test only
            root = logging.getLogger()
            root.handlers = [handler for handler in root.handlers if handler in before]
        errors = capsys.readouterr().err
        return status, errors if status else ""

    return run


@pytest.fixture
def environment(tmp_path):
    """The environment of a subprocess with runs of its own, and with this process's threads: sums depend on them."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "REPRO_RUNS": str(tmp_path / "runs"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}


# ------------------------------------------------------------------------------------------------------- pre-training


@pytest.fixture(scope="session")
def pretrain_text(tmp_path_factory) -> Path:
    """A text file of 1,500 lines in which every word tells the next: context helps."""
    import random

    rng = random.Random(0)
    words = sorted(set(TEXT.split()) - {".", ","})
    lines = []
    for number in range(1500):
        first, count = rng.randrange(len(words)), rng.randint(6, 16)
        chain = [words[(first + step) % len(words)] for step in range(count)]
        lines.append(" ".join(chain) + " ." if number % 10 else "")
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pretrain_overrides(pretrain_text):
    """A function: output folder -> overrides of a pre-training of a second (2 layers of 32 units, 12 updates)."""

    def build(output_dir: Path, *more: str) -> list[str]:
        return [
            f"output_dir={output_dir}",
            "data=textfiles",
            f"data.path={pretrain_text}",
            "data.vocab_size=300",
            "data.block_length=16",
            "data_processes=1",
            "model.num_hidden_layers=2",
            "model.hidden_size=32",
            "model.intermediate_size=64",
            "model.max_position_embeddings=34",
            "batch_size=8",
            "optim.max_steps=12",
            "optim.logging_steps=1",
            "optim.disable_tqdm=true",
            "eval.steps=6",
            "eval.blocks=20",
            *more,
        ]

    return build


@pytest.fixture(scope="session")
def compose_pretrain():
    """A function: overrides -> the composed configuration of `python -m mlm_masking.pretrain`."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)

    folder = Path(__file__).parents[1] / "configs"

    def compose(overrides: list[str]):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            return hydra.compose("config", overrides=overrides)

    return compose


@pytest.fixture(scope="session")
def pretrain_home(tmp_path_factory) -> Path:
    """REPRO_RUNS of the pre-trainings: one for all, so that their text is tokenized once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def worker():
    """The functions of mlm_worker.py."""
    import runpy
    from types import SimpleNamespace

    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("mlm_worker.py"))))


@pytest.fixture
def home(pretrain_home, monkeypatch) -> Path:
    monkeypatch.setenv("REPRO_RUNS", str(pretrain_home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pretrain_home


@pytest.fixture
def pretrain_here(compose_pretrain, pretrain_overrides, home, tmp_path):
    """A function: more overrides -> a pre-training in this process; its folder."""

    def run(*more: str, output_dir: Path | None = None) -> Path:
        from mlm_masking.pretrain import pretrain

        return pretrain(compose_pretrain(pretrain_overrides(output_dir or tmp_path / "run", *more)))

    return run


@pytest.fixture
def start_pretrain(pretrain_overrides, pretrain_home, environment):
    """A function: output folder, more overrides -> a running `python -m mlm_masking.pretrain`, its output in a log."""
    import subprocess
    import sys

    started: list[subprocess.Popen] = []

    def start(output_dir: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "mlm_masking.pretrain", *pretrain_overrides(output_dir, *more)]
        with output_dir.with_suffix(".log").open("wb") as log:
            mine = {**environment, "REPRO_RUNS": str(pretrain_home)}
            process = subprocess.Popen(command, env=mine, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
