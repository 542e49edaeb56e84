"""Every pooler against its definition, and blind to padding on either side."""

import pytest
import torch

from simcse.pooling import POOLERS, needs_all_layers, pool


@pytest.fixture
def layers() -> tuple[torch.Tensor, ...]:
    """Four layers (embeddings first) of 3 rows, 7 positions, 5 units."""
    return tuple(torch.randn(3, 7, 5) for _ in range(4))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])


def mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])


def test_poolers_are_what_the_paper_says(layers, mask):
    torch.testing.assert_close(pool(layers, mask, "cls"), layers[3][:, 0])
    torch.testing.assert_close(pool(layers, mask, "cls_before_pooler"), layers[3][:, 0])
    torch.testing.assert_close(pool(layers, mask, "avg"), mean(layers[3], mask))
    torch.testing.assert_close(pool(layers, mask, "avg_top2"), mean((layers[3] + layers[2]) / 2, mask))
    last = torch.stack([layers[3][0, 6], layers[3][1, 2], layers[3][2, 0]])
    torch.testing.assert_close(pool(layers, mask, "last"), last)


def test_first_last_counts_blocks_and_static_last_counts_embeddings(layers, mask):
    torch.testing.assert_close(pool(layers, mask, "avg_first_last"), mean((layers[1] + layers[3]) / 2, mask))
    torch.testing.assert_close(pool(layers, mask, "avg_static_last"), mean((layers[0] + layers[3]) / 2, mask))


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(layers, pooler, side):
    rubbish = torch.full((3, 4, 5), 1e4)
    padded = [torch.cat([rubbish, layer] if side == "left" else [layer, rubbish], dim=1) for layer in layers]
    ones, zeros = torch.ones(3, 7, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
    mask = torch.cat([zeros, ones] if side == "left" else [ones, zeros], dim=1)
    torch.testing.assert_close(pool(padded, mask, pooler), pool(layers, ones, pooler))


@pytest.mark.parametrize("pooler", [name for name in POOLERS if not needs_all_layers(name)])
def test_last_layer_alone_is_enough_where_no_other_is_read(layers, mask, pooler):
    assert torch.equal(pool(layers[-1], mask, pooler), pool(layers, mask, pooler))


@pytest.mark.parametrize("pooler", ["avg_top2", "avg_first_last", "avg_static_last"])
def test_one_layer_is_refused_where_two_are_needed(layers, mask, pooler):
    with pytest.raises(ValueError, match=f"'{pooler}' averages two layers"):
        pool(layers[-1], mask, pooler)


def test_long_rows_are_counted_exactly_in_bfloat16():
    hidden = torch.ones(1, 511, 2, dtype=torch.bfloat16)
    assert torch.equal(pool(hidden, torch.ones(1, 511, dtype=torch.long), "avg").float(), torch.ones(1, 2))


def test_unknown_pooler_is_named_with_the_known_ones(layers, mask):
    with pytest.raises(ValueError, match="pooler is 'mean', but must be one of cls, "):
        pool(layers, mask, "mean")
