"""Two real processes under DistributedDataParallel against one process on the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

from simcse.gather import gather_rows
from simcse.model import ContrastiveModel, SentenceEncoder

WORLD = 2
CONFIG = BertConfig(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
CASES = {
    "pairs": (2, {}),
    "triplets": (3, {"hard_negative_weight": 1.0}),
    "triplets_cached": (3, {"grad_cache_chunk": 4}),
    "fixed_mask_cached": (2, {"grad_cache_chunk": 4, "fixed_mask": True}),
    "mlm_cached": (2, {"mlm_weight": 0.1, "grad_cache_chunk": 3}),
}


def joint_batch(num_sent: int, mlm: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 60, (8, num_sent, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(3, 10, (8, num_sent, 1), generator=generator)).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if mlm:
        # One target per row: both halves have equally many, so that the mean of their means is the joint mean.
        labels = torch.full_like(ids, -100)
        labels[:, :, 1] = ids[:, :, 1]
        batch |= {"mlm_input_ids": ids * mask, "mlm_labels": labels}
    return batch


def loss_and_gradients(batch: dict, options: dict, ddp: bool = False) -> tuple[float, torch.Tensor]:
    torch.manual_seed(11)
    encoder = SentenceEncoder.from_config(CONFIG, mlm="mlm_weight" in options)
    model = ContrastiveModel(encoder, **options).train()
    wrapped = DistributedDataParallel(model) if ddp else model  # has to outlive the backward, or nothing is averaged
    loss = wrapped(**batch)["loss"]
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def measure(rank: int, folder: Path) -> None:
    """What one of the processes does; all of it in one start, since importing takes longer than computing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    measured = {}
    for name, (num_sent, options) in CASES.items():
        batch = joint_batch(num_sent, "mlm_weight" in options)
        half = {key: value[rank * 4 : rank * 4 + 4] for key, value in batch.items()}
        measured[name] = loss_and_gradients(half, options, ddp=True)
        if "mlm_weight" not in options:
            measured[f"{name}_released"] = loss_and_gradients(half, {**options, "released_ddp_scale": True}, ddp=True)
    model = ContrastiveModel(SentenceEncoder.from_config(CONFIG)).eval()
    measured["evaluation_rows"] = len(model(**half)["logits"])
    measured["order"] = gather_rows(torch.full((2, 3), float(rank)))[:, 0].tolist()
    try:
        gather_rows(torch.ones(3 + rank, 2))
    except ValueError as error:
        measured["unequal"] = str(error)
    torch.save(measured, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[dict]:
    """What each of two processes measured. They run this file: spawn cannot import a test module by its name."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(WORLD)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_have_the_gradient_of_one_on_the_joint_batch(trained, name):
    num_sent, options = CASES[name]
    loss, gradient = loss_and_gradients(joint_batch(num_sent, "mlm_weight" in options), options)
    for rank in range(WORLD):
        torch.testing.assert_close(trained[rank][name][1], gradient, rtol=1e-4, atol=1e-6)
    losses = [trained[rank][name][0] for rank in range(WORLD)]
    assert sum(losses) / WORLD == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", ["pairs", "triplets", "triplets_cached", "fixed_mask_cached"])
def test_loss_is_the_same_on_all_processes(trained, name):
    assert trained[0][name][0] == trained[1][name][0]


@pytest.mark.parametrize("name", ["pairs", "triplets", "triplets_cached", "fixed_mask_cached"])
def test_released_scale_is_exactly_one_half(trained, name):
    assert trained[0][f"{name}_released"][0] == trained[0][name][0]
    assert torch.equal(2 * trained[0][f"{name}_released"][1], trained[0][name][1])


def test_evaluation_does_not_gather(trained):
    assert [rank["evaluation_rows"] for rank in trained] == [4, 4]


def test_rows_come_in_rank_order(trained):
    assert [rank["order"] for rank in trained] == [[0.0, 0.0, 1.0, 1.0]] * 2


def test_unequal_batches_are_named_on_every_process(trained):
    for rank in trained:
        assert "(3, 2), (4, 2)" in rank["unequal"]
        assert "dataloader_drop_last=true" in rank["unequal"]


def test_one_process_is_the_identity():
    x = torch.ones(2, 3)
    assert gather_rows(x) is x


if __name__ == "__main__":
    measure(int(sys.argv[1]), Path(sys.argv[2]))
