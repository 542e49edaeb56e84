"""The transfer classifier as SentEval runs it: one after the other, stock nn.Linear, loss and optimizer.

This is the protocol in its plainest form, with the signature of `classifier.fit`. Tests hold the batched version
against it and `bench/transfer.py` times the two; nothing else uses it (a 10-fold task takes minutes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simcse.senteval.classifier import MAX_EPOCHS, SEED, Fits, Protocol, Split, one_thread_per_operation


def fit(
    features: Tensor, labels: Tensor, splits: Sequence[Split], l2: np.ndarray, num_classes: int, protocol: Protocol
) -> Fits:
    """As `classifier.fit`, in a Python loop over splits and l2 values."""
    accuracy = np.zeros(l2.shape)
    weight = torch.empty(*l2.shape, num_classes, features.shape[1] + 1)
    with one_thread_per_operation(), torch.random.fork_rng(devices=[]):
        for (i, j), penalty in np.ndenumerate(l2):
            accuracy[i, j], linear = _fit_one(features, labels, splits[i], float(penalty), num_classes, protocol)
            weight[i, j] = torch.cat([linear["weight"], linear["bias"][:, None]], dim=1)
    return Fits(accuracy, weight)


def _fit_one(
    features: Tensor, labels: Tensor, split: Split, l2: float, num_classes: int, protocol: Protocol
) -> tuple[float, dict[str, Tensor]]:
    generator = np.random.RandomState(SEED)
    torch.manual_seed(SEED)
    for length in split.drawn:
        generator.permutation(length)
    linear = torch.nn.Linear(features.shape[1], num_classes)
    optimizer_class = torch.optim.Adam if protocol.optimizer == "adam" else torch.optim.RMSprop
    optimizer = optimizer_class(linear.parameters(), weight_decay=l2)
    loss_function = torch.nn.CrossEntropyLoss()
    train_x, train_y = features[split.train], labels[split.train]
    dev_x, dev_y = features[split.dev], labels[split.dev]
    best_accuracy, best, misses, epochs = -1.0, {}, 0, 0
    while epochs <= MAX_EPOCHS:
        for _ in range(protocol.epochs_per_round):
            order = torch.from_numpy(generator.permutation(len(train_x)))
            for index in order.split(protocol.batch_size):
                loss = loss_function(linear(train_x[index]), train_y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        epochs += protocol.epochs_per_round
        with torch.no_grad():
            right = (linear(dev_x).argmax(dim=1) == dev_y).sum().item()
        if right / len(dev_y) > best_accuracy:
            best_accuracy = right / len(dev_y)
            best = {name: value.detach().clone() for name, value in linear.named_parameters()}
        elif misses >= protocol.tenacity:
            break
        else:
            misses += 1
    return best_accuracy, best
