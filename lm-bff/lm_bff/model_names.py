"""From `model=<name>` to weights: `tiny` is trained on the spot, everything else is found by `shared.hub`."""

from __future__ import annotations

from pathlib import Path

import torch

from lm_bff.model import Pretrained
from shared import hub

TINY = "tiny"


def model_folder(name: str) -> Path:
    """A local folder: the tiny model's (trained now if it is not cached), a folder as it is, or a source's.

    Raises NotAvailable where a model is in no place.
    """
    if name == TINY:
        from lm_bff.tiny import tiny_mlm

        return tiny_mlm()
    return Path(hub.model_path(name, "lm-bff"))


def load_pretrained(name: str, device: str | torch.device | None = None) -> Pretrained:
    """The model behind a name, loaded once for many trials."""
    return Pretrained.load(model_folder(name), device=device)
