"""Two processes over gloo: half the examples each, the same trajectory as one process with all of them."""

import subprocess
import sys
from pathlib import Path

import torch

from mezo import MeZO

HERE = Path(__file__).parent

WORKER = """
import sys
sys.path.insert(0, {here!r})
from conftest import TinyNet
import torch, torch.distributed as dist
from mezo import MeZO
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed({model_seed})
net = TinyNet().double()
torch.manual_seed(1)
x, y = torch.randn(12, 8).double(), torch.arange(12) % 3
# Unequal shares: 8 examples on one rank, 4 on the other.
mine = slice(0, 8) if rank == 0 else slice(8, 12)
optimizer = MeZO(net.named_parameters(), lr=1e-1, model=net, process_group="default", seed={seed})
for _ in range(30):
    optimizer.step(lambda: (net(x[mine], y[mine]), len(y[mine])))
torch.save([p.detach() for p in net.parameters()], {out!r} + str(rank))
dist.destroy_process_group()
"""


def launch(tmp_path, model_seed="0", seed="42"):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(HERE), out=str(tmp_path / "rank"), model_seed=model_seed, seed=seed))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_two_ranks_are_one_joint_batch(tmp_path, tiny_net):
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{k}", weights_only=True) for k in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    net, *_ = tiny_net
    torch.manual_seed(0)
    net = type(net)().double()  # so that the order of additions does not show
    torch.manual_seed(1)
    x, y = torch.randn(12, 8).double(), torch.arange(12) % 3
    optimizer = MeZO(net.named_parameters(), lr=1e-1, model=net)
    for _ in range(30):
        optimizer.step(lambda: net(x, y))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(first, net.parameters(), strict=True))


def test_ranks_with_other_weights_are_refused(tmp_path):
    done = launch(tmp_path, model_seed="rank")
    assert done.returncode != 0
    assert "ranks 0 and 1 differ in the weights" in done.stderr


def test_ranks_with_other_seeds_are_refused(tmp_path):
    done = launch(tmp_path, seed="42 + rank")
    assert done.returncode != 0
    assert "give all ranks the same seed" in done.stderr
