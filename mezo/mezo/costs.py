"""What a run computes, moves and holds, from the dimensions of its model: the formulas behind `make plan-mezo`.

    forward FLOPs   2 x N per token, N = parameters of the transformer blocks; logits are made only where an option is
                    predicted, and the embedding is a look-up
    MeZO step       2 n forward passes of the batch; candidates that are one token each need one pass per example,
                    longer ones share the prompt, so a batch is counted as its prompts once
    MeZO traffic    per trained parameter, in units of its type: 2 per evaluation (read theta, write theta + eps z to
                    the scratch that the forward pass reads in its place) and 2 for the update (read, write)
    Adam step       6 x N per token; gradient and two moments, 12 bytes per trained parameter, and 4 more for fp32
                    weights beside those in half precision
    memory          weights x bytes, the trained parts' extra, activations: one layer's working set where nothing is
                    kept for a backward pass, 34 bytes x hidden per token and layer where it is (Korthikanti et al.,
                    2022)
    a trajectory    24 bytes per estimate (`mezo.trajectory`)

Figure 3 and Table 22 of the paper can be laid beside `step_memory`, Table 23 beside `step_seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mezo.on_the_fly import SLICE, SLICES
from shared import InputError
from shared.plan import GPU

BACKWARD_BYTES = 34  # per token, layer and hidden unit, in half precision
WORKING_SET = 24  # likewise, of the one layer that is being computed: q, k, v, 4 x hidden, ...
RECORD_BYTES = 24


@dataclass(frozen=True)
class Dimensions:
    """Of a transformer as in its published configuration; decoder_rows: of a head not tied to the embedding."""

    vocab_size: int
    positions: int
    hidden: int
    layers: int
    causal: bool = True
    decoder_rows: int = 0

    @property
    def block_parameters(self) -> int:
        """All blocks: attention, a feed-forward of 4 x hidden, two LayerNorms each, biases everywhere."""
        h = self.hidden
        return self.layers * (4 * (h * h + h) + (4 * h * h + 4 * h) + (4 * h * h + h) + 4 * h)

    @property
    def parameters(self) -> int:
        """Everything that full fine-tuning moves."""
        h = self.hidden
        head = self.decoder_rows * (h + 1) + h * h + 3 * h if self.decoder_rows else 0
        return (self.vocab_size + self.positions) * h + 2 * h + self.block_parameters + head

    def trained(self, mode: str) -> int:
        """Trained parameters: full, lora (r=8 on queries and values), prefix (5 vectors), head."""
        counts = {
            "full": self.parameters,
            "lora": self.layers * 2 * 2 * 8 * self.hidden,
            "prefix": self.layers * 2 * 5 * self.hidden,
            "head": self.vocab_size * self.hidden,
        }
        if mode not in counts:
            raise InputError(f"mode={mode}: choose {', '.join(counts)}")
        return counts[mode]


def _opt(hidden: int, layers: int) -> Dimensions:
    return Dimensions(50_272, 2_050, hidden, layers)


MODELS = {
    "opt-125m": _opt(768, 12),
    "opt-1.3b": _opt(2048, 24),
    "opt-2.7b": _opt(2560, 32),
    "opt-6.7b": _opt(4096, 32),
    "opt-13b": _opt(5120, 40),
    "opt-30b": _opt(7168, 48),
    "opt-66b": _opt(9216, 64),
    "roberta-large": Dimensions(50_265, 514, 1024, 24, causal=False, decoder_rows=50_265),
}


def dimensions(model: str) -> Dimensions:
    """By the last part of a hub id. Raises InputError for a model whose dimensions are not listed."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    if name not in MODELS:
        raise InputError(f"model={model}: its dimensions are not listed; known: {', '.join(MODELS)}")
    return MODELS[name]


def step_memory(model: Dimensions, mode: str, trainer: str, tokens: int, weight_bytes: int = 2) -> float:
    """Peak bytes of a step on `tokens` tokens at once. trainer: none (inference), zo, adam, sgd or lp."""
    trained = model.trained(mode)
    weights = model.parameters * weight_bytes
    activations = tokens * model.hidden * weight_bytes / 2
    if trainer in ("none", "lp", "zo"):
        scratch = 0.0
        if trainer == "zo" and mode == "full":  # theta + eps z of one module, of a large one a slice at a time
            scratch = max(SLICE, trained // SLICES) * weight_bytes
        return weights + scratch + WORKING_SET * activations
    if trainer not in ("adam", "sgd"):
        raise InputError(f"trainer={trainer}: choose none, lp, zo, adam or sgd")
    states = {"adam": 12, "sgd": 4}[trainer] + (0 if weight_bytes == 4 else 4)  # half precision: an fp32 copy too
    return weights + trained * states + BACKWARD_BYTES * activations * model.layers


def step_flops(model: Dimensions, trainer: str, tokens: int, estimates: int = 1) -> float:
    """FLOPs of a step whose batch has `tokens` tokens; trainer none is one forward pass."""
    passes = {"none": 1, "lp": 1, "zo": 2 * estimates, "adam": 3, "sgd": 3}[trainer]
    return 2.0 * model.block_parameters * tokens * passes


def step_seconds(
    model: Dimensions,
    mode: str,
    trainer: str,
    tokens: int,
    gpu: GPU,
    *,
    utilisation: float,
    estimates: int = 1,
    weight_bytes: int = 2,
    gpus: int = 1,
) -> float:
    """Compute and traffic after each other, none of it hidden behind the other: an upper bound of a good run."""
    compute = step_flops(model, trainer, tokens, estimates) / (gpu.tflops * 1e12 * utilisation)
    passes = {"none": 1, "lp": 1, "zo": 2 * estimates, "adam": 3, "sgd": 3}[trainer]
    moved = passes * model.parameters * weight_bytes
    trained = model.trained(mode)
    if trainer == "zo":
        moved += trained * weight_bytes * (2 * 2 * estimates + 2 * estimates)
    elif trainer == "adam":
        moved += trained * 28  # weight, gradient and both moments read, all but the gradient written
    return (compute + moved / (gpu.bandwidth_gbs * 1e9)) / gpus
