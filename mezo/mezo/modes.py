"""What is trained: all weights, LoRA, a prefix, or the output head; for OPT, Llama, Qwen2, Mistral, RoBERTa and BERT.

    attach(model, Mode("lora"))      in place; afterwards `requires_grad` marks what is trained
    save_trained(model, folder)      those tensors alone, with what is needed to attach them again

A masked language model may come as LM-BFF's `PromptModel` (its decoder rows are the head).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mezo.lora import add_lora
from mezo.prefix import INITS, POSITIONS, add_prefix
from shared import InputError
from shared.results import write_atomic

KINDS = ("full", "lora", "prefix", "head")
LORA_TRAINABLE = ("lora_only", "authors")
WEIGHTS, ABOUT = "trained.safetensors", "trained.json"
# model_type -> names of the query, key and value projections in its self-attention
PROJECTIONS = {
    **dict.fromkeys(("opt", "llama", "qwen2", "mistral"), ("q_proj", "k_proj", "v_proj")),
    **dict.fromkeys(("roberta", "roberta-prelayernorm", "bert"), ("query", "key", "value")),
}


@dataclass(frozen=True)
class Mode:
    """What is trained and how it starts.

    rank, alpha, lora_trainable: of LoRA; "authors" leaves a masked model's head trainable too, as the release does.
    num_prefix, prefix_init, prefix_positions, prefix_tokens: see `mezo.prefix`. untie_embeddings: give the output head
    a copy of its own, so that changing it leaves the input embeddings alone. seed: of LoRA's A and of the prefix.
    """

    kind: str = "full"
    rank: int = 8
    alpha: float = 16.0
    lora_trainable: str = "lora_only"
    num_prefix: int = 5
    prefix_init: str = "real"
    prefix_positions: str = "consistent"
    prefix_tokens: tuple[int, ...] | None = None
    untie_embeddings: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.prefix_tokens, list):
            object.__setattr__(self, "prefix_tokens", tuple(self.prefix_tokens))
        for name, known in (
            ("kind", KINDS), ("lora_trainable", LORA_TRAINABLE), ("prefix_init", INITS),
            ("prefix_positions", POSITIONS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                key = "mode" if name == "kind" else f"mode.{name}"
                raise InputError(f"{key}={getattr(self, name)}: give one of {', '.join(known)}")


def attach(model: nn.Module, mode: Mode) -> None:
    """Add what the mode needs and freeze what it does not train, in place.

    Raises InputError for an architecture that LoRA or a prefix is not defined for, and for a model without a head.
    """
    backbone = backbone_of(model)
    if mode.untie_embeddings:
        untie(backbone)
    if mode.kind == "full":
        model.requires_grad_(True)
    elif mode.kind == "head":
        model.requires_grad_(False)
        for _, tensor in _head(model):
            tensor.requires_grad_(True)
    else:
        attentions, (query, key, value) = attentions_of(backbone, mode.kind)
        model.requires_grad_(False)
        if mode.kind == "lora":
            add_lora(attentions, (query, value), mode.rank, mode.alpha, mode.seed)
            if mode.lora_trainable == "authors":
                _thaw_masked_head(model, backbone)
        else:
            add_prefix(
                attentions, key, mode.num_prefix, mode.prefix_init, run=_runner(model, backbone),
                vocabulary=backbone.get_input_embeddings().num_embeddings, tokens=mode.prefix_tokens, seed=mode.seed,
            )  # fmt: skip
            model.prefix_shift = mode.num_prefix if mode.prefix_positions == "authors" else 0
    model.mezo_mode = mode


def backbone_of(model: nn.Module) -> nn.Module:
    """transformers' model inside LM-BFF's PromptModel or FineTuneModel, or the model itself."""
    return getattr(model, "backbone", model)


def attentions_of(backbone: nn.Module, kind: str) -> tuple[list[nn.Module], tuple[str, str, str]]:
    """The self-attention modules in the order of the layers, and the names of their projections."""
    kind_of_model = getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__)
    if kind_of_model not in PROJECTIONS:
        raise InputError(
            f"mode={kind} is not defined for a model of type {kind_of_model}: use one of {', '.join(PROJECTIONS)}, "
            "or mode=full"
        )
    names = PROJECTIONS[kind_of_model]
    found = [m for m in backbone.modules() if all(hasattr(m, name) for name in names) and hasattr(m, "config")]
    if not found:
        raise InputError(f"mode={kind}: no attention with {', '.join(names)} in this {kind_of_model} model")
    return found, names


def _head(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The output head's tensors; InputError where they are the input embeddings too."""
    if hasattr(model, "decoder_weight"):
        return [(name, p) for name, p in model.named_parameters() if name in ("decoder_weight", "decoder_bias")]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise InputError(f"mode=head: {type(model).__name__} has no output embeddings to train")
    if head.weight is model.get_input_embeddings().weight:
        raise InputError("mode=head: the head is tied to the input embeddings; set mode.untie_embeddings=true")
    return list(head.named_parameters())


def untie(model: nn.Module) -> None:
    """A copy of the weights for the output head, where it shares them with the input embeddings."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if isinstance(head, nn.Linear) and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False


def _thaw_masked_head(model: nn.Module, backbone: nn.Module) -> None:
    """The release freezes by names that begin with the encoder's: a masked model's head stays trainable."""
    if backbone.config.model_type not in ("roberta", "roberta-prelayernorm", "bert"):
        return
    inside = {id(tensor) for tensor in backbone.base_model.parameters()}
    for _, tensor in model.named_parameters():
        if id(tensor) not in inside:
            tensor.requires_grad_(True)


def _runner(model: nn.Module, backbone: nn.Module):
    """A function that runs the model on ids (1, m)."""

    def run(ids: Tensor) -> None:
        was = backbone.training
        backbone.eval()
        if hasattr(model, "picker"):
            model.picker.position = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        options = {} if hasattr(model, "picker") else {"use_cache": False}
        if backbone.config.model_type in ("roberta", "roberta-prelayernorm", "bert"):
            options = {}
        backbone(input_ids=ids, **options)
        backbone.train(was)

    return run


# ------------------------------------------------------------------------------------------------------ what is trained


def trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, tensor) of what is trained, in the order of registration, tied tensors once."""
    return [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]


def count_trainable(model: nn.Module) -> int:
    """The number of trained weights."""
    return sum(tensor.numel() for _, tensor in trainable(model))


def save_trained(model: nn.Module, folder: Path, about: dict | None = None) -> Path:
    """Write the trained tensors (safetensors) and the mode (JSON) to a folder; each file appears whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable(model)}
    mode = getattr(model, "mezo_mode", Mode())
    write_atomic(Path(folder) / ABOUT, json.dumps({"mode": asdict(mode), **(about or {})}, indent=1) + "\n")
    return write_atomic(Path(folder) / WEIGHTS, save(tensors))


def saved_mode(folder: Path) -> Mode:
    """The mode that a folder of `save_trained` was written with."""
    path = Path(folder) / ABOUT
    try:
        return Mode(**json.loads(path.read_text("utf-8"))["mode"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as what save_trained wrote: {error}") from None


@torch.no_grad()
def load_trained(model: nn.Module, folder: Path) -> None:
    """Attach the saved mode to a base model (unless it is attached) and copy the trained tensors into it.

    Raises InputError for a file that is no such thing, or of another model: names or shapes differ.
    """
    mode = saved_mode(folder)
    if not hasattr(model, "mezo_mode"):
        attach(model, mode)
    elif model.mezo_mode != mode:
        raise InputError(f"{folder} was trained with {mode}, the model has {model.mezo_mode}")
    path = Path(folder) / WEIGHTS
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    mine = dict(trainable(model))
    for name in sorted(stored.keys() | mine.keys()):
        there, here = (tuple(t[name].shape) if name in t else "missing" for t in (stored, mine))
        if there != here:
            raise InputError(f"{path} is of another model: {name} is {there} there and {here} here")
    for name, tensor in mine.items():
        tensor.copy_(stored[name])
