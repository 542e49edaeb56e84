"""SimCSE: simple contrastive learning of sentence embeddings (Gao, Yao and Chen, EMNLP 2021).

`from simcse import SimCSE` is the library class of `simcse.search`; it is loaded when first asked for, so that
`import simcse` costs neither torch nor transformers.
"""

__all__ = ["SimCSE"]


def __getattr__(name: str):
    if name == "SimCSE":
        from simcse.search import SimCSE

        return SimCSE
    raise AttributeError(f"module 'simcse' has no attribute {name!r}")
