"""SimCSE's training model: one or two encoders, the contrastive objective, and the auxiliary MLM (SimCSE, sections 3,
4 and D).

A batch is `(batch, num_sent, seq)`: anchor, positive and, with three or more, hard negatives. All rows go through the
encoder in one forward, so that the two copies of a sentence in unsupervised SimCSE differ in their dropout masks and
in nothing else.
The forward knows nothing of how it is launched: across processes `gather` joins the batches, and `gradcache` cuts
    them into chunks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from shared import InputError
from simcse.contrastive import check_objective, loss_from_logits, similarity_logits
from simcse.dropout import check_rate, replayed, set_dropout
from simcse.encoder import MaskedLMHead, SentenceEncoder, SentenceHead
from simcse.gather import gather_rows
from simcse.gradcache import in_original_order, run_in_chunks

__all__ = ["ContrastiveModel", "MaskedLMHead", "SentenceEncoder", "SentenceHead"]


class ContrastiveModel(nn.Module):
    """Encoder and objective; `forward` returns the loss, as transformers' Trainer expects.

    Args:
        encoder: embeds every sentence, and is the one that is saved and tested.
        second_encoder: if given, embeds positives and hard negatives, while `encoder` embeds anchors (Table 2, "f1
            and f2").
        temperature, similarity, hard_negative_weight: see `simcse.contrastive.contrastive_loss`.
        mlm_weight: lambda of `loss + lambda * CE(masked tokens)` (the paper uses 0.1); 0 switches the MLM off.
        dropout: one rate for hidden and attention dropout, or None to keep the checkpoint's.
        fixed_mask: all views of an example meet the same dropout mask (Table 3, "Fixed 0.1").
        row_chunks: number of length-sorted chunks per forward, each padded to its own longest row; None for one.
        grad_cache_chunk: at most this many rows per chunk, with gradient caching; None for off. With `fixed_mask` or
            `second_encoder`, where the views of an example stay together, rows are counted as examples times views.
        released_ddp_scale: the authors' 1/world_size gradient scale, see `simcse.gather`.

    Raises: InputError on any setting that cannot be used.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        *,
        second_encoder: SentenceEncoder | None = None,
        temperature: float = 0.05,
        similarity: str = "cos",
        hard_negative_weight: float = 0.0,
        mlm_weight: float = 0.0,
        dropout: float | None = None,
        fixed_mask: bool = False,
        row_chunks: int | None = None,
        grad_cache_chunk: int | None = None,
        released_ddp_scale: bool = False,
    ):
        super().__init__()
        _as_input_error(check_objective, temperature, hard_negative_weight, similarity)
        self.encoder, self.second_encoder = encoder, second_encoder
        self.objective = {
            "temperature": temperature,
            "similarity": similarity,
            "hard_negative_weight": hard_negative_weight,
        }
        self.mlm_weight, self.fixed_mask = mlm_weight, fixed_mask
        self.row_chunks, self.grad_cache_chunk = row_chunks, grad_cache_chunk
        self.released_ddp_scale = released_ddp_scale
        self._check_parts()
        if dropout is not None:
            _as_input_error(check_rate, dropout)
            for each in (encoder, second_encoder):
                if each is not None:
                    set_dropout(each.backbone, dropout)

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's config, where Trainer and DeepSpeed look for sizes."""
        return self.encoder.config

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Trainer's `gradient_checkpointing`, handed to the backbones."""
        for each in (self.encoder, self.second_encoder):
            if each is not None:
                each.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        mlm_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss on a batch.

        Args:
            input_ids, attention_mask, token_type_ids, mlm_input_ids, mlm_labels: `(batch, num_sent, seq)`, num_sent
                >= 2; mlm_labels is -100 where a token is not to be predicted.

        Returns: "loss", a scalar, and "logits", the detached similarities of the joint batch of all processes,
            divided by tau: `(batch, batch)`, or `(batch, (num_sent - 1) * batch)` with hard negatives.

        Raises: InputError on a shape, or on a hard_negative_weight without hard negatives, or an MLM weight without
            MLM input.
        """
        self._check_batch(input_ids, mlm_input_ids, mlm_labels)
        vectors = self.embed_views(input_ids, attention_mask, token_type_ids)
        if self.training:
            vectors = gather_rows(vectors, released_ddp_scale=self.released_ddp_scale)
        anchor, positive, *hard = vectors.unbind(1)
        logits = similarity_logits(anchor, positive, torch.stack(hard) if hard else None, **self.objective)
        loss = loss_from_logits(logits)
        if self.mlm_weight and mlm_input_ids is not None:
            loss = loss + self.mlm_weight * self.mlm_loss(mlm_input_ids, attention_mask, mlm_labels, token_type_ids)
        return {"loss": loss, "logits": logits.detach()}

    def embed_views(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """`(batch, num_sent, seq)` -> `(batch, num_sent, hidden)`, on this process."""
        batch, views, _ = input_ids.shape
        together = self.fixed_mask or self.second_encoder is not None
        tensors = [input_ids, token_type_ids, attention_mask]
        if not together:
            tensors = [_as_rows(tensor) for tensor in tensors]
        chunks = run_in_chunks(
            self._embed_examples if together else self._embed_rows,
            tensors[:2],
            tensors[2],
            num_chunks=self.row_chunks,
            chunk_rows=self._units_per_cached_chunk(views if together else 1),
            cache_gradients=self.grad_cache_chunk is not None,
        )
        return in_original_order(chunks).view(batch, views, -1)

    def mlm_loss(
        self, mlm_input_ids: Tensor, attention_mask: Tensor, labels: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy over this process's masked positions (SimCSE, appendix D); inputs as in `forward`."""
        chunks = run_in_chunks(
            self._mlm_sum,
            [_as_rows(tensor) for tensor in (mlm_input_ids, token_type_ids, labels)],
            _as_rows(attention_mask),
            num_chunks=self.row_chunks,
            chunk_rows=self.grad_cache_chunk,
            cache_gradients=self.grad_cache_chunk is not None,
        )
        return sum(total for _, total in chunks) / (labels != -100).sum().clamp(min=1)

    def _embed_rows(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor) -> Tensor:
        return self.encoder.embed(input_ids, attention_mask, token_type_ids)

    def _embed_examples(self, input_ids: Tensor, token_type_ids: Tensor | None, attention_mask: Tensor) -> Tensor:
        """Views one after the other, `(examples, num_sent, seq)` -> `(examples, num_sent, hidden)`."""

        def embed(view: int) -> Tensor:
            encoder = self.encoder if view == 0 or self.second_encoder is None else self.second_encoder
            types = None if token_type_ids is None else token_type_ids[:, view]
            return encoder.embed(input_ids[:, view], attention_mask[:, view], types)

        views = range(input_ids.shape[1])
        if self.fixed_mask:
            return torch.stack(replayed([lambda view=view: embed(view) for view in views], input_ids.device), dim=1)
        return torch.stack([embed(view) for view in views], dim=1)

    def _mlm_sum(
        self, input_ids: Tensor, token_type_ids: Tensor | None, labels: Tensor, attention_mask: Tensor
    ) -> Tensor:
        hidden_state = self.encoder.hidden_states(input_ids, attention_mask, token_type_ids)
        # Logits only where there is something to predict: about 15% of the positions, each a row as long as the
        # vocabulary.
        masked = labels != -100
        embeddings = self.encoder.backbone.get_input_embeddings().weight
        logits = self.encoder.mlm_head(hidden_state[masked], embeddings)
        with torch.autocast(logits.device.type, enabled=False):
            return F.cross_entropy(logits.float(), labels[masked], reduction="sum")

    def _units_per_cached_chunk(self, rows_per_unit: int) -> int | None:
        return None if self.grad_cache_chunk is None else max(1, self.grad_cache_chunk // rows_per_unit)

    def _check_parts(self) -> None:
        if self.mlm_weight < 0:
            raise InputError(f"mlm_weight is {self.mlm_weight}, but must be at least 0 (the paper uses 0.1)")
        if self.mlm_weight and self.encoder.mlm_head is None:
            raise InputError(f"mlm_weight is {self.mlm_weight}, but the encoder has no MLM head: load it with mlm=True")
        if not self.mlm_weight and self.encoder.mlm_head is not None:
            raise InputError(
                "the encoder has an MLM head, but mlm_weight is 0: its weights would never be used; set mlm_weight"
            )
        if self.mlm_weight and self.second_encoder is not None:
            raise InputError(
                "mlm_weight is set together with a second encoder: the paper combines MLM with one encoder only"
            )
        for name, value in (("row_chunks", self.row_chunks), ("grad_cache_chunk", self.grad_cache_chunk)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, but must be at least 1, or null to switch it off")

    def _check_batch(self, input_ids: Tensor, mlm_input_ids: Tensor | None, mlm_labels: Tensor | None) -> None:
        if input_ids.dim() != 3 or input_ids.shape[1] < 2:
            raise InputError(f"input_ids must be (batch, num_sent >= 2, seq), but is {tuple(input_ids.shape)}")
        if self.objective["hard_negative_weight"] and input_ids.shape[1] == 2:
            raise InputError(
                f"hard_negative_weight is {self.objective['hard_negative_weight']}, but there are no hard negatives: "
                "give a third column, or set hard_negative_weight to 0"
            )
        if self.mlm_weight and self.training and (mlm_input_ids is None or mlm_labels is None):
            raise InputError(
                "mlm_weight is set, but the batch has no mlm_input_ids and mlm_labels: use the MLM collator"
            )


def _as_rows(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.flatten(0, 1)


def _as_input_error(check, *values: object) -> None:
    # The files of the paper's idea import torch alone and raise ValueError; entrypoints report InputError.
    try:
        check(*values)
    except ValueError as error:
        raise InputError(str(error)) from None
