"""The compiled numbers are torch's, bit for bit, whatever is drawn before and after and in whatever pieces."""

import random

import numpy as np
import pytest
import torch

from mezo import torch_stream
from mezo.spsa import perturb
from mezo.torch_stream import TorchStream, cuts, gives_torch_bits

SIZES = (1, 3, 15, 16, 17, 31, 32, 33, 600, 624, 640, 4096, 4099, 262_144, 262_159, 400_027, 1_000_003)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "torch"])
def side(request, monkeypatch):
    """Both sides must give the same, and the compiled one must be in use where it is offered."""
    if request.param == "torch":
        monkeypatch.setattr(torch_stream, "gives_torch_bits", lambda: False)
    elif not gives_torch_bits():
        pytest.skip("this torch makes other bits than the compiled loops (no AVX2, or another build): torch's are used")
    return request.param


@pytest.mark.parametrize("number_of_threads", [1, 2, 3])
def test_tensors_of_all_sizes_and_types_take_what_a_seeded_generator_gives(side, threads, number_of_threads):
    threads(number_of_threads)
    choose = random.Random(number_of_threads)
    for _ in range(6):
        types = (torch.float32,) * 5 + (torch.float64, torch.bfloat16, torch.float16)
        params = [torch.zeros(choose.choice(SIZES), dtype=choose.choice(types)) for _ in range(8)]
        seed = choose.randrange(2**62)
        generator = torch.Generator().manual_seed(seed)
        expected = [torch.empty_like(p).normal_(generator=generator) for p in params]
        perturb(params, seed, 1.0)
        assert all(torch.equal(p, z) for p, z in zip(params, expected, strict=True))
        stream = TorchStream(seed, "cpu")
        for p in params:
            stream.skip(p)
        after = torch.empty(50).normal_(generator=generator)
        assert torch.equal(stream.normal_(torch.empty(50)), after)
        if side == "compiled":
            assert stream.words is not None  # it drew those 50


def test_sums_are_those_of_torch_operations(side):
    start = torch.randn(100_003, generator=torch.Generator().manual_seed(1))
    ours, z = start.clone(), torch.empty_like(start).normal_(generator=torch.Generator().manual_seed(77))
    TorchStream(77, "cpu").add_normal_(ours, -3.7e-4)
    assert torch.equal(ours, start + z * -3.7e-4)


def test_pieces_are_the_whole(side):
    whole, parts = torch.zeros(100_007), torch.zeros(100_007)
    TorchStream(5, "cpu").add_normal_(whole, 0.5)
    stream = TorchStream(5, "cpu")
    for start, stop in cuts(parts, 4096):
        stream.add_normal_(parts[start:stop], 0.5)
    assert torch.equal(whole, parts)


def test_a_state_can_be_kept_and_taken_up_by_either_side(side):
    stream = TorchStream(9, "cpu")
    stream.skip(torch.empty(10_007))
    state = stream.get_state()
    generator = torch.Generator()
    generator.set_state(state)
    expected = torch.empty(999).normal_(generator=generator)
    stream.skip(torch.empty(50_000))
    assert torch.equal(stream.set_state(state).normal_(torch.empty(999)), expected)
    assert torch.equal(TorchStream(0, "cpu").set_state(state).normal_(torch.empty(999)), expected)


def test_other_bits_of_another_torch_turn_the_compiled_loops_off(monkeypatch):
    """A torch whose numbers differ in one last bit is believed, and drawn from."""
    if not gives_torch_bits():
        pytest.skip("the compiled loops are off on this machine")
    from mezo import mersenne_cpu

    draw = mersenne_cpu.draw

    def other(state, place, out, *rest):
        draw(state, place, out, *rest)
        out.view(np.int32)[-1] ^= 1

    gives_torch_bits.cache_clear()
    monkeypatch.setattr(mersenne_cpu, "draw", other)
    try:
        assert not gives_torch_bits()
        theirs = torch.empty(4096).normal_(generator=torch.Generator().manual_seed(3))
        assert torch.equal(TorchStream(3, "cpu").normal_(torch.empty(4096)), theirs)
    finally:
        gives_torch_bits.cache_clear()
