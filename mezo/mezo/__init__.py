"""MeZO: Fine-Tuning Language Models with Just Forward Passes (NeurIPS 2023), reproduced."""
