"""What silently ruins a zeroth-order run: merged LoRA, dropout, coarse losses, weights that do not take an update."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezo import MeZO
from mezo.lora import LoRALinear
from mezo.preflight import check_model, check_response
from mezo.spsa import perturb
from mezo.step_statistics import SwallowedUpdates, length_of_move, summary
from mezo.trajectory import Step
from shared import InputError


class MergingLoRA(LoRALinear):
    """What loralib 0.1.2 does: `eval()` adds B A to the weight, and the forward pass uses the weight alone."""

    merged = False

    def train(self, mode: bool = True):
        if not mode and not self.merged and hasattr(self, "lora_A"):
            self.weight.data += self.scaling * self.lora_B.data @ self.lora_A.data
            self.merged = True
        return super().train(mode)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) if self.merged else super().forward(x)


@pytest.fixture
def merging():
    """(model in eval mode, its trainable tensors, closure)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model.requires_grad_(False)
    model[0] = MergingLoRA(model[0], 2, 4.0)
    x, y = torch.randn(16, 6), torch.arange(16) % 3
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, _ in named] == ["0.lora_A", "0.lora_B"]
    return model, named, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("exact", [True, False])
def test_merged_lora_is_found_before_the_first_step(merging, exact):
    model, named, closure = merging
    fly = {"model": model} if exact else {}
    check_response(closure, named, 1e-3, "counter", **fly)  # unmerged, it answers
    model.eval()
    optimizer = MeZO(named, lr=1e-2, **fly)
    optimizer.step(closure)
    assert optimizer.last.projected_gradient == 0, "the trap: both losses are the same, and nothing says so"
    before = [tensor.clone() for _, tensor in named]
    with pytest.raises(InputError, match=r"stays .* bit for bit .*0\.lora_A.* LoRA that is merged by model\.eval\(\)"):
        check_response(closure, named, 1e-3, "counter", **fly)
    assert all(torch.equal(tensor, was) for (_, tensor), was in zip(named, before, strict=True))


def test_our_lora_is_never_merged_by_eval(merging):
    model, _, closure = merging
    model[0] = LoRALinear(nn.Linear(6, 8), 2, 4.0)
    model.train()
    weight = model[0].weight.clone()
    model[0].lora_B.data.fill_(0.1)
    before = closure()
    model.eval()
    assert torch.equal(closure(), before) and torch.equal(model[0].weight, weight)
    check_response(closure, [("B", model[0].lora_B)], 1e-3, "torch", model=model)


def test_dropout_in_train_mode_and_checkpointing_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    with pytest.raises(InputError, match=r"in train mode with dropout \(1\).*call model\.eval"):
        check_model(model.train())
    check_model(model.eval())
    model[1].p = 0.0
    check_model(model.train())
    model.is_gradient_checkpointing = True
    with pytest.raises(InputError, match="no activations to checkpoint"):
        check_model(model)


def test_a_base_model_without_a_finite_loss_is_refused(merging):
    _, named, _ = merging
    with pytest.raises(InputError, match="the loss of the base model is nan"):
        check_response(lambda: torch.tensor(float("nan")), named, 1e-3, "torch")


DRIFT = [(torch.float32, 3.8e-8), (torch.float16, 3.1e-4), (torch.bfloat16, 2.4e-3)]


@pytest.mark.parametrize(("dtype", "expected"), DRIFT, ids=["fp32", "fp16", "bf16"])
def test_restoring_in_place_drifts_as_far_as_was_measured_and_exactly_not_at_all(dtype, expected):
    """1000 steps of zero gradient, weights of deviation 0.02, eps 1e-3."""
    torch.manual_seed(0)
    model = nn.Linear(40, 40, bias=False)
    model.weight.data = (torch.randn(40, 40) * 0.02).to(dtype)
    start = model.weight.detach().clone()
    calm = MeZO(model.named_parameters(), lr=1e-3, model=model, check=False)
    for _ in range(20):
        calm.step(lambda: torch.zeros(()))
    assert torch.equal(model.weight, start)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, restore="inplace", check=False)
    for _ in range(1000):
        optimizer.step(lambda: torch.zeros(()))
    drift = (model.weight.float() - start.float()).square().mean().sqrt()
    assert float(drift) == pytest.approx(expected, rel=0.25)


SWALLOWED = [
    (torch.float32, 1e-6, 0.999), (torch.float16, 1e-6, 0.093), (torch.bfloat16, 1e-6, 0.012),
    (torch.float32, 1e-7, 0.995), (torch.float16, 1e-7, 0.0094), (torch.bfloat16, 1e-7, 0.0012),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "lr", "expected"), SWALLOWED)
def test_the_share_of_weights_that_take_an_update_is_measured_and_told(dtype, lr, expected, caplog):
    """|pg| = 1; half precision rounds most of an update of 1e-6 away."""
    torch.manual_seed(0)
    weights = [(torch.randn(64, 4096) * 0.02).to(dtype) for _ in range(16)]
    named = [(str(k), tensor) for k, tensor in enumerate(weights)]
    watch = SwallowedUpdates(named)
    before = [tensor.clone() for tensor in weights]
    watch.note()
    perturb(named, 1, -lr)
    watch.count()
    share = sum(int((a != b).sum()) for a, b in zip(before, weights, strict=True)) / sum(t.numel() for t in weights)
    assert share == pytest.approx(expected, rel=0.15)
    with caplog.at_level(logging.WARNING):
        watch.warn(dtype, lr)
    if dtype == torch.float32:
        assert watch.moved is None and not caplog.text
    else:
        assert watch.moved == pytest.approx(share, rel=0.3)
        assert "Use zo.rounding=stochastic or zo.master=true" in caplog.text


def test_statistics_of_projected_gradients_tell_zero_and_equal_ones(caplog):
    gradients = [0.0, 0.0, 1.0, -2.0, 1.0, 3.0]
    with caplog.at_level(logging.WARNING):
        found = summary([Step(k, g, 1.0) for k, g in enumerate(gradients)])
    assert found["zero"] == pytest.approx(1 / 3) and found["equal"] == pytest.approx(1 / 3)
    assert found["mean"] == pytest.approx(0.5) and found["std"] == pytest.approx(2.7**0.5)
    assert found["largest"] == 3 and "33 % of the projected gradients are 0" in caplog.text
    assert summary([]) == {}


@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_the_length_of_a_move_is_that_of_its_numbers(rng):
    named = [("a", torch.zeros(300, 7)), ("b", torch.zeros(5))]
    moved = [("a", torch.zeros(300, 7)), ("b", torch.zeros(5))]
    perturb(moved, 9, 0.01, rng=rng)
    expected = torch.cat([tensor.flatten() for _, tensor in moved]).norm()
    assert length_of_move(named, 9, 0.01, rng) == pytest.approx(float(expected), rel=1e-5)
