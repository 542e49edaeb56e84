"""Documents -> token files: parallel tokenization, memory-mapped storage, deterministic order, packing.

    documents = json_lines("pages.jsonl", metadata=("url",))                    # or text_files, parquet, dataset, ...
    file = tokenize_documents(documents, tokenizer, "pages.tokens", processes=8)  # killed? run it again: it goes on
    file = TokenFile.open("pages.tokens", tokenizer=tokenizer)

    blocks = fixed_blocks(file, 2048)                                             # or packed_documents, whole_documents
    loader = DataLoader(blocks, batch_size=8, sampler=ShuffledSampler(len(blocks), seed=1, rank=rank, world_size=8))

`token_file` has the layout on disk, `documents` what can be read, `writing` and `growing` how a file is made, `order`
how examples are shuffled and domains mixed.
"""

from shared.tokenization.documents import (
    Source,
    dataset,
    hub_files,
    iterable,
    json_lines,
    offline_corpus,
    parquet,
    text_files,
)
from shared.tokenization.encoding import TokenizerFacts, tokenizer_facts
from shared.tokenization.order import MixtureSampler, Shuffle, ShuffledSampler
from shared.tokenization.packing import fixed_blocks, packed_documents, whole_documents
from shared.tokenization.token_file import TokenFile, seal
from shared.tokenization.writing import tokenize_documents

__all__ = [
    "MixtureSampler",
    "Shuffle",
    "ShuffledSampler",
    "Source",
    "TokenFile",
    "TokenizerFacts",
    "dataset",
    "fixed_blocks",
    "hub_files",
    "iterable",
    "json_lines",
    "offline_corpus",
    "packed_documents",
    "parquet",
    "seal",
    "text_files",
    "tokenize_documents",
    "tokenizer_facts",
    "whole_documents",
]
