"""The chunked cross-entropy: value and gradients of the plain one, in less memory."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mlm_masking.loss import bits_and_perplexity, linear_cross_entropy


def inputs(positions=37, width=8, vocabulary=53, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((positions, width), (vocabulary, width), (vocabulary,))
    )
    return hidden, weight, bias, torch.randint(0, vocabulary, (positions,), generator=generator)


@pytest.mark.parametrize("rows", [1, 5, 36, 37, 1000, None])
def test_value_and_gradients_are_those_of_cross_entropy_for_any_chunk(rows):
    hidden, weight, bias, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, bias, targets, rows=rows)
    ours = torch.autograd.grad(3 * loss, (hidden, weight, bias))
    plain = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")
    theirs = torch.autograd.grad(3 * plain, (hidden, weight, bias))
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_gradients_are_the_loss_derivatives():
    hidden, weight, bias, targets = inputs(6, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, targets, rows=4), (hidden, weight, bias))
    assert torch.autograd.gradcheck(
        lambda *x: linear_cross_entropy(*x, targets % 5, classes=5, rows=4), (hidden, weight, bias)
    )


def test_ids_that_do_not_exist_get_no_probability():
    hidden, weight, bias, targets = inputs()
    targets = targets % 40
    loss = linear_cross_entropy(hidden, weight, bias, targets, classes=40)
    plain = F.cross_entropy((hidden @ weight.T + bias)[:, :40], targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)


def test_no_position_is_a_loss_of_zero_with_gradients_of_zero():
    hidden, weight, bias, targets = inputs(0)
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    loss.backward()
    assert float(loss.detach()) == 0 and hidden.grad.shape == (0, 8)
    assert not weight.grad.any() and not bias.grad.any()


def test_log_softmax_is_float32_under_autocast():
    hidden, weight, bias, targets = inputs(64, 16, 3000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, targets, rows=10)
    assert loss.dtype == torch.float32
    rounded = (hidden.bfloat16() @ weight.bfloat16().T + bias.bfloat16()).float()
    expected = F.cross_entropy(rounded, targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)
    loss.backward()
    assert weight.grad.dtype == torch.float32 and hidden.grad.dtype == torch.float32


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if torch.is_tensor(tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_a_table_of_all_logits_is_never_made():
    hidden, weight, bias, targets = inputs(400, 8, 1000)
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, bias, targets, rows=20).backward()
    assert largest.numbers == 20 * 1000
    with _Largest() as largest:
        F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum").backward()
    assert largest.numbers == 400 * 1000


def test_evaluation_computes_no_gradient():
    hidden, weight, bias, targets = inputs()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, bias, targets).requires_grad


def test_bits_and_perplexity():
    bits, perplexity = bits_and_perplexity(math.log(8))
    assert bits == pytest.approx(3) and perplexity == pytest.approx(8)
    assert bits_and_perplexity(1000.0)[1] == math.inf
