"""LitSearch: A Retrieval Benchmark for Scientific Literature Search (EMNLP 2024), reproduced."""
