"""Documents -> token files: parallel tokenization, memory-mapped storage, deterministic order, packing."""

from shared.tokenization.encoding import TokenizerFacts, tokenizer_facts
from shared.tokenization.token_file import TokenFile, seal

__all__ = ["TokenFile", "TokenizerFacts", "seal", "tokenizer_facts"]
