"""LLMBar: evaluating large language models at evaluating instruction following (Zeng et al., ICLR 2024)."""
