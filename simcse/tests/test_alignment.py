"""Alignment, uniformity, spectrum and cosine bins against their definitions, and on the real STS-B sentences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simcse.alignment import alignment, cosine_by_gold_bin, normalized_spectrum, uniformity
from simcse.baselines import random_vectors
from simcse.senteval import load_sts


def naive_uniformity(x: torch.Tensor) -> float:
    return torch.pdist(F.normalize(x.double(), dim=1)).square().mul(-2).exp().mean().log().item()


def test_alignment_is_the_mean_squared_distance_on_the_sphere():
    x, y = torch.randn(7, 5), torch.randn(7, 5)
    expected = (F.normalize(x.double()) - F.normalize(y.double())).square().sum(1).mean().item()
    assert alignment(x, y) == pytest.approx(expected, abs=1e-12)
    assert alignment(x, x) == 0
    assert alignment(x, -x) == pytest.approx(4)


@pytest.mark.parametrize("tile", [1, 7, 50, 99, 100, 1024])
def test_uniformity_does_not_depend_on_the_tile(tile):
    x = torch.randn(100, 8)
    assert uniformity(x, tile=tile) == pytest.approx(naive_uniformity(x), abs=1e-12)


def test_uniformity_counts_repeated_sentences():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert uniformity(x) == pytest.approx(math.log((1 + 2 * math.exp(-4)) / 3))


def test_length_of_the_embeddings_does_not_matter():
    x, y = torch.randn(20, 8), torch.randn(20, 8)
    lengths = torch.rand(20, 1) * 300 + 1
    assert uniformity(x * lengths) == pytest.approx(uniformity(x), abs=1e-6)
    assert alignment(x * lengths, y) == pytest.approx(alignment(x, y), abs=1e-6)


def test_uniformity_of_many_sentences_fits_in_small_memory():
    """6,000 x 6,000 distances in float64 are 288 MB; no tensor of the computation may come near that."""
    x = torch.randn(6_000, 2)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel() * result.element_size())
            return result

    with Watch():
        value = uniformity(x, tile=512)
    assert largest <= 512 * 512 * 8
    assert -4 < value < 0


def test_vectors_without_direction_are_refused():
    x = torch.randn(3, 4)
    zero, nan = x.clone(), x.clone()
    zero[1], nan[2, 0] = 0, math.nan
    for bad in (zero, nan):
        with pytest.raises(ValueError, match="1 of 3 embeddings are zero, NaN or inf"):
            uniformity(bad)
    with pytest.raises(ValueError, match=r"x is \(3, 4\) but y is \(2, 4\)"):
        alignment(x, x[:2])
    with pytest.raises(ValueError, match="at least two"):
        uniformity(x[:1])
    with pytest.raises(ValueError, match=r"must be \(n, d\)"):
        uniformity(x[0])


def test_spectrum_is_that_of_the_normalised_matrix_whichever_side_is_longer():
    for shape in ((50, 6), (6, 50)):
        x = torch.randn(*shape) * 7
        values = torch.linalg.svdvals(F.normalize(x.double(), dim=1))
        torch.testing.assert_close(normalized_spectrum(x), values / values[0], atol=1e-7, rtol=0)


def test_spectrum_of_a_collapsed_encoder_is_a_single_value():
    spectrum = normalized_spectrum(torch.ones(10, 4))
    assert spectrum[0] == 1 and spectrum[1:].max() < 1e-6


def test_cosine_bins_hold_every_pair_once_and_the_top_score_in_the_last():
    x = torch.randn(6, 3)
    gold = torch.tensor([0.0, 0.99, 1.0, 3.5, 4.0, 5.0])
    bins = cosine_by_gold_bin(x, x, gold)
    assert [len(b) for b in bins] == [2, 1, 0, 1, 2]
    assert all(torch.allclose(b, torch.ones(len(b), dtype=torch.float64)) for b in bins)
    with pytest.raises(ValueError, match=r"must lie in \[0, 5.0\]"):
        cosine_by_gold_bin(x, x, gold + 1)


@pytest.mark.mirror
@pytest.mark.parametrize(
    ("splits", "positives", "sentences", "align", "uniform"),
    [
        (["dev"], 208, 3000, 0.547659, -3.265323),
        (["test"], 231, 2758, 0.530986, -3.232241),
        (["train", "dev", "test"], 1491, 17256, 0.568222, -3.359940),
    ],
)
def test_reference_values_on_stsb(mirror: Path, splits, positives, sentences, align, uniform):
    data_dir = mirror / "simcse/SentEval/data/downstream"
    parts = [load_sts(data_dir, ["STSBenchmark"], split)["STSBenchmark"][split] for split in splits]
    first, second = (
        torch.from_numpy(random_vectors([text for part in parts for text in getattr(part, side)]))
        for side in ("first", "second")
    )
    close = torch.from_numpy(np.concatenate([part.gold for part in parts]) > 4)
    assert (int(close.sum()), 2 * len(first)) == (positives, sentences)
    assert alignment(first[close], second[close]) == pytest.approx(align, abs=1e-5)
    assert uniformity(torch.cat([first, second])) == pytest.approx(uniform, abs=1e-5)
