"""A masked language model as a classifier: the label words' logits at the mask (section 3 of the paper).

    h = encoder(prompt)[mask]    logits = decoder(transform(h))[label words]

Any masked language model of transformers serves (RoBERTa, BERT, DeBERTa-v3, ModernBERT, ...): its own encoder and
head run, narrowed by a hook to the mask's position, with the last matrix taken out of it.

That matrix, the decoder, is a parameter of its own here, as in the authors' release: it starts as a copy of the word
embeddings and is trained apart from them. Only the rows of the label words ever get a gradient, so only they are kept
and multiplied (`full_decoder=True` keeps all). The copy is made from the tied model, after loading. An untied class
loaded from one of today's checkpoints would silently start from a random decoder: safetensors stores tied weights once.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lm_bff.mask_row import MaskPicker, layers_of
from shared import InputError
from shared.quiet import quiet_transformers

log = logging.getLogger(__name__)

SEGMENTS = 10
# These number positions from pad_token_id + 1 on, so that their table holds that many fewer tokens than rows.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "data2vec-text")


class TransformOnly(nn.Module):
    """DeBERTa-v3's head without its product with the word embeddings, which it is given and leaves alone."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.dense, self.activation, self.LayerNorm = head.dense, head.transform_act_fn, head.LayerNorm

    def forward(self, hidden_states: Tensor, word_embeddings: nn.Module | None = None) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class PromptModel(nn.Module):
    """Prompts with one mask -> logits of the label words. Made by `Pretrained.prompt_model`.

    Attributes:
        backbone: the masked language model without its decoder.
        decoder_weight, decoder_bias: (classes, width) and (classes,), or all rows of the vocabulary with
            `full_decoder`; the bias may be None.
        label_word_ids: (classes,) token ids.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        decoder_weight: Tensor,
        decoder_bias: Tensor | None,
        label_word_ids: Sequence[int],
        full_decoder: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.full_decoder = full_decoder
        self.register_buffer("label_word_ids", torch.tensor(list(label_word_ids), device=decoder_weight.device))
        rows = slice(None) if full_decoder else self.label_word_ids
        self.decoder_weight = nn.Parameter(decoder_weight[rows].detach().clone())
        self.decoder_bias = None if decoder_bias is None else nn.Parameter(decoder_bias[rows].detach().clone())
        self.picker = MaskPicker(backbone.base_model)

    @property
    def device(self) -> torch.device:
        return self.decoder_weight.device

    @property
    def uses_segments(self) -> bool:
        return (getattr(self.backbone.config, "type_vocab_size", 0) or 0) > 1

    def mask_features(
        self, input_ids: Tensor, attention_mask: Tensor, mask_position: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """`(batch, seq)` and positions `(batch,)` -> `(batch, width)`: what the decoder is multiplied with."""
        self.picker.position = mask_position
        extra = {} if token_type_ids is None or not self.uses_segments else {"token_type_ids": token_type_ids}
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra)
        return output.logits[:, 0]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, mask_position: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """`(batch, seq)` -> float32 `(batch, classes)`: the label words' logits, without any calibration."""
        features = self.mask_features(input_ids, attention_mask, mask_position, token_type_ids)
        weight, bias = self.decoder_weight, self.decoder_bias
        if self.full_decoder:
            weight = weight[self.label_word_ids]
            bias = bias if bias is None else bias[self.label_word_ids]
        return F.linear(features, weight.to(features.dtype), None if bias is None else bias.to(features.dtype)).float()

    def vocabulary_logits(
        self, input_ids: Tensor, attention_mask: Tensor, mask_position: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """`(batch, seq)` -> `(batch, vocabulary)`; needs `full_decoder`."""
        if not self.full_decoder:
            raise ValueError("vocabulary_logits needs a model made with full_decoder=True")
        features = self.mask_features(input_ids, attention_mask, mask_position, token_type_ids)
        return F.linear(features, self.decoder_weight, self.decoder_bias)


class FineTuneModel(nn.Module):
    """Standard fine-tuning: the stock sequence classification model; one output for a regression."""

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def uses_segments(self) -> bool:
        return (getattr(self.backbone.config, "type_vocab_size", 0) or 0) > 1

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mask_position: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """`(batch, seq)` -> float32 `(batch, classes)`; `mask_position` is ignored."""
        extra = {} if token_type_ids is None or not self.uses_segments else {"token_type_ids": token_type_ids}
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).logits.float()


class Pretrained:
    """A masked language model and its tokenizer, loaded once; every trial gets its own copy of the weights.

    Attributes:
        path: the folder; tokenizer; config.
        decoder_weight, decoder_bias: (vocabulary, width) and (vocabulary,) or None, as pre-trained.
        max_positions: the longest input in tokens.
    """

    def __init__(self, masked_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path | None = None):
        if tokenizer.mask_token_id is None:
            raise InputError(f"model={path}: its tokenizer has no mask token; prompts need one")
        if len(tokenizer) > masked_lm.config.vocab_size:
            raise InputError(
                f"model={path}: its tokenizer has {len(tokenizer)} tokens, but the model has embeddings for "
                f"{masked_lm.config.vocab_size}: they do not belong together"
            )
        self.path = None if path is None else str(path)
        self.tokenizer, self.config = tokenizer, masked_lm.config
        self.decoder_weight, self.decoder_bias = detach_decoder(masked_lm, self.path)
        self._masked_lm = masked_lm.eval().requires_grad_(False)
        self._classifiers: dict[int, tuple[PreTrainedModel, list[str]]] = {}

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device | None = None, attention: str | None = None
    ) -> Pretrained:
        """Read a folder in float32, whatever it is stored in.

        Raises:
            InputError: no masked language model, or one whose head (or any other weight) is missing in the folder.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = read_config(path)
        options = {} if attention is None else {"attn_implementation": attention}
        model, missing = _load(AutoModelForMaskedLM, path, config, **options)
        if missing:
            raise InputError(
                f"model={path} lacks {len(missing)} weights (first {missing[0]}), which would be random: prompts need "
                "a checkpoint with its pre-trained masked language model head, decoder included"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"model={path}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from None
        return cls(model.to(device), tokenizer, path)

    @property
    def device(self) -> torch.device:
        return self.decoder_weight.device

    @property
    def uses_segments(self) -> bool:
        """Whether token types make a difference (BERT)."""
        return (getattr(self.config, "type_vocab_size", 0) or 0) > 1

    @property
    def max_positions(self) -> int:
        """The longest input the model has positions for, in tokens."""
        taken = self.config.pad_token_id + 1 if self.config.model_type in OFFSET_POSITIONS else 0
        return self.config.max_position_embeddings - taken

    def prompt_model(
        self,
        label_word_ids: Sequence[int],
        *,
        seed: int = 0,
        full_decoder: bool = False,
        random_segments: bool = False,
        freeze_layers: int = 0,
    ) -> PromptModel:
        """A trainable copy with the decoder rows of these label words.

        Args:
            seed: of the token types that BERT does not have: the table grows to 10 rows, from normal(0, 1).
            random_segments: draw BERT's own two rows anew as well.
            freeze_layers: leave the embeddings and this many layers from the bottom as they are.
        """
        backbone = copy.deepcopy(self._masked_lm).requires_grad_(True)
        model = PromptModel(backbone, self.decoder_weight, self.decoder_bias, label_word_ids, full_decoder)
        if self.uses_segments:
            enlarge_segments(backbone, torch.Generator().manual_seed(seed), random_segments)
        freeze_bottom(backbone, freeze_layers)
        return model

    def finetune_model(self, num_outputs: int, *, seed: int = 0, freeze_layers: int = 0) -> FineTuneModel:
        """A trainable copy with a fresh classification head, drawn with `seed`."""
        if num_outputs not in self._classifiers:
            if self.path is None:
                raise InputError("standard fine-tuning needs a model that was loaded from a folder")
            config = read_config(self.path)
            config.num_labels = num_outputs
            if num_outputs == 1:
                config.problem_type = "regression"
            model, missing = _load(AutoModelForSequenceClassification, self.path, config)
            self._classifiers[num_outputs] = (model.to(self.device), missing)
        pristine, fresh = self._classifiers[num_outputs]
        backbone = copy.deepcopy(pristine)
        generator = torch.Generator().manual_seed(seed)
        for name in fresh:
            _draw(name, backbone.get_parameter(name), self.config.initializer_range, generator)
        freeze_bottom(backbone, freeze_layers)
        return FineTuneModel(backbone)


def read_config(path: str | Path) -> PreTrainedConfig:
    """The folder's config. DeBERTa-v3's head is stored under a name that needs `legacy=False` to be found."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model={path} cannot be read: {str(error).splitlines()[0]}") from None
    if config.model_type == "deberta-v2" and any(name.startswith("lm_predictions.") for name in _stored_names(path)):
        config.legacy = False
        # The library would tie `lm_head.weight`, which this head, multiplying by the embeddings itself, does not have.
        config.tie_word_embeddings = False
    return config


def _stored_names(path: str | Path) -> list[str]:
    """Names of the stored tensors, without reading them."""
    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return list(json.loads(index.read_text("utf-8"))["weight_map"])
    if (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", "pt") as file:
            return list(file.keys())
    if (folder / "pytorch_model.bin").is_file():
        return list(torch.load(folder / "pytorch_model.bin", map_location="cpu", mmap=True, weights_only=True))
    return []


def _load(auto: type, path: str | Path, config: PreTrainedConfig, **options) -> tuple[PreTrainedModel, list[str]]:
    """(model in float32, names of weights that the folder lacks)."""
    try:
        with quiet_transformers():
            model, report = auto.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        if "Unrecognized configuration class" in first:
            first = f"a {config.model_type} model has no masked language model head (or no classifier) in transformers"
        raise InputError(f"model={path} cannot be loaded: {first}") from None
    return model, sorted(report["missing_keys"])


def detach_decoder(model: PreTrainedModel, path: str | None = None) -> tuple[Tensor, Tensor | None]:
    """Take the decoder out of a masked language model: (weight, bias) as copies, and a head that ends before it.

    Raises InputError where the model has no such matrix.
    """
    if hasattr(model, "lm_predictions"):  # DeBERTa-v3: the head multiplies by the word embeddings itself
        head = model.lm_predictions.lm_head
        model.lm_predictions.lm_head = TransformOnly(head)
        return model.get_input_embeddings().weight.detach().clone(), head.bias.detach().clone()
    decoder = model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        raise InputError(f"model={path}: {type(model).__name__} has no linear decoder over its vocabulary")
    name = next(name for name, module in model.named_modules() if module is decoder)
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    setattr(owner, attribute, nn.Identity())
    if isinstance(getattr(owner, "bias", None), nn.Parameter) and owner.bias is decoder.bias:
        owner.bias = None  # RoBERTa and BERT keep the decoder's bias under a second name
    bias = None if decoder.bias is None else decoder.bias.detach().clone()
    return decoder.weight.detach().clone(), bias


def enlarge_segments(model: PreTrainedModel, generator: torch.Generator, random: bool = False) -> None:
    """Ten token types: the pre-trained ones first (or all drawn, with `random`), the rest from normal(0, 1)."""
    name, old = next((n, m) for n, m in model.named_modules() if n.endswith("token_type_embeddings"))
    weight = torch.randn(SEGMENTS, old.embedding_dim, generator=generator).to(old.weight)
    if not random:
        weight[: old.num_embeddings] = old.weight.detach()
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Embedding.from_pretrained(weight, freeze=False))
    model.config.type_vocab_size = SEGMENTS


def freeze_bottom(model: PreTrainedModel, layers: int) -> None:
    """Stop the gradient of the embeddings and of the `layers` lowest layers; 0 leaves everything trainable."""
    if not layers:
        return
    base = model.base_model
    stack = layers_of(base)
    if not 0 < layers <= len(stack):
        raise InputError(f"freeze_layers={layers}: the model has {len(stack)} layers")
    embeddings = [m for name, m in base.named_children() if "embeddings" in name]
    for module in [*embeddings, *stack[:layers]]:
        module.requires_grad_(False)


def _draw(name: str, parameter: Tensor, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
