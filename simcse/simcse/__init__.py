"""SimCSE: simple contrastive learning of sentence embeddings (Gao, Yao and Chen, EMNLP 2021)."""
