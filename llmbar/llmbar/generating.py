"""judge=vllm | openai | transformers: strategies and prompts by configuration, answers from a generation back end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmbar import tiny_judge
from llmbar.data import Instance, Sets, group
from llmbar.decoding import Decoding, bias_sets, tiktoken_encoder, uses_bias
from llmbar.judgements import write_judgements
from llmbar.judges import Judged, PromptJudge
from llmbar.locations import prompt_folder
from llmbar.prompts import read_templates
from llmbar.replay import Rules
from llmbar.strategies import Strategy, all_strategies, from_config
from shared import InputError
from shared.generation import Completion, Generator, Request, make_generator

log = logging.getLogger(__name__)


def ask_model(cfg: DictConfig, sets: Sets, output_dir: Path) -> tuple[Path, Rules, dict[str, Any]] | None:
    """Judge all instances and write judgements.jsonl; (its path, how to read it, what else to report).

    None after a dry run. Answers are kept in answers.jsonl as they come, so a killed or failed run goes on where it
    was.
    Raises InputError, at the end, where instances have no answer (unless allow_partial).
    """
    strategies = from_config(OmegaConf.to_container(cfg.strategy))
    if not strategies:
        raise InputError("strategy is empty; name one, e.g. strategy=vanilla")
    prompts, folder = prompt_folder(cfg.prompts)
    templates = read_templates(folder, strategies)
    parts = by_family(strategies, sets, cfg.data.get("strategies"))
    options = OmegaConf.to_container(cfg.judge.generator, resolve=True)
    options = {key: value for key, value in options.items() if value is not None}  # null: the back end's own default
    if "model" not in options:
        raise InputError(f"model is missing: the {options['backend']} back end needs it (model=...)")
    if options["model"] == tiny_judge.NAME and options["backend"] != "openai":
        options["model"] = str(tiny_judge.tiny_judge(output_dir / "tiny_model", templates=templates))
    with make_generator(options, paper="llmbar") as generator:
        name = cfg.judge.name or str(cfg.model)
        decoding = make_decoding(cfg.decoding, strategies, generator)
        judge = partial(
            PromptJudge, templates=templates, decoding=decoding,
            chat_format=cfg.judge.chat_format, name=name, parsing=cfg.parsing,
        )  # fmt: skip
        if cfg.dry_run:
            generator.dry_run(planned_requests(judge, parts), output_dir / "answers.jsonl").print()
            return None
        ask = partial(generator.generate, journal=output_dir / "answers.jsonl", keep_failures=True)
        judged = sum((judge(ask, chosen).run(instances) for chosen, instances in parts), Judged())
    if judged.failed:
        report_failures(judged, output_dir, cfg.allow_partial)
    path = write_judgements(output_dir, judged.records)
    extra = {
        "prompts": prompts,
        "calls": {
            "naive": judged.calls.naive,
            "asked": judged.calls.asked,
            "instances": sum(len(instances) for _, instances in parts),
        },
        "failed": len(judged.failed),
        "chance_is_expected": cfg.model == tiny_judge.NAME,
    }
    return path, Rules(name, strategies, templates, cfg.parsing), extra


def by_family(
    strategies: dict[str, Strategy], sets: Sets, only: Mapping[str, Sequence[str]] | None
) -> list[tuple[dict[str, Strategy], list[Instance]]]:
    """(strategies, instances) that are judged together: everything, unless `only` limits a family to some strategies.

    Raises InputError for a family or a strategy in `only` that does not exist, and where nothing is left to judge.
    """
    limits = {str(family): list(names) for family, names in (only or {}).items()}
    known = all_strategies() | strategies
    for family, names in limits.items():
        if family not in {group(name) for name in sets}:
            raise InputError(f"data.strategies.{family}: no set of this family is selected ({', '.join(sets)})")
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"data.strategies.{family}: strategy {unknown[0]} is unknown; see configs/strategy/")
    parts: dict[tuple[str, ...], list[Instance]] = {}
    for name, instances in sets.items():
        chosen = tuple(s for s in strategies if s in limits.get(group(name), strategies))
        if chosen:
            parts.setdefault(chosen, []).extend(instances)
    if not parts:
        raise InputError(f"data.strategies leaves nothing of strategy=[{', '.join(strategies)}] to ask")
    return [({name: strategies[name] for name in chosen}, instances) for chosen, instances in parts.items()]


def make_decoding(cfg: DictConfig, strategies: dict[str, Strategy], generator: Generator) -> Decoding:
    """Temperature and, if asked for, the logit biases in the token ids of the model that is asked."""
    bias: dict[str, dict[int, float]] = {}
    if cfg.logit_bias and uses_bias(strategies):
        if cfg.tokenizer is not None:
            from shared.generation.prompts import load_tokenizer

            encode = partial(load_tokenizer(cfg.tokenizer).encode, add_special_tokens=False)
        elif generator.tokenizer is not None:
            encode = partial(generator.tokenizer.encode, add_special_tokens=False)
        else:
            encode = tiktoken_encoder(generator.model)
        bias = bias_sets(encode, cfg.tokens_to_avoid, cfg.tokens_to_favor, cfg.avoid_bias, cfg.favor_bias)
    return Decoding(cfg.temperature, cfg.top_p, bias, cfg.short_limit)


def planned_requests(judge: Any, parts: Sequence[tuple[dict[str, Strategy], list[Instance]]]) -> list[Request]:
    """Every question a run could ask, for the dry run: helper texts and explanations stand in at their full length.

    judge: (ask, strategies) -> a PromptJudge; parts: as `by_family` gives them. The stand-in is one short word per
    allowed token, and every first stage is taken to end in a conflict, so the count is an upper bound up to the
    tokenizer's ways.
    """
    asked: list[Request] = []

    def pretend(wave: list[Request]) -> list[Completion]:
        asked.extend(wave)
        return [_stand_in(request) for request in wave]

    for strategies, instances in parts:
        judge(pretend, strategies).run(instances)
    return asked


def _stand_in(request: Request) -> Completion:
    words = " ".join(["word"] * max(1, request.max_tokens - 12))
    scored = dict.fromkeys(request.candidates, 0.0) or None
    # Always "(a)": in the two orders that names both outputs, which is the conflict that costs a second stage.
    return Completion(
        request.id, f"Output (a) {words}\nTherefore, Output (a) is better.", "stop", candidate_logprobs=scored
    )


def report_failures(judged: Judged, output_dir: Path, allow_partial: bool) -> None:
    """Say what has no answer; an error unless partial results are welcome."""
    first = next(iter(judged.failed))
    message = (
        f"{len(judged.failed)} of {len(judged.failed) + len(judged.records)} judgements have no answer, first {first}: "
        f"{judged.failed[first]}. The others are kept in {output_dir / 'answers.jsonl'}: the same command "
        "again asks only for what is missing"
    )
    if not allow_partial:
        raise InputError(f"{message}; allow_partial=true scores what there is")
    log.warning(message)
