"""Counter-based normal numbers: the generator is the published one, the numbers are normal, every way gives the
same."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from mezo.gaussian import BLOCK, LANE, _add_in_torch, _philox, add_normal_, normal
from mezo.gaussian_cpu import fill_normal

SEED = 2**40 + 12345


def words(counter, key):
    out = _philox([torch.tensor([c]) for c in counter], key[0] | key[1] << 32)
    return [int(word) for word in out]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    """Random123's kat_vectors for philox4x32, 10 rounds."""
    assert [f"{word:08x}" for word in words(counter, key)] == expected.split()


def test_numba_and_torch_agree_in_every_bit():
    for parameter, start, count in ((0, 0, 3 * BLOCK), (7, 1, 1), (2, BLOCK - 3, 5), (1, 12_345, 2 * BLOCK + 17)):
        out = np.empty(count, np.float32)
        fill_normal(out, SEED & 0xFFFFFFFF, SEED >> 32, parameter, start, 2)
        assert np.array_equal(out.view(np.int32), normal(SEED, parameter, start, count).view(torch.int32).numpy())


def test_the_kernel_agrees_in_every_bit():
    """The Triton kernel, run by Triton's interpreter; in a process of its own, as the switch is read at import."""
    pytest.importorskip("triton")
    script = """
import torch
from mezo.gaussian import _add_in_torch
from mezo.gaussian_cuda import add_normal_cuda_
for dtype in (torch.float32, torch.float16):
    a = torch.linspace(-1, 1, 9000).to(dtype); b = a.clone()
    add_normal_cuda_(a, 2**40 + 12345, 5, 4000, 0.37)
    _add_in_torch(b, 2**40 + 12345, 5, 4000, 0.37)
    assert torch.equal(a, b), dtype
print("same")
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "same" in done.stdout, done.stderr[-2000:]


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_in_every_bit():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        here = torch.linspace(-1, 1, 300_001).to(dtype)
        there = here.cuda()
        add_normal_(here, SEED, 3, 77, 0.01)
        add_normal_(there, SEED, 3, 77, 0.01)
        assert torch.equal(here, there.cpu())


def test_any_cut_and_any_number_of_threads_give_the_same_numbers():
    whole = torch.zeros(100_000)
    add_normal_(whole, SEED, 4, 0, 1.0)
    parts = torch.zeros(100_000)
    for begin, end in ((0, 1), (1, 5000), (5000, 77_777), (77_777, 100_000)):
        add_normal_(parts[begin:end], SEED, 4, begin, 1.0)
    assert torch.equal(whole, parts)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.zeros(100_000)
        add_normal_(alone, SEED, 4, 0, 1.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, alone)


def test_the_numbers_are_standard_normal_and_independent():
    """Moments, distribution, and no correlation between neighbours, lanes, parameters or seeds; 5 sigma bounds."""
    count = 2_000_000
    z = torch.zeros(count)
    add_normal_(z, 11, 0, 0, 1.0)
    z = z.double().numpy()
    bound = 5 / np.sqrt(count)
    assert abs(z.mean()) < bound
    assert abs(z.var() - 1) < bound * np.sqrt(2)
    assert abs((z**3).mean()) < bound * np.sqrt(15)
    assert abs((z**4).mean() - 3) < bound * np.sqrt(96)
    assert stats.kstest(z[:200_000], "norm").pvalue > 1e-4
    for lag in (1, LANE, 2 * LANE, BLOCK):
        assert abs((z[:-lag] * z[lag:]).mean()) < bound * 1.01
        assert abs((z[:-lag] ** 2 * z[lag:] ** 2).mean() - 1) < bound * np.sqrt(8) * 1.01
    for seed, parameter in ((12, 0), (11, 1), (11 + 2**32, 0)):
        other = torch.zeros(count)
        add_normal_(other, seed, parameter, 0, 1.0)
        assert abs((z * other.double().numpy()).mean()) < bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_rounded_once(dtype):
    start = torch.linspace(-2, 2, 10_000).to(dtype)
    fast, reference = start.clone(), start.clone()
    add_normal_(fast, SEED, 1, 5, 1e-2)
    _add_in_torch(reference, SEED, 1, 5, 1e-2)
    assert torch.equal(fast, reference)
    exact = start.double() + normal(SEED, 1, 5, 10_000).double() * float(np.float32(1e-2))
    if dtype != torch.float64:
        spacing = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
        assert ((fast.double() - exact).abs() <= 0.51 * spacing + 1e-7).all()


def test_nothing_is_a_valid_piece():
    empty = torch.zeros(0)
    add_normal_(empty, 1, 0, 0, 1.0)
    assert normal(1, 0, 0, 0).shape == (0,)
