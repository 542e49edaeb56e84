"""Shared by this folder's tests: small networks with fixed weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


class TinyNet(nn.Module):
    """Linear, tanh, LayerNorm, Linear, cross-entropy: the network of the reference trajectory."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.layer_norm, self.l2 = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.l2(self.layer_norm(torch.tanh(self.l1(x)))), y)


@pytest.fixture
def tiny_net():
    """(network, inputs, labels) of the reference trajectory."""
    net, draw = TinyNet(), np.random.RandomState(7)
    for p in net.parameters():
        p.data = torch.from_numpy(draw.standard_normal(tuple(p.shape)).astype(np.float32) * 0.5)
    draw = np.random.RandomState(8)
    x = torch.from_numpy(draw.standard_normal((16, 8)).astype(np.float32))
    return net, x, torch.from_numpy(draw.randint(0, 3, 16))
