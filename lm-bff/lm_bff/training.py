"""One trial: a task, a method and a grid point, from prompts to test metrics, in this process.

    builders -> dev and test prompts (all draws of demonstrations, once) -> updates, dev every n of them -> best -> test

The pre-trained weights stay where they are and every trial copies them, so that a sweep of 45 trials reads a model
once. The best weights (dev score strictly greater than before, so the first of equals) are kept in memory as clones.
Micro-batches give the mean of means of the release; as their sizes are equal, one pass over the whole batch gives the
same gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lm_bff import demonstrations, regression
from lm_bff.batches import autocast, collate, outputs_of
from lm_bff.data import Example, class_numbers
from lm_bff.in_context import draw_context
from lm_bff.label_words import label_words
from lm_bff.model import Pretrained
from lm_bff.optimizer import adamw, linear_decay
from lm_bff.outcome import TrialResult, majority, measure
from lm_bff.prompts import PromptBuilder
from lm_bff.settings import TrialSettings
from lm_bff.similarity import embedder
from lm_bff.tasks import Task
from lm_bff.template import Rendered, parse
from shared import InputError
from shared.training import seed_everything

OnEvaluation = Callable[[int, float], None]


def run_trial(
    pretrained: Pretrained | None,
    task: Task,
    train: Sequence[Example],
    dev: Sequence[Example],
    test: Mapping[str, Sequence[Example]] | Sequence[Example],
    settings: TrialSettings,
    *,
    on_evaluation: OnEvaluation | None = None,
) -> TrialResult:
    """Run one trial.

    Args:
        pretrained: the model; may be None for method majority.
        dev: empty to train without selection (the last weights are tested).
        test: test sets by name, or one; {} to measure dev only.
        on_evaluation: told (step, dev score) of every evaluation.
    Raises:
        InputError: whatever cannot be rendered or trained.
    """
    tests = dict(test) if isinstance(test, Mapping) else {task.name: test}
    if not train:
        raise InputError(f"task={task.name}: the training set is empty")
    if settings.method == "majority":
        return majority(task, train, dev, tests, settings)
    if pretrained is None:
        raise InputError(f"method={settings.method} needs a model")
    return Trial(pretrained, task, train, settings).run(dev, tests, on_evaluation)


class Trial:
    """The state of one trial: prompt builders, the model being trained, and random draws."""

    def __init__(self, pretrained: Pretrained, task: Task, train: Sequence[Example], settings: TrialSettings):
        self.pretrained, self.task, self.train, self.settings = pretrained, task, train, settings
        self.clock: dict[str, float] = {}
        self.prompted = settings.method != "finetune"
        templates = settings.templates or (task.template,)
        words = None
        if self.prompted:
            words = label_words(pretrained.tokenizer, settings.mapping or task.mapping, task.labels, task.name).ids
        self.words = words
        self.builders = [self._builder(template) for template in (templates if self.prompted else templates[:1])]
        self.support_classes = [task.context_class(example.label) for example in train]
        self.demo_classes = len(task.labels)
        if task.regression and settings.stsb_demos == "authors":
            self.demo_classes = 1
        self.rng = self._generator(0)

    def _builder(self, template: str) -> PromptBuilder:
        settings, task = self.settings, self.task
        return PromptBuilder(
            self.pretrained.tokenizer,
            parse(template),
            self.words or (),
            task.num_sentences,
            settings.max_length or task.length_limit(settings.demonstrates),
            settings.first_sent_limit or task.first_sent_limit,
            settings.other_sent_limit or task.other_sent_limit,
            settings.truncate_head,
            settings.segments,
            limit_segments=self.pretrained.uses_segments,
            max_positions=self.pretrained.max_positions,
        )

    def _generator(self, stream: int) -> np.random.Generator | np.random.RandomState:
        """A generator of demonstrations: numpy's old one, seeded anew for training, where draws are to be replayed."""
        if self.settings.demo_sampler == "permutation":
            return np.random.RandomState(self.settings.seed)
        return np.random.default_rng([self.settings.seed, stream])

    # ----------------------------------------------------------------------------------------------------- evaluation

    def prepare(self, examples: Sequence[Example]) -> list[Rendered]:
        """The prompts of a dev or test set: for every template and draw, all examples."""
        with Timer(self.clock, "prompts"):
            if not self.prompted:
                return self.builders[0].sequence_pairs(examples)
            if self.settings.method == "icl":
                options = self.settings.in_context
                context = draw_context(len(self.train), len(examples), options.examples, self.rng)
                return self.builders[0].in_context(examples, self.train, self.support_classes, context, options)
            if not self.settings.demonstrates:
                return [prompt for builder in self.builders for prompt in builder.plain(examples)]
            chosen = self._select(examples, self.settings.draws(self.task), self.rng)
            return [p for builder in self.builders for p in builder.demonstrated(examples, self.train, chosen)]

    def _select(self, examples: Sequence[Example], draws: int, rng, exclude: Sequence[int] | None = None) -> np.ndarray:
        similarities = None
        if self.settings.filter is not None:
            similarities = embedder(self.settings.filter).similarities(examples, self.train)
        chosen = demonstrations.select(
            self.support_classes,
            len(examples),
            draws,
            rng,
            classes=len(self.task.labels),
            similarities=similarities,
            keep=self.settings.filter_keep,
            exclude=exclude,
            sampler=self.settings.demo_sampler,
        )
        return chosen[..., : self.demo_classes]

    def outputs(self, model: nn.Module, prompts: Sequence[Rendered], count: int) -> np.ndarray:
        """(count, classes) outputs of `count` examples: logits (or scores of a regression) averaged over the draws."""
        raw = outputs_of(
            model,
            prompts,
            self.pretrained.tokenizer.pad_token_id,
            batch_tokens=self.settings.batch_tokens,
            bf16=self.settings.bf16,
        )
        if self.task.regression and self.prompted:
            raw = regression.predicted_scores(torch.from_numpy(raw), self.task.bounds).numpy()[:, None]
        return raw.reshape(-1, count, raw.shape[1]).mean(axis=0)

    # ------------------------------------------------------------------------------------------------------- training

    def build_model(self) -> nn.Module:
        settings = self.settings
        if not self.prompted:
            outputs = 1 if self.task.regression else len(self.task.labels)
            return self.pretrained.finetune_model(outputs, seed=settings.seed, freeze_layers=settings.freeze_layers)
        return self.pretrained.prompt_model(
            self.words,
            seed=settings.seed,
            random_segments=settings.random_segments,
            freeze_layers=settings.freeze_layers,
        )

    def batches(self) -> Iterator[list[int]]:
        """Endless batches of training example numbers: shuffled every epoch, the last one of an epoch may be small."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        while True:
            order = torch.randperm(len(self.train), generator=generator).tolist()
            for start in range(0, len(order), self.settings.batch_size):
                yield order[start : start + self.settings.batch_size]

    def training_prompts(self) -> Iterator[tuple[list[Rendered], Tensor]]:
        """Endless (prompts, gold) of batches; demonstrations and templates are drawn anew for every example."""
        gold = class_numbers(self.task, self.train)
        fixed = None
        if not self.prompted:
            fixed = self.builders[0].sequence_pairs(self.train)
        rng = self._generator(1)
        pick = np.random.default_rng([self.settings.seed, 2])
        similarities = None
        if self.settings.demonstrates and self.settings.filter is not None:
            similarities = embedder(self.settings.filter).similarities(self.train, self.train)
        for rows in self.batches():
            if fixed is not None:
                prompts = [fixed[row] for row in rows]
            else:
                which = pick.integers(len(self.builders), size=len(rows)) if len(self.builders) > 1 else [0] * len(rows)
                prompts = self._draw(rows, which, rng, similarities)
            yield prompts, torch.tensor([gold[row] for row in rows])

    def _draw(self, rows: list[int], which: Sequence[int], rng, similarities: np.ndarray | None) -> list[Rendered]:
        examples = [self.train[row] for row in rows]
        if not self.settings.demonstrates:
            return [self.builders[w].plain([example])[0] for w, example in zip(which, examples, strict=True)]
        chosen = demonstrations.select(
            self.support_classes,
            len(rows),
            1,
            rng,
            classes=len(self.task.labels),
            similarities=None if similarities is None else similarities[rows],
            keep=self.settings.filter_keep,
            exclude=rows,
            sampler=self.settings.demo_sampler,
        )[..., : self.demo_classes]
        return [
            self.builders[w].demonstrated([example], self.train, chosen[:, number : number + 1])[0]
            for number, (w, example) in enumerate(zip(which, examples, strict=True))
        ]

    def loss(self, logits: Tensor, gold: Tensor) -> Tensor:
        """Mean loss of a (micro-)batch."""
        if not self.task.regression:
            return F.cross_entropy(logits, gold)
        if not self.prompted:
            return F.mse_loss(logits[:, 0], gold.float())
        return regression.regression_loss(logits, gold, self.task.bounds, self.settings.regression_loss)

    def update(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, prompts: list[Rendered], gold: Tensor
    ) -> Tensor:
        """One optimiser step; returns its loss, still on the device."""
        size = self.settings.micro_batch_size or len(prompts)
        total = torch.zeros((), device=model.device)
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            with autocast(model.device, self.settings.bf16):
                logits = model(**collate(part, self.pretrained.tokenizer.pad_token_id, model.device))
            loss = self.loss(logits, gold[start : start + size].to(model.device)) * (len(part) / len(prompts))
            loss.backward()
            total += loss.detach()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()
        return total

    def fit(self, model: nn.Module, dev: Sequence[Example], dev_prompts: list[Rendered], told: OnEvaluation | None):
        """Train; returns (step of the best weights, history, their dev outputs or None), with them in the model."""
        settings = self.settings
        optimizer = adamw(model.parameters(), settings.lr, settings.adam_eps, settings.weight_decay)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        best: list[Tensor] | None = None
        best_score, best_step, history = -math.inf, settings.max_steps, []
        best_outputs: np.ndarray | None = None
        losses: list[Tensor] = []
        stream = self.training_prompts()
        model.train(settings.dropout)
        for step in range(1, settings.max_steps + 1):
            with Timer(self.clock, "training"):
                for group in optimizer.param_groups:
                    group["lr"] = linear_decay(settings.lr, step - 1, settings.max_steps)
                losses.append(self.update(model, optimizer, *next(stream)))
            if step % settings.eval_every and step != settings.max_steps:
                continue
            mean_loss = float(torch.stack(losses).mean())
            losses.clear()
            if not math.isfinite(mean_loss):
                raise InputError(f"the training loss is {mean_loss} by step {step}: lower lr={settings.lr:g}")
            if step % settings.eval_every or not dev:
                continue
            with Timer(self.clock, "dev"):
                outputs = self.outputs(model, dev_prompts, len(dev))
                score = measure(self.task, outputs, dev)[self.task.metric]
            history.append({"step": step, "dev": score, "loss": mean_loss})
            if told is not None:
                told(step, score)
            if score > best_score:
                best_score, best_step, best_outputs = score, step, outputs
                if step < settings.max_steps:
                    best = keep(trainable, best)
        if best_step < settings.max_steps and best is not None:
            restore(trainable, best)
        return best_step, history, best_outputs

    def run(
        self, dev: Sequence[Example], tests: Mapping[str, Sequence[Example]], told: OnEvaluation | None = None
    ) -> TrialResult:
        """Prompts, training, dev and test."""
        settings, task = self.settings, self.task
        seed_everything(settings.seed)
        dev_prompts = self.prepare(dev) if dev else []
        test_prompts = {name: self.prepare(examples) for name, examples in tests.items()}
        seed_everything(settings.seed)
        model = self.build_model()
        best_step, history, dev_outputs = None, [], None
        if settings.trained:
            best_step, history, dev_outputs = self.fit(model, dev, dev_prompts, told)
        with Timer(self.clock, "dev"):
            if not dev:
                dev_outputs = np.empty((0, len(task.labels)), np.float32)
            elif dev_outputs is None:
                dev_outputs = self.outputs(model, dev_prompts, len(dev))
        with Timer(self.clock, "test"):
            test_outputs = {name: self.outputs(model, test_prompts[name], len(tests[name])) for name in tests}
        return TrialResult(
            task.name,
            settings,
            measure(task, dev_outputs, dev) if dev else {},
            {name: measure(task, test_outputs[name], tests[name]) for name in tests},
            dev_outputs,
            test_outputs,
            best_step,
            history,
            self.clock,
            task.metric,
        )


@torch.no_grad()
def keep(parameters: Sequence[Tensor], into: list[Tensor] | None = None) -> list[Tensor]:
    """Clones of the weights (an alias would follow the training), in the buffers of an earlier call where given."""
    if into is None:
        return [parameter.detach().clone() for parameter in parameters]
    for buffer, parameter in zip(into, parameters, strict=True):
        buffer.copy_(parameter)
    return into


@torch.no_grad()
def restore(parameters: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Put kept weights back."""
    for parameter, buffer in zip(parameters, kept, strict=True):
        parameter.copy_(buffer)


class Timer:
    """Adds the wall time of a block to `clock[name]`."""

    def __init__(self, clock: dict[str, float], name: str):
        self.clock, self.name = clock, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock[self.name] = self.clock.get(self.name, 0.0) + time.perf_counter() - self.start
