"""A sentence encoder: a stock transformers model, a pooler, and for `cls` a tanh head (SimCSE, section 3 and Table 6).

The backbone is transformers' own class without its pooler. With pooler `cls` the head `tanh(W h + b)` stands on the
first token's vector; it has the shape of BERT's pooler but starts at random (paper, footnote 9), so training asks for
`head="random"`. With any other pooler it does not exist: an unused parameter would break DistributedDataParallel.

Training and evaluation may pool differently. Unsupervised SimCSE trains with the head and tests without it
(`mlp_only_train`). The evaluation pooler is written into config.json (`"simcse": {"eval_pooler": ...}`), so that nobody
has to remember it. Saved folders are plain: the head is stored as the pooler, and
`AutoModel.from_pretrained(folder).pooler_output` is the `cls` embedding.
"""

import copy
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from shared import InputError
from shared.quiet import quiet_transformers
from simcse import checkpoints
from simcse.pooling import check_pooler, needs_all_layers, pool

logger = logging.getLogger(__name__)

HEADS = ("load", "random", "none")
# These number positions from pad_token_id + 1 on, so that their table holds that many fewer tokens than rows.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
MLM_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet")


class SentenceHead(nn.Module):
    """`tanh(W x + b)`, W `(hidden, hidden)`: W from normal(0, initializer_range), b zero."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        _initialise(self.dense, config)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class MaskedLMHead(nn.Module):
    """Token logits `(..., vocab)` from `(..., hidden)`: dense, activation, LayerNorm, decoder, as in BERT and RoBERTa.

    Untied by default, as in the authors' release: the decoder is a trainable copy of its own. Tied, it has a bias
    only and multiplies by the input embeddings that `forward` is given; sharing a Parameter would not survive
    safetensors.
    """

    def __init__(self, config: PreTrainedConfig, *, tied: bool = False):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        _initialise(self.dense, config)
        _initialise(self.decoder, config)
        self.tied = tied
        if tied:
            self.decoder.register_parameter("weight", None)

    def forward(self, hidden_state: Tensor, input_embeddings: Tensor) -> Tensor:
        x = self.LayerNorm(self.activation(self.dense(hidden_state)))
        return F.linear(x, input_embeddings if self.tied else self.decoder.weight, self.decoder.bias)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Fill from `checkpoints.ExtraWeights.mlm`."""
        self.load_state_dict({k: v for k, v in weights.items() if not (self.tied and k == "decoder.weight")})


class SentenceEncoder(nn.Module):
    """Rows of token ids -> one vector each. Build one with `from_pretrained` or `from_config`.

    Attributes:
        backbone: the transformers model; head: SentenceHead or None; mlm_head: MaskedLMHead or None.
        train_pooler, eval_pooler: what `embed` uses in training and in evaluation mode.
        mlp_only_train: the head is used in training only.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        pooler: str = "cls",
        mlp_only_train: bool = False,
        mlm: bool = False,
        tie_mlm: bool = False,
    ):
        super().__init__()
        checkpoints.check_model_type(backbone.config)
        self.backbone = backbone
        self._check_pooler("pooler", pooler)
        if mlp_only_train and pooler != "cls":
            raise InputError(f"mlp_only_train is true with pooler {pooler!r}: only pooler=cls has the MLP it speaks of")
        self.train_pooler, self.mlp_only_train = pooler, mlp_only_train
        self.head = SentenceHead(self.config) if pooler == "cls" else None
        self.mlm_head = self._new_mlm_head(tie_mlm) if mlm else None
        self._eval_pooler = "cls_before_pooler" if mlp_only_train else pooler
        self.to(backbone.dtype)

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        *,
        pooler: str = "cls",
        mlp_only_train: bool = False,
        mlm: bool = False,
        tie_mlm: bool = False,
    ) -> "SentenceEncoder":
        """A randomly initialised encoder. Raises InputError on an unsupported model type or pooler."""
        checkpoints.check_model_type(config)
        backbone = AutoModel.from_config(copy.deepcopy(config), **checkpoints.without_pooler(config))
        return cls(backbone, pooler=pooler, mlp_only_train=mlp_only_train, mlm=mlm, tie_mlm=tie_mlm)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        pooler: str | None = None,
        head: str = "load",
        mlp_only_train: bool | None = None,
        mlm: bool = False,
        tie_mlm: bool = False,
        dtype: torch.dtype | str | None = None,
    ) -> "SentenceEncoder":
        """An encoder from a folder or hub id: anything AutoModel reads, and the authors' unconverted training
        checkpoints.

        Args:
            pooler: one of POOLERS for training and evaluation. None takes what the checkpoint says (the `simcse`
                block of config.json, or a sentence-transformers `1_Pooling`), else the release's rule: the head is
                for training only if "unsup" occurs in the path, else `cls`; decoder backbones take `avg`.
            head: with pooler `cls`: "load" the checkpoint's pooler, start at "random", or "none" to forbid a head.
            mlp_only_train: evaluate without the head (then the evaluation pooler is `cls_before_pooler`).
            mlm: add the MLM head, filled from the checkpoint where it has one, else random.
            tie_mlm: its decoder is the input embeddings.
            dtype: default float32, whatever the checkpoint is stored in.

        Raises: InputError, also where `cls` is asked for and the checkpoint has no pooler weights.
        """
        if head not in HEADS:
            raise InputError(f"head is {head!r}, but must be one of {', '.join(HEADS)}")
        config = checkpoints.read_config(path_or_id)
        torch_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
        backbone = checkpoints.load_backbone(path_or_id, config, torch_dtype)
        extra = checkpoints.ExtraWeights(path_or_id, config, mlm=mlm)
        has_head = head == "random" or (head == "load" and extra.head is not None)
        choice = _choose_poolers(str(path_or_id), config, pooler, mlp_only_train, has_head)
        if choice.train_pooler == "cls" and not has_head:
            raise InputError(_no_head_message(f"model {str(path_or_id)!r}"))
        encoder = cls(
            backbone, pooler=choice.train_pooler, mlp_only_train=choice.mlp_only_train, mlm=mlm, tie_mlm=tie_mlm
        )
        encoder.eval_pooler = choice.eval_pooler
        if encoder.head is not None and head == "load":
            encoder.head.load_state_dict(extra.head)
        if extra.mlm is not None:
            encoder.mlm_head.load(extra.mlm)
        elif mlm:
            logger.warning("%s has no MLM head: it starts at random", path_or_id)
        return encoder

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's config."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def is_decoder(self) -> bool:
        """Whether attention is causal, so that the first token knows nothing of the others."""
        return self.config.model_type in checkpoints.DECODERS

    @property
    def max_length(self) -> int:
        """The longest input in tokens, special ones included, that the backbone has positions for."""
        taken = self.config.pad_token_id + 1 if self.config.model_type in OFFSET_POSITIONS else 0
        return self.config.max_position_embeddings - taken

    @property
    def eval_pooler(self) -> str:
        """The pooler of evaluation mode. Setting it raises InputError for a name or head that is not there."""
        return self._eval_pooler

    @eval_pooler.setter
    def eval_pooler(self, pooler: str) -> None:
        self._check_pooler("eval_pooler", pooler)
        if pooler == "cls" and self.head is None:
            raise InputError(_no_head_message("this encoder"))
        self._eval_pooler = pooler

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """See `embed`."""
        return self.embed(input_ids, attention_mask, token_type_ids)

    def embed(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """`(rows, seq)` -> `(rows, hidden)`, in the backbone's dtype.

        In training mode with the training pooler (and the head, if that is `cls`), in evaluation mode with
        `eval_pooler`. `token_type_ids` is ignored by backbones without token types. Padding may be on either side for
        decoders, and has to be on the right for encoders with absolute positions.
        """
        pooler = self.train_pooler if self.training else self.eval_pooler
        hidden_states = self.hidden_states(
            input_ids, attention_mask, token_type_ids, all_layers=needs_all_layers(pooler)
        )
        pooled = pool(hidden_states, attention_mask, pooler)
        return self.head(pooled) if pooler == "cls" else pooled

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        all_layers: bool = False,
    ) -> tuple[Tensor, ...] | Tensor:
        """The backbone's last layer `(rows, seq, hidden)`, or with `all_layers` the tuple of all, embeddings first."""
        if input_ids.shape[1] > self.max_length:
            raise InputError(
                f"a sequence of {input_ids.shape[1]} tokens is longer than the model's {self.max_length} positions: "
                "truncate it"
            )
        extra = {}
        if token_type_ids is not None and getattr(self.config, "type_vocab_size", 0) > 1:
            extra["token_type_ids"] = token_type_ids
        if self.is_decoder:
            # Positions count real tokens, so that padding on the left does not shift a row.
            extra |= {"position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
        output = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=all_layers, **extra
        )
        return output.hidden_states if all_layers else output.last_hidden_state

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, *, mlm: bool = False) -> None:
        """Raise InputError for ids without an embedding, no padding token, or, with `mlm`, no mask token."""
        if len(tokenizer) > self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for "
                f"{self.config.vocab_size}: they do not belong together"
            )
        if tokenizer.pad_token_id is None:
            raise InputError(
                "the tokenizer has no padding token: set one, for example tokenizer.pad_token = tokenizer.eos_token"
            )
        if mlm and tokenizer.mask_token_id is None:
            raise InputError(
                "mlm is on, but the tokenizer has no mask token: take an encoder's tokenizer, or set mlm_weight=0"
            )

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
        """Write safetensors and config that plain AutoModel loads: the head is the pooler, the MLM head is left out.

        Files are written beside the folder and moved into it one by one, config.json last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.backbone.state_dict())
        if self.head is not None:
            state |= {f"pooler.{name}": tensor for name, tensor in self.head.state_dict().items()}
        self.config.simcse = {
            "eval_pooler": self.eval_pooler,
            "train_pooler": self.train_pooler,
            "mlp_only_train": self.mlp_only_train,
        }
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            with quiet_transformers():
                self.backbone.save_pretrained(temporary, state_dict=state)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "config.json"):
                file.replace(folder / file.name)
        return folder

    def _check_pooler(self, field: str, pooler: str) -> None:
        try:
            check_pooler(pooler)
        except ValueError as error:
            raise InputError(str(error).replace("pooler", field, 1)) from None
        if self.is_decoder and pooler in ("cls", "cls_before_pooler"):
            raise InputError(
                f"{field} is {pooler!r} with model type {self.config.model_type!r}: attention is causal, so the first "
                "token has seen nothing of the sentence; use avg or last"
            )

    def _new_mlm_head(self, tied: bool) -> MaskedLMHead:
        if self.config.model_type not in MLM_TYPES:
            raise InputError(
                f"mlm is on with model type {self.config.model_type!r}, but has a head for {', '.join(MLM_TYPES)} only"
            )
        return MaskedLMHead(self.config, tied=tied)


@dataclass(frozen=True)
class _Poolers:
    train_pooler: str
    mlp_only_train: bool
    eval_pooler: str


def _choose_poolers(
    path: str, config: PreTrainedConfig, pooler: str | None, mlp_only_train: bool | None, has_head: bool
) -> _Poolers:
    """The rule of `from_pretrained`'s docstring."""
    if pooler is not None:
        return _derived(pooler, mlp_only_train)
    if saved := getattr(config, "simcse", None):
        chosen = _Poolers(saved["train_pooler"], saved["mlp_only_train"], saved["eval_pooler"])
        if mlp_only_train is not None:
            chosen = _derived(chosen.train_pooler, mlp_only_train)
    elif declared := checkpoints.sentence_transformers_pooler(path):
        chosen = _derived(declared, mlp_only_train)
    elif config.model_type in checkpoints.DECODERS:
        chosen = _derived("avg", mlp_only_train)
    else:
        chosen = _derived("cls", "unsup" in path if mlp_only_train is None else mlp_only_train)
    if chosen.train_pooler == "cls" and chosen.eval_pooler != "cls" and not has_head:
        return _derived(
            chosen.eval_pooler, False
        )  # evaluating it takes no head, so a missing one is no reason to refuse
    return chosen


def _derived(pooler: str, mlp_only_train: bool | None) -> _Poolers:
    return _Poolers(pooler, bool(mlp_only_train), "cls_before_pooler" if mlp_only_train else pooler)


def _no_head_message(what: str) -> str:
    return (
        f"pooler is 'cls', but {what} has no pooler weights: its tanh head would be random and its scores meaningless; "
        "use pooler=cls_before_pooler or avg, or head=random to train a new head"
    )


def _initialise(linear: nn.Linear, config: PreTrainedConfig) -> None:
    nn.init.normal_(linear.weight, mean=0.0, std=config.initializer_range)
    nn.init.zeros_(linear.bias)
