"""Blocks moved by steps of their own: norms per block, and large matrices made a slice at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezo import MeZO, on_the_fly
from mezo.on_the_fly import OnTheFly
from mezo.scales import KINDS, block_scales, blocks_of
from mezo.slices import InSlices
from mezo.spsa import directions
from shared import InputError


class Small(nn.Module):
    """Embedding, one layer, a head tied to the embedding or not."""

    def __init__(self, rows: int = 100, width: int = 16, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(rows, width)
        self.layers = nn.ModuleList([nn.Linear(width, width)])
        self.lm_head = nn.Linear(width, rows, bias=not tied)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.tanh(self.layers[0](self.embed_tokens(ids))))


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model, ids = Small(), torch.randint(100, (4, 7))
    return model, list(model.named_parameters()), lambda: F.cross_entropy(model(ids)[:, -1], ids[:, 0])


def test_blocks_are_embeddings_layers_and_head():
    names = ["model.embed_tokens.weight", "model.layers.0.fc.weight", "model.layers.11.fc.bias", "model.norm.weight",
             "lm_head.weight"]  # fmt: skip
    assert blocks_of(names) == {"embeddings": [0], "layer 0": [1], "layer 11": [2], "rest": [3], "head": [4]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_move_is_as_long_as_a_plain_one(problem, kind):
    _, named, loss = problem
    before = [tensor.clone() for _, tensor in named]
    scales = block_scales(kind, named, loss, 1e-3, "counter")
    assert scales[1] == scales[2] and len(set(scales)) == 3
    sizes = [tensor.numel() for _, tensor in named]
    assert sum(n / d**2 for n, d in zip(sizes, scales, strict=True)) == pytest.approx(sum(sizes))
    assert all(torch.equal(tensor, was) for (_, tensor), was in zip(named, before, strict=True))


def test_scales_have_the_proportions_of_the_norms(problem):
    _, named, loss = problem
    loss().backward()
    of = {name: tensor.grad for name, tensor in named}
    layer = torch.cat([of["layers.0.weight"].flatten(), of["layers.0.bias"]])
    expected = (of["embed_tokens.weight"].norm() / math.sqrt(1600)) / (layer.norm() / math.sqrt(len(layer)))
    found = block_scales("gradient_norm", named, loss, 1e-3, "torch")
    assert found[0] / found[1] == pytest.approx(float(expected), rel=1e-4)
    # Of many directions, the mean square of a block's projected gradient is its squared gradient norm.
    draws = [block_scales("zo_norm", named, loss, 1e-3, "counter", seed=k)[0] for k in range(3)]
    assert len(set(draws)) == 3


def test_a_block_without_a_norm_and_unknown_kinds_are_refused(problem):
    _, named, loss = problem
    named[0][1].data.zero_()
    with pytest.raises(InputError, match=r"zo\.scale_by=parameter_norm: the norm of block 'embeddings' is 0"):
        block_scales("parameter_norm", named, loss, 1e-3, "torch")
    with pytest.raises(InputError, match=r"zo\.scale_by=size: give null or one of parameter_norm"):
        block_scales("size", named, loss, 1e-3, "torch")


def test_scales_may_be_a_function_of_the_step(problem):
    """The same numbers every step are the list; a wrong number of them is refused when they come."""
    _, named, loss = problem
    start, ends = [tensor.detach().clone() for _, tensor in named], []
    scales = [0.5, 2.0, 2.0, 1.0, 1.0]
    for given in (scales, lambda step: scales, lambda step: [1.0, *scales[1:]] if step else scales):
        for (_, tensor), was in zip(named, start, strict=True):
            tensor.data.copy_(was)
        optimizer = MeZO(named, lr=0.1, scales=given)
        for _ in range(3):
            optimizer.step(loss)
        ends.append([tensor.detach().clone() for _, tensor in named])
    assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
    assert not torch.equal(ends[0][0], ends[2][0])
    with pytest.raises(InputError, match="scales has 2 numbers for 5 parameters"):
        MeZO(named, lr=0.1, scales=[1.0, 2.0])
    with pytest.raises(InputError, match="scales has 2 numbers for 5 parameters"):
        MeZO(named, lr=0.1, scales=lambda step: [1.0, 2.0]).step(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_a_matrix_in_slices_is_the_whole_perturbed_matrix(monkeypatch, rng, tied, dtype):
    """Rows are looked up, multiplied and made whole as if z had been added to all of them."""
    torch.manual_seed(0)
    model = Small(rows=203, tied=tied).to(dtype)
    ids = torch.tensor([[0, 202, 7, 7, 100]])
    parameters = [p for _, p in model.named_parameters()]
    original = [p.detach().clone() for p in parameters]
    for p, z in zip(parameters, directions(parameters, 5, rng), strict=True):
        p.data = (p.data.float() + 0.1 * z.float().view(p.shape)).to(dtype)
    with torch.no_grad():
        expected, whole = model(ids), model.embed_tokens.weight.clone()
        for p, before in zip(parameters, original, strict=True):
            p.data = before.clone()
        monkeypatch.setattr(on_the_fly, "SLICE", 512)
        fly = OnTheFly(model, parameters, rng)
        seen = []
        model.embed_tokens.register_forward_pre_hook(
            lambda m, _: seen.append((type(m.weight), m.weight.shape, m.weight + 0))
        )
        with fly.at(5, 0.1):
            model.embed_tokens._forward_pre_hooks.move_to_end(next(iter(model.embed_tokens._forward_pre_hooks)))
            found = model(ids)
    assert torch.allclose(found.float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 2e-2)
    kind, shape, made = seen[0]
    assert kind is InSlices and shape == (203, 16) and torch.equal(made, whole)
    assert all(torch.equal(p, before) for p, before in zip(parameters, original, strict=True))


def test_slices_leave_a_trajectory_as_it_is(monkeypatch):
    ends, ids = [], torch.arange(40).view(5, 8)
    for size in (1 << 20, 512):
        monkeypatch.setattr(on_the_fly, "SLICE", size)
        torch.manual_seed(0)
        model = Small(rows=300).double()
        optimizer = MeZO(model.named_parameters(), lr=1e-2, model=model, rng="counter")
        for _ in range(10):
            optimizer.step(lambda model=model: F.cross_entropy(model(ids)[:, -1], ids[:, 0]))
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*ends, strict=True))
