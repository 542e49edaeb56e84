"""MeZO: Fine-Tuning Language Models with Just Forward Passes (NeurIPS 2023), reproduced."""

from mezo.optimizer import MeZO

__all__ = ["MeZO"]
