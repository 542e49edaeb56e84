"""Dropout as the only augmentation: its rate, and one mask for both views (SimCSE, section 3, Table 3).

`set_dropout(model, p)` gives hidden and attention dropout one rate. `replayed(views)` runs functions under the same
random numbers, which is the paper's "Fixed 0.1": dropout is on, but both views of a sentence meet the same mask, so
that they become equal and the objective has nothing left to learn from them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# The names under which transformers' model configs keep their dropout rates.
CONFIG_RATES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
)


def check_rate(p: float) -> None:
    """Raise ValueError unless 0 <= p < 1."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout.p is {p}, but must be at least 0 and below 1 (the paper uses 0.1)")


def set_dropout(model: nn.Module, p: float) -> None:
    """One rate for all dropout of a transformers model, hidden and attention alike, and for its config (SimCSE, Table
    3).

    Raises: ValueError unless 0 <= p < 1.
    """
    check_rate(p)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        # Attention written as a function keeps its rate as a number on the module (Llama, Qwen, ModernBERT).
        for name in ("attention_dropout", "dropout"):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, p)
    for name in CONFIG_RATES:
        if hasattr(model.config, name):
            setattr(model.config, name, p)


def replayed(views: Iterable[Callable[[], Tensor]], device: torch.device) -> list[Tensor]:
    """Call every function under the same random state, the one found on entry: equal shapes get equal dropout masks.

    On return the random state is where one call left it.
    """
    outputs = []
    state = _random_state(device)
    for view in views:
        _restore(state, device)
        outputs.append(view())
    return outputs


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
