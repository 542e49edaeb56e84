"""Shared by this folder's tests: small networks with fixed weights, untrained language models, configurations.

Worker processes of the tests import TinyNet from here: what takes seconds to import is imported where it is used.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


class TinyNet(nn.Module):
    """Linear, tanh, LayerNorm, Linear, cross-entropy: the network of the reference trajectory."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.layer_norm, self.l2 = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.l2(self.layer_norm(torch.tanh(self.l1(x)))), y)


@pytest.fixture
def tiny_net():
    """(network, inputs, labels) of the reference trajectory."""
    net, draw = TinyNet(), np.random.RandomState(7)
    for p in net.parameters():
        p.data = torch.from_numpy(draw.standard_normal(tuple(p.shape)).astype(np.float32) * 0.5)
    draw = np.random.RandomState(8)
    x = torch.from_numpy(draw.standard_normal((16, 8)).astype(np.float32))
    return net, x, torch.from_numpy(draw.randint(0, 3, 16))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer on a few sentences: `<s>` in front, " great", "Yes" and "No" one token each."""
    from mezo.tiny_causal import TinyCausal, train_tokenizer

    texts = ["The film is a joy . It was great", "The plot has holes . It was terrible", "Yes or No?\nYes", "?\nNo"]
    return train_tokenizer(texts * 8, TinyCausal(vocab_size=340))


@pytest.fixture(scope="session")
def tiny_models(tiny_tokenizer):
    """Untrained OPT, Llama and Qwen2 by name, with weights large enough for their answers to differ."""
    from mezo.tiny_causal import FAMILIES, TinyCausal, build

    models = {}
    for family in FAMILIES:
        settings = TinyCausal(family=family, hidden_size=32, max_positions=256)
        models[family] = build(settings, len(tiny_tokenizer)).eval()
        generator = torch.Generator().manual_seed(1)
        for p in models[family].parameters():
            if p.dim() > 1:
                p.data = torch.randn(p.shape, generator=generator) * 0.15
    return models


TINY = {"vocab_size": 400, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def opinion_texts() -> list[str]:
    from lm_bff.offline_tasks import opinions

    return [f"{text} It was{word}" for text, _ in opinions(400) for word in (" great", " terrible")]


@pytest.fixture(scope="session")
def opt_folder(tmp_path_factory, opinion_texts) -> Path:
    """An untrained OPT of two layers with its tokenizer."""
    from mezo.tiny_causal import TinyCausal, build, train_tokenizer

    settings = TinyCausal(**TINY, max_positions=128)
    tokenizer = train_tokenizer(opinion_texts, settings)
    folder = tmp_path_factory.mktemp("opt")
    build(settings, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def masked_folder(tmp_path_factory, opinion_texts) -> Path:
    """An untrained masked language model of two layers with its tokenizer."""
    from lm_bff import tiny

    tokenizer = tiny.train_tokenizer(opinion_texts, 400, ["great", "terrible", "it", "was"])
    folder = tmp_path_factory.mktemp("masked")
    tiny.build_model(tokenizer, tiny.TinySettings(**TINY, intermediate_size=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def configure(tmp_path):
    """configure("task=...", ...) -> the configuration of a small run in tmp_path/run."""

    import hydra

    import shared.launch  # noqa: F401  (puts the launch group on Hydra's search path)

    def compose(*overrides: str):
        small = ("steps=4", "batch_size=8", "eval_every=2", "data.num_train=24", "data.num_dev=8", "data.num_test=12",
                 "log_every=1", f"output_dir={tmp_path / 'run'}")  # fmt: skip
        chosen = [one for one in small if one.split("=")[0] not in {o.split("=")[0] for o in overrides}]
        with hydra.initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
            return hydra.compose("config", overrides=[*chosen, *overrides])

    return compose
