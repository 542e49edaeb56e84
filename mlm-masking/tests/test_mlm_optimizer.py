"""The optimiser and the learning rates, against the values of the authors' training code."""

import copy
import math

import pytest
import torch

from mlm_masking.optimizer import ReleaseAdam, build_optimizer, learning_rate_factor, linear_schedule
from shared import InputError

GROUP = {"lr": 2e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}


def gradients(steps=5, size=20000):
    """Sizes from 1e-6 to 1e-4, both signs."""
    generator = torch.Generator().manual_seed(0)
    exponents = -6 + 2 * torch.rand(steps, size, generator=generator)
    signs = torch.randint(0, 2, (steps, size), generator=generator) * 2 - 1
    return (10**exponents) * signs


def run(optimizer_class, grads, **options):
    parameter = torch.nn.Parameter(torch.zeros(grads.shape[1]))
    optimizer = optimizer_class([parameter], **{**GROUP, **options})
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def test_step_is_the_releases_formula():
    grads = gradients()
    start = torch.linspace(-1, 1, grads.shape[1], dtype=torch.float64)
    p, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(grads.double(), 1):
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        p = p - 2e-3 * 0.01 * p
        p = p - 2e-3 * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
    for fused in (True, False):
        parameter = torch.nn.Parameter(start.float())
        optimizer = ReleaseAdam([parameter], **GROUP, fused=fused)
        for g in grads:
            parameter.grad = g.clone()
            optimizer.step()
        torch.testing.assert_close(parameter.detach().double(), p, atol=1e-6, rtol=0)


def test_small_gradients_part_it_from_torchs_adamw_by_a_milli():
    difference = (run(ReleaseAdam, gradients()) - run(torch.optim.AdamW, gradients())).abs().max()
    assert 1.3e-3 < float(difference) < 4e-3
    large = 1e4 * gradients()
    assert float((run(ReleaseAdam, large) - run(torch.optim.AdamW, large)).abs().max()) < 1e-5


def test_every_parameter_decays_biases_and_layer_norms_too():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for kind in ("release", "adamw"):
        ours = copy.deepcopy(model)
        optimizer = build_optimizer(ours.parameters(), kind, lr=0.1, weight_decay=0.5)
        for parameter in ours.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert all(torch.allclose(parameter, torch.tensor(0.95)) for parameter in ours.parameters())


def test_state_saved_and_loaded_goes_on_with_the_same_bits():
    grads = gradients(6, 50)
    whole = run(ReleaseAdam, grads)
    parameter = torch.nn.Parameter(torch.zeros(50))
    optimizer = ReleaseAdam([parameter], **GROUP)
    for number, grad in enumerate(grads):
        if number == 3:
            state = copy.deepcopy(optimizer.state_dict())
            parameter = torch.nn.Parameter(parameter.detach().clone())
            optimizer = ReleaseAdam([parameter], **{**GROUP, "lr": 1.0, "eps": 1.0})
            optimizer.load_state_dict(state)
        parameter.grad = grad.clone()
        optimizer.step()
    assert torch.equal(parameter, whole)
    assert optimizer.param_groups[0]["eps"] == 1e-6


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (1, 2e-3 / 1380),
        (690, 1e-3),
        (1380, 2e-3),
        (1381, 1.99990749e-3),
        (5000, 1.66512488e-3),
        (12190, 1e-3),
        (22999, 9.2507e-8),
        (23000, 0.0),
    ],
)
def test_learning_rates_are_the_releases(update, rate):
    assert 2e-3 * learning_rate_factor(update, 1380, 23000) == pytest.approx(rate, rel=5e-4, abs=1e-15)


def test_scheduler_gives_each_update_its_rate():
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    scheduler = linear_schedule(optimizer, 3, 10)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([2e-3 * learning_rate_factor(update, 3, 10) for update in range(1, 11)])
    assert seen[0] == pytest.approx(2e-3 / 3) and seen[2] == 2e-3 and seen[-1] == 0


def test_no_warm_up_begins_at_the_peak():
    assert learning_rate_factor(1, 0, 10) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sgd", {"lr": 1.0}, "optimizer=sgd: give one of release, adamw"),
        ("release", {"lr": -1.0}, "optim.learning_rate=-1.0 is out of range"),
        ("adamw", {"lr": 1.0, "betas": (0.9, 1.0)}, "optim.adam_beta2=1.0"),
        ("release", {"lr": 1.0, "weight_decay": -0.1}, "optim.weight_decay=-0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        build_optimizer([torch.nn.Parameter(torch.zeros(1))], kind, **options)


def test_warm_up_longer_than_the_run_is_refused():
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match="warm-up of 11 updates in a run of 10"):
        linear_schedule(optimizer, 11, 10)
