"""The objective against its definition written out, and against torch's own cosine."""

import math

import pytest
import torch
import torch.nn.functional as F

from simcse.contrastive import contrastive_loss, similarity_logits


@pytest.fixture
def rows() -> list[torch.Tensor]:
    return [torch.randn(6, 10) for _ in range(3)]


def definition(anchor, positive, negative, temperature, alpha) -> torch.Tensor:
    """Eq. 8, term by term."""
    total = 0.0
    for i in range(len(anchor)):
        score = [math.exp(F.cosine_similarity(anchor[i], other, dim=0) / temperature) for other in positive]
        hard = [math.exp(F.cosine_similarity(anchor[i], other, dim=0) / temperature) for other in negative]
        hard[i] *= alpha
        total -= math.log(score[i] / (sum(score) + sum(hard)))
    return torch.tensor(total / len(anchor))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_loss_is_equation_8(rows, alpha):
    loss = contrastive_loss(*rows, temperature=0.3, hard_negative_weight=math.log(alpha))
    torch.testing.assert_close(loss, definition(*rows, 0.3, alpha))


def test_pair_loss_is_the_broadcast_formulation(rows):
    anchor, positive, _ = rows
    broadcast = F.cosine_similarity(anchor[:, None], positive[None], dim=-1) / 0.05
    torch.testing.assert_close(contrastive_loss(anchor, positive), F.cross_entropy(broadcast, torch.arange(6)))


def test_gradient_is_that_of_the_broadcast_formulation(rows):
    ours = [row.clone().requires_grad_() for row in rows]
    theirs = [row.clone().requires_grad_() for row in rows]
    contrastive_loss(*ours, hard_negative_weight=1.0).backward()
    logits = torch.cat([F.cosine_similarity(theirs[0][:, None], other[None], dim=-1) for other in theirs[1:]], 1) / 0.05
    F.cross_entropy(logits + F.pad(torch.eye(6), (6, 0)), torch.arange(6)).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_hard_negatives_enter_the_denominator(rows):
    anchor, positive, negative = rows
    assert contrastive_loss(anchor, positive, negative) > contrastive_loss(anchor, positive)
    # Those of other examples too: a hard negative equal to anchor 0 raises the loss of anchor 0 wherever it stands.
    moved = negative.clone()
    moved[5] = anchor[0]
    row_losses = [
        F.cross_entropy(similarity_logits(anchor, positive, hard), torch.arange(6), reduction="none")[0]
        for hard in (negative, moved)
    ]
    assert row_losses[1] > row_losses[0] + 0.1


def test_weight_touches_only_the_own_hard_negative(rows):
    difference = similarity_logits(*rows, hard_negative_weight=1.5) - similarity_logits(*rows)
    torch.testing.assert_close(difference, 1.5 * F.pad(torch.eye(6), (6, 0)), rtol=0, atol=1e-5)


def test_several_kinds_of_hard_negatives_join_the_denominator_with_their_own_weight(rows):
    anchor, positive, negative = rows
    neutral = torch.randn(6, 10)
    logits = similarity_logits(anchor, positive, torch.stack([negative, neutral]), hard_negative_weight=1.0)
    assert logits.shape == (6, 18)
    one_kind = similarity_logits(anchor, positive, neutral, hard_negative_weight=1.0)
    torch.testing.assert_close(logits[:, 12:], one_kind[:, 6:])


def test_anchors_are_not_negatives_of_each_other(rows):
    anchor, positive, _ = rows
    same = anchor.clone()
    same[1] = anchor[0]
    before, after = similarity_logits(anchor, positive), similarity_logits(same, positive)
    torch.testing.assert_close(before[[0, 2, 3, 4, 5]], after[[0, 2, 3, 4, 5]])


def test_dot_is_the_raw_product_without_temperature(rows):
    anchor, positive, _ = rows
    expected = F.cross_entropy(anchor @ positive.T, torch.arange(6))
    for temperature in (0.05, 1.0):
        torch.testing.assert_close(
            contrastive_loss(anchor, positive, similarity="dot", temperature=temperature), expected
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(rows, dtype):
    half = [row.to(dtype).requires_grad_() for row in rows]
    loss = contrastive_loss(*half, temperature=0.001)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(*[row.detach().float() for row in half], temperature=0.001))
    loss.backward()
    assert half[0].grad.dtype == dtype


def test_autocast_does_not_reach_the_similarities(rows):
    expected = contrastive_loss(*rows, temperature=0.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(*rows, temperature=0.001)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_zero_vectors_give_cosine_zero_and_finite_gradients():
    anchor, positive = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4)
    loss = contrastive_loss(anchor, positive)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))
    assert anchor.grad.isfinite().all()


def test_no_tensor_of_batch_by_batch_by_hidden_is_made():
    """Every tensor that autograd keeps is at most (batch, 2 batch) or (2 batch, hidden)."""
    batch, hidden = 64, 32
    sizes = []
    rows = [torch.randn(batch, hidden, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        contrastive_loss(*rows).backward()
    assert max(sizes) <= 2 * batch * max(batch, hidden)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"similarity": "cosine"}, "similarity is 'cosine'.*cos, dot"),
        ({"hard_negative_weight": 1.0}, "no hard negatives"),
        ({"hard_negative_weight": math.inf}, "hard_negative_weight is inf"),
    ],
)
def test_unusable_settings_are_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(rows[0], rows[1], **options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(6, 10), (5, 10)], "positive is"),
        ([(6, 10), (6, 9)], "positive is"),
        ([(6, 10), (6, 10), (5, 10)], "hard_negative is"),
        ([(6, 10), (6, 10), (2, 5, 10)], "hard_negative is"),
        ([(6, 2, 10), (6, 2, 10)], "anchor must be"),
        ([(0, 10), (0, 10)], "at least one row"),
    ],
)
def test_mismatched_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(*[torch.randn(shape) for shape in shapes])
