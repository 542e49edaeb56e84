"""The reference trajectory, the release's random numbers, and what a step may and may not touch."""

from functools import partial

import numpy as np
import pytest
import torch

from mezo import MeZO
from mezo.spsa import Mask, directions, perturb, projected_gradient
from shared import InputError

# (seed, loss at theta + eps z, g without decay, loss after, g with decay 0.1, loss after): the release's numbers
REFERENCE = [
    (534895718, 1.3265780210, -0.5086064338, 1.3245755434, -0.5086064338, 1.3241084814),
    (199900595, 1.3246914148, 0.1120567247, 1.3244546652, 0.1118183061, 1.3235256672),
    (862061404, 1.3251246214, 0.6670951247, 1.3201285601, 0.6667971015, 1.3187435865),
    (787846414, 1.3197512627, -0.3792047203, 1.3187193871, -0.3786682785, 1.3168895245),
    (996406378, 1.3180170059, -0.7094144225, 1.3140269518, -0.7129907012, 1.3116965294),
]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("restore", ["inplace", "exact"])
def test_the_reference_trajectory(tiny_net, decay, restore):
    net, x, y = tiny_net
    model = net if restore == "exact" else None
    optimizer = MeZO(net.named_parameters(), lr=1e-2, eps=1e-3, weight_decay=decay, model=model, restore=restore)
    for seed, plus, *expected in REFERENCE:
        gradient, after = expected[2:] if decay else expected[:2]
        loss = optimizer.step(lambda: net(x, y))
        assert optimizer.last.seed == seed
        if not decay:
            assert loss == pytest.approx(plus, abs=2e-6)
        assert optimizer.last.projected_gradient == pytest.approx(gradient, abs=4e-4)
        assert net(x, y).item() == pytest.approx(after, abs=3e-6)


def test_two_hundred_steps_end_where_the_release_ends(tiny_net):
    net, x, y = tiny_net
    optimizer = MeZO(net.named_parameters(), lr=1e-2, eps=1e-3)
    for _ in range(200):
        optimizer.step(lambda: net(x, y))
    assert optimizer.last.seed == 839735171
    assert optimizer.last.projected_gradient == pytest.approx(-0.0713765621, abs=2e-4)
    assert net(x, y).item() == pytest.approx(0.9455096722, abs=1e-5)
    assert torch.allclose(net.l2.bias, torch.tensor([-0.47028556, 0.32644811, -0.24683838]), atol=1e-4)


def test_torch_numbers_are_those_of_a_seeded_global_generator_and_leave_it_alone():
    params = [torch.zeros(3), torch.zeros(16), torch.zeros(5, 7), torch.zeros(1_000_003)]
    torch.manual_seed(123)
    expected = [torch.normal(0.0, 1.0, size=p.shape) for p in params]
    assert torch.allclose(expected[0], torch.tensor([-0.11146712, 0.12036294, -0.36963451]))
    before = torch.get_rng_state()
    perturb(params, 123, 1.0)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, z) for p, z in zip(params, expected, strict=True))
    assert all(torch.equal(p, z) for p, z in zip(params, directions(params, 123), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pieces_do_not_change_the_stream_of_other_types(dtype):
    big = torch.zeros(600_007, dtype=dtype)
    perturb([big], 5, 1.0)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(big, torch.empty_like(big).normal_(generator=generator))


@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_a_weight_that_is_not_contiguous_moves_like_one_that_is(rng):
    plain = torch.zeros(40, 50)
    turned = torch.zeros(50, 40).T
    perturb([plain], 9, 0.5, rng=rng)
    perturb([turned], 9, 0.5, rng=rng)
    assert torch.equal(plain, turned)


def test_in_place_restore_drifts_and_exact_does_not(tiny_net):
    """With lr 0, 300 evaluations leave the weights bit for bit as they were only where they are never written."""
    for restore, drifts in (("inplace", True), ("exact", False)):
        net, x, y = tiny_net
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = MeZO(net.named_parameters(), lr=0.0, model=net, restore=restore)
        for _ in range(300):
            optimizer.step(lambda net=net, x=x, y=y: net(x, y))
        same = all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert same is not drifts


@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_exact_and_in_place_evaluations_see_the_same_weights(tiny_net, rng):
    net, x, y = tiny_net
    fly = MeZO(net.named_parameters(), lr=0.0, model=net, restore="exact", rng=rng)
    loss = fly.step(lambda: net(x, y))
    perturb(list(net.named_parameters()), fly.last.seed, 1e-3, rng=rng)
    assert net(x, y).item() == pytest.approx(loss, abs=1e-6)


def test_tied_weights_are_perturbed_once():
    """An embedding that is the output layer too moves by one z, seen by both."""
    net = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11, bias=False))
    net[1].weight = net[0].weight
    optimizer = MeZO(net.named_parameters(), lr=0.1, model=net)
    assert len(optimizer.named) == 1
    before = net[0].weight.detach().clone()
    optimizer.step(lambda: net(torch.arange(11)).square().mean())
    (z,) = directions([before], optimizer.last.seed)
    assert torch.allclose(net[0].weight, before - 0.1 * optimizer.last.projected_gradient * z, atol=1e-7)


def test_a_mask_keeps_the_other_elements_numbers():
    full, half = torch.zeros(1000), torch.zeros(1000)
    keep = torch.arange(1000) % 2 == 0
    for rng in ("torch", "counter"):
        full.zero_(), half.zero_()
        perturb([full], 3, 1.0, rng=rng)
        perturb([half], 3, 1.0, rng=rng, mask=Mask.fixed([keep]))
        assert torch.equal(half[keep], full[keep])
        assert not half[~keep].any()


def test_n_estimates_are_averaged(tiny_net):
    net, x, y = tiny_net
    start = [p.detach().clone() for p in net.parameters()]
    applied = []
    optimizer = MeZO(net.named_parameters(), lr=1e-2, n=4, model=net)
    optimizer._apply, plain = lambda step: applied.append(step), optimizer._apply
    optimizer.step(lambda: net(x, y))
    assert len(applied) == 4
    assert len({step.seed for step in applied}) == 4
    assert {step.lr for step in applied} == {1e-2 / 4}
    assert optimizer.evaluations == 8
    for step in applied:
        plain(step)
    expected = [a.clone() for a in start]
    for step in applied:
        for tensor, z in zip(expected, directions(expected, step.seed), strict=True):
            tensor.sub_(z, alpha=step.lr * step.projected_gradient)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(expected, net.parameters(), strict=True))


@pytest.mark.parametrize(("momentum", "betas"), [(0.9, None), (0.0, (0.9, 0.8))])
@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_moments_from_the_log_are_the_moments_that_were_kept(tiny_net, momentum, betas, rng):
    ends = []
    for kind in ("stored", "recomputed"):
        net, x, y = tiny_net
        state = {k: v.clone() for k, v in net.state_dict().items()}
        optimizer = MeZO(
            net.named_parameters(), lr=1e-3, momentum=momentum, betas=betas, moments=kind, rng=rng, model=net
        )
        for _ in range(12):
            optimizer.step(partial(net, x, y))
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        net.load_state_dict(state)
    assert torch.allclose(*ends, atol=2e-5)


def test_layers_take_turns(tiny_net):
    net, x, y = tiny_net
    optimizer = MeZO(net.named_parameters(), lr=1e-2, layers=["l1", "l2"])
    before = net.l2.weight.detach().clone(), net.layer_norm.weight.detach().clone()
    optimizer.step(lambda: net(x, y))
    assert torch.allclose(before[0], net.l2.weight, atol=0)
    optimizer.step(lambda: net(x, y))
    assert not torch.equal(before[0], net.l2.weight)
    assert torch.equal(before[1], net.layer_norm.weight)


def test_one_point_needs_one_evaluation_and_the_last_loss(tiny_net):
    net, x, y = tiny_net
    optimizer = MeZO(net.named_parameters(), lr=0.0, one_point=True, model=net)
    first = optimizer.step(lambda: net(x, y))
    assert optimizer.last.projected_gradient == 0
    second = optimizer.step(lambda: net(x, y))
    assert optimizer.last.projected_gradient == pytest.approx((second - first) / 1e-3, rel=1e-5)
    assert optimizer.evaluations == 2


def test_modified_estimators_scale_perturbation_and_update(tiny_net):
    net, x, y = tiny_net
    scales = [2.0] * len(list(net.parameters()))
    steps = {}
    for rule in ("variance", "expectation"):
        state = {k: v.clone() for k, v in net.state_dict().items()}
        optimizer = MeZO(net.named_parameters(), lr=1e-2, scales=scales, scales_rule=rule, model=net)
        optimizer.step(partial(net, x, y))
        steps[rule] = {k: v - state[k] for k, v in net.state_dict().items()}
        net.load_state_dict(state)
    assert torch.allclose(steps["variance"]["l1.weight"], 2 * steps["expectation"]["l1.weight"], atol=1e-6)


def test_stochastic_rounding_moves_bf16_weights_in_the_mean():
    weights = torch.full((200_000,), 0.3, dtype=torch.bfloat16)
    from mezo.rounding import round_stochastically

    wide = weights.float() + 1e-4  # a tenth of the spacing of bf16 at 0.3
    rounded = round_stochastically(wide, torch.bfloat16, torch.Generator().manual_seed(0))
    assert set(rounded.unique().tolist()) == {
        float(weights[0]),
        float(torch.nextafter(weights[:1], torch.tensor([1.0], dtype=torch.bfloat16))),
    }
    assert rounded.float().mean().item() == pytest.approx(wide[0].item(), abs=1e-5)
    assert torch.equal(wide.to(torch.bfloat16), weights)


def test_projected_gradient_is_a_number_of_the_losses():
    assert projected_gradient(torch.tensor(1.5), 1.0, 0.25) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps=0 must be a positive number"),
        ({"lr": -1}, "lr=-1 must be"),
        ({"n": 0}, "n=0 must be"),
        ({"rng": "philox"}, "rng='philox' is unknown: choose torch or counter"),
        ({"restore": "exact"}, "restore=exact needs model"),
        ({"momentum": 2.0}, "momentum=2.0"),
        ({"layers": ["nothing"]}, "no parameter's name matches 'nothing'"),
        ({"scales": [1.0]}, "scales has 1 numbers for 6 parameters"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny_net, options, message):
    net, *_ = tiny_net
    with pytest.raises(InputError, match=message):
        MeZO(net.named_parameters(), **{"lr": 1e-3, **options})


def test_parameters_that_cannot_be_trained_are_named(tiny_net):
    net, *_ = tiny_net
    with pytest.raises(InputError, match=r"give model\.named_parameters"):
        MeZO(net.parameters(), lr=1e-3)
    for p in net.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        MeZO(net.named_parameters(), lr=1e-3)


def test_a_closure_that_is_not_a_function_of_the_weights_is_refused(tiny_net):
    net, x, y = tiny_net
    noisy = torch.nn.Dropout(0.5)
    with pytest.raises(InputError, match="for the same weights: put the model in eval mode"):
        MeZO(net.named_parameters(), lr=1e-3).step(lambda: net(noisy(x), y))


@pytest.mark.parametrize("restore", ["inplace", "exact"])
def test_a_loss_that_is_not_finite_stops_with_the_weights_as_they_were(tiny_net, restore):
    net, x, y = tiny_net
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = MeZO(net.named_parameters(), lr=1e-3, model=net, restore=restore, check=False)
    with pytest.raises(FloatingPointError, match=r"step 0, seed 534895718: loss nan"):
        optimizer.step(lambda: net(x, y) * float("nan"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, net.parameters(), strict=True))


def test_attention_that_hides_its_weights_is_refused_for_exact_evaluation():
    attention = torch.nn.MultiheadAttention(8, 2)
    with pytest.raises(InputError, match="restore=inplace"):
        MeZO(attention.named_parameters(), lr=1e-3, model=attention)


def test_losses_that_do_not_change_are_told(tiny_net, caplog):
    net, *_ = tiny_net
    optimizer = MeZO(net.named_parameters(), lr=0.0, model=net)
    for _ in range(100):
        optimizer.step(lambda: torch.tensor(1.0))
    assert "projected gradients are zero or equal" in caplog.text


def test_a_scheduler_changes_the_rate(tiny_net):
    net, x, y = tiny_net
    optimizer = MeZO(net.named_parameters(), lr=1.0, model=net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for expected in (1.0, 0.5, 0.25):
        optimizer.step(lambda: net(x, y))
        assert optimizer.last.lr == expected
        schedule.step()


def test_seeds_can_come_from_elsewhere(tiny_net):
    net, x, y = tiny_net
    np.random.seed(42)
    optimizer = MeZO(net.named_parameters(), lr=1e-3, model=net, seeds=lambda: np.random.randint(1_000_000_000))
    optimizer.step(lambda: net(x, y))
    assert optimizer.last.seed == 534895718
