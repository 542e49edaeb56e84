"""Data parallel MeZO: every rank holds the weights and its own examples; what they exchange per step is two losses.

Gradients never exist, so there is nothing to reduce but the scalars: with the same seed and the same mean loss every
rank applies the same update to the same weights and stays equal to the others bit for bit. DeepSpeed or FSDP are not
needed for it (they shard what MeZO does not have); a model that does not fit one device is spread by `device_map` or
tensor parallelism, and its ranks count as one here.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mezo.trajectory import weights_sha256
from shared import InputError


class Ranks:
    """The process group of a run. Raises InputError where ranks have other parameters or other weights."""

    def __init__(self, group: Any, named: Sequence[tuple[str, Tensor]]) -> None:
        if not dist.is_initialized():
            raise InputError("process_group: torch.distributed is not initialised; start with torchrun")
        self.group = None if group == "default" else group
        self.device = named[0][1].device
        shapes = json.dumps([(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in named])
        mine = {
            "the list of parameters": hashlib.sha256(shapes.encode()).hexdigest(),
            "the weights": weights_sha256([tensor for _, tensor in named]),
        }
        everyone: list[dict[str, str]] = [{} for _ in range(dist.get_world_size(self.group))]
        dist.all_gather_object(everyone, mine, group=self.group)
        for what, digest in everyone[0].items():
            for rank, other in enumerate(everyone):
                if other[what] != digest:
                    raise InputError(f"ranks 0 and {rank} differ in {what}: load the same model on every rank")

    @property
    def first(self) -> bool:
        """Whether this is the group's rank 0, the one that writes."""
        return dist.get_rank(self.group) == 0

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self.group, 0) if self.group else 0, group=self.group)
        return box[0]

    def same_seed(self, seed: int) -> int:
        """Rank 0's seed. Ranks draw the same ones anyway; one that does not is told at once."""
        shared = torch.tensor([seed], dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=dist.get_global_rank(self.group, 0) if self.group else 0, group=self.group)
        if int(shared) != seed:
            raise InputError(f"this rank drew seed {seed}, rank 0 drew {int(shared)}: give all ranks the same seed")
        return seed

    def mean_losses(self, losses: Sequence[Any]) -> list[float]:
        """Means over ranks, weighted by the number of examples where the closure returns (loss, count)."""
        pairs = [loss if isinstance(loss, tuple) else (loss, 1) for loss in losses]
        sums = [[float(loss) * count, float(count)] for loss, count in pairs]
        total = torch.tensor(sums, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group)
        return (total[:, 0] / total[:, 1]).tolist()
