"""A model as a list of numbers: replayed bit for bit, refused when it is not what it says, enough to go on from."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mezo import MeZO
from mezo.spsa import Mask, perturb
from mezo.trajectory import RECORD, Step, apply_steps, read, replay
from shared import InputError

HERE = Path(__file__).parent


def train(net, x, y, path, steps=40, **options):
    start = {key: value.clone() for key, value in net.state_dict().items()}
    options = {"lr": 1e-2, "weight_decay": 0.1, **options}
    optimizer = MeZO(net.named_parameters(), model=net, trajectory=path, base="tiny", **options)
    for _ in range(steps):
        optimizer.step(partial(net, x, y))
    optimizer.close()
    return start, {key: value.clone() for key, value in net.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_replay_gives_the_trained_weights_bit_for_bit(tiny_net, tmp_path, rng):
    net, x, y = tiny_net
    start, end = train(net, x, y, tmp_path / "run.mzt", rng=rng)
    net.load_state_dict(start)
    assert replay(net, tmp_path / "run.mzt") == 40
    assert same(net.state_dict(), end)
    assert (tmp_path / "run.mzt").stat().st_size < 2000
    assert len(read(tmp_path / "run.mzt")[1]) == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rng", ["torch", "counter"])
def test_many_steps_per_pass_are_the_same_as_one_after_the_other(rng, dtype):
    """Sizes that are no multiples of anything, more steps than fit one pass, decay on one of the two."""
    params = [torch.linspace(-1, 1, 150_001).to(dtype), torch.linspace(0, 2, 7).to(dtype)]
    steps = [Step(seed, 0.5 - seed % 3, 1e-3) for seed in range(300)]
    together = [p.clone() for p in params]
    apply_steps(together, steps, rng, 0.1, [True, False])
    for step in steps:
        params[0].mul_(1 - step.lr * 0.1)
        perturb(params, step.seed, -step.lr * step.projected_gradient, rng=rng)
    assert all(torch.equal(a, b) for a, b in zip(params, together, strict=True))


def test_the_steps_cannot_be_exchanged_when_weights_decay(tiny_net, tmp_path):
    params = torch.linspace(-1, 1, 1000), torch.linspace(-1, 1, 1000)
    steps = [Step(1, 5.0, 0.1), Step(2, -3.0, 0.1)]
    apply_steps([params[0]], steps, "counter", 0.5)
    apply_steps([params[1]], steps[::-1], "counter", 0.5)
    assert not torch.allclose(*params, atol=1e-3)


@pytest.fixture
def run(tiny_net, tmp_path):
    """(network as it was before training, file)."""
    net, x, y = tiny_net
    start, _ = train(net, x, y, tmp_path / "run.mzt", steps=5)
    net.load_state_dict(start)
    return net, tmp_path / "run.mzt"


def header_length(path: Path) -> int:
    return len(path.read_bytes().split(b"\n")[0]) + 1


def test_a_truncated_file_is_refused_by_number(run):
    net, path = run
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="truncated in record 4"):
        replay(net, path)


def test_reordered_changed_and_missing_records_are_refused(run):
    net, path = run
    whole, begin, size = path.read_bytes(), header_length(path), RECORD.size
    records = [whole[begin + k * size : begin + (k + 1) * size] for k in range(5)]
    changed = bytes([records[2][0] ^ 1]) + records[2][1:]
    for body, number in (
        ([records[1], records[0], *records[2:]], 0),
        ([*records[:2], changed, *records[3:]], 2),
        ([*records[:3], records[4]], 3),
    ):
        path.write_bytes(whole[:begin] + b"".join(body))
        with pytest.raises(InputError, match=f"record {number} is changed, missing or out of order"):
            replay(net, path)


def test_a_changed_header_breaks_the_chain(run):
    net, path = run
    path.write_bytes(path.read_bytes().replace(b'"weight_decay": 0.1', b'"weight_decay": 0.2'))
    with pytest.raises(InputError, match="record 0"):
        replay(net, path)


def test_foreign_files_and_foreign_models_are_refused(run, tmp_path):
    net, path = run
    other = tmp_path / "other.mzt"
    other.write_text("step,loss\n1,2\n")
    with pytest.raises(InputError, match="is not a trajectory of this program"):
        replay(net, other)
    with pytest.raises(InputError, match=r"cannot be read: No such file"):
        replay(net, tmp_path / "none.mzt")
    with torch.no_grad():
        net.l1.bias += 1e-6
    with pytest.raises(InputError, match=r"weights are not those of its base model \(tiny\)"):
        replay(net, path)
    net.l2 = torch.nn.Linear(4, 2)
    with pytest.raises(InputError, match=r"l2.weight is \[2, 4\] float32 here, \[3, 4\] float32 there"):
        replay(net, path)
    del net.l2
    with pytest.raises(InputError, match=r"no trainable tensor l2.weight \(2 missing\)"):
        replay(net, path)


def test_a_run_with_other_settings_does_not_append_to_the_file(run, tiny_net):
    net, path = run
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"belongs to another run \(weight_decay differ\)"):
        MeZO(net.named_parameters(), lr=1e-2, weight_decay=0.0, model=net, trajectory=path, base="tiny")
    assert path.read_bytes() == before


VARIANTS = [
    {"momentum": 0.9},
    {"betas": (0.9, 0.99), "moments": "recomputed"},
    {"n": 3},
    {"n": 2, "restore": "inplace"},
    {"n": lambda step: 1 + step % 3, "momentum": 0.5},
    {"layers": ["l1", "layer_norm|l2"], "restore": "inplace"},
    {"scales": [1.0, 2.0, 3.0, 0.5, 0.25, 1.5], "sign": True},
    {"master": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o))
def test_runs_of_every_kind_go_on_from_their_file(tiny_net, tmp_path, options):
    """Cut behind a record that may be in the middle of a step, then run to the end: the weights of an uncut run."""
    net, x, y = tiny_net
    start, end = train(net, x, y, tmp_path / "whole.mzt", steps=12, **options)
    whole = (tmp_path / "whole.mzt").read_bytes()
    first = header_length(tmp_path / "whole.mzt")
    (tmp_path / "cut.mzt").write_bytes(whole[: first + 7 * RECORD.size + 11])
    net.load_state_dict(start)
    optimizer = MeZO(
        net.named_parameters(), lr=1e-2, weight_decay=0.1, trajectory=tmp_path / "cut.mzt", base="tiny",
        **{"model": net, **options},
    )  # fmt: skip
    assert 2 <= optimizer.steps_done <= 7
    while optimizer.steps_done < 12:
        optimizer.step(partial(net, x, y))
    optimizer.close()
    assert same(net.state_dict(), end)
    assert (tmp_path / "cut.mzt").read_bytes() == whole
    net.load_state_dict(start)
    if callable(options.get("n")):
        with pytest.raises(InputError, match="n was a function"):
            replay(net, tmp_path / "whole.mzt")
    else:
        replay(net, tmp_path / "whole.mzt")
        assert same(net.state_dict(), end)


def test_what_scalars_alone_do_not_determine_has_no_trajectory(tiny_net, tmp_path):
    net, x, y = tiny_net
    with pytest.raises(InputError, match="a mask cannot be replayed"):
        MeZO(net.named_parameters(), lr=1e-2, trajectory=tmp_path / "x.mzt", mask=Mask.fixed([None] * 6))
    start, _ = train(net, x, y, tmp_path / "one.mzt", steps=2, one_point=True)
    net.load_state_dict(start)
    options = {"model": net, "weight_decay": 0.1, "base": "tiny", "trajectory": tmp_path / "one.mzt"}
    again = MeZO(net.named_parameters(), lr=1e-2, one_point=True, **options)
    with pytest.raises(InputError, match="which no file holds: set loss_before"):
        again.step(partial(net, x, y))
    train(net, x, y, tmp_path / "momentum.mzt", steps=2, momentum=0.9)
    with pytest.raises(InputError, match=r"belongs to another run \(.*update.* differ\)"):
        MeZO(net.named_parameters(), lr=1e-2, weight_decay=0.1, trajectory=tmp_path / "momentum.mzt", base="tiny")


KILLED = """
import sys, time
from functools import partial
sys.path.insert(0, {here!r})
from conftest import TinyNet
import numpy as np, torch
from mezo import MeZO
torch.manual_seed(0)
net = TinyNet()
x, y = torch.randn(16, 8), torch.arange(16) % 3
optimizer = MeZO(net.named_parameters(), lr=1e-2, model=net, trajectory={path!r}, base="tiny")
while optimizer.steps_done < 300:
    optimizer.step(partial(net, x, y))
    time.sleep({pause})
optimizer.close()
torch.save([p.detach() for p in net.parameters()], {out!r})
"""


def test_a_killed_run_goes_on_from_its_trajectory_alone(tmp_path):
    """Killed twice with SIGKILL, then run to its end: the file and the weights of a run that was never killed."""
    whole, cut = tmp_path / "whole.mzt", tmp_path / "cut.mzt"

    def start(path, out, pause):
        code = KILLED.format(here=str(HERE), path=str(path), out=str(out), pause=pause)
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)

    first = start(whole, tmp_path / "whole.pt", 0)
    for wanted in (20, 90):
        process = start(cut, tmp_path / "cut.pt", 0.01)
        deadline = time.monotonic() + 600
        while not (cut.exists() and (cut.stat().st_size - header_length(cut)) // RECORD.size >= wanted):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with cut.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b"\x01\x02\x03")
    assert start(cut, tmp_path / "cut.pt", 0).wait() == 0
    assert first.wait() == 0
    assert cut.read_bytes() == whole.read_bytes()
    ends = [torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "cut.pt")]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_header_says_what_is_needed_to_find_the_base(run):
    _, path = run
    header = json.loads(path.read_bytes().split(b"\n")[0])
    assert (header["base"], header["rng"], header["device"]) == ("tiny", "torch", "cpu")
    assert header["names"][0] == "l1.weight"
