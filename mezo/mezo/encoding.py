"""From samples to token ids (MeZO's large-model protocol): what is a prompt's, what is an option's, what is cut.

    unverbalised = prompt, blanks at both ends stripped        (line breaks stay)
    verbalised_c = prompt with candidate c, stripped likewise
    option_len_c = tokens of verbalised_c - tokens of unverbalised
    text_c       = demonstrations and verbalised_c, joined by blank lines
    ids_c        = BOS and at most max_length - 1 last tokens of text_c

`bos="authors"` is the release's: OPT gets id 0 (`<s>`) in front where its own tokenizer would put 2 (`</s>`); every
other model gets what its tokenizer puts there. `bos="model"` gives OPT its own too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mezo.tasks import Sample, Task
from shared import InputError

BOS = ("authors", "model")
OPT_BOS = 0
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    candidates: all ids of each candidate's text, BOS included. option_lens: how many of the last ids are the option.
    gold: numbers of the right candidates, the one that is trained on first. id: of the sample.
    """

    id: str
    candidates: tuple[Ids, ...]
    option_lens: tuple[int, ...]
    gold: tuple[int, ...]

    @property
    def single_tokens(self) -> bool:
        """Whether one forward pass of the prompt scores all candidates."""
        return len({ids[:-1] for ids in self.candidates}) == 1 and set(self.option_lens) == {1}

    def only(self, candidate: int) -> Encoded:
        """The same with one candidate."""
        return Encoded(self.id, (self.candidates[candidate],), (self.option_lens[candidate],), (0,))


@dataclass(frozen=True)
class Prompt:
    """A prompt to be continued. ids: BOS included. answers: the sample's."""

    id: str
    ids: Ids
    answers: tuple[str, ...]


class Encoder:
    """Encodes the samples of one task for one tokenizer.

    Args:
        max_length: ids of a sequence at most, the new tokens of a generation task included.
        model_type: of the model's config ("opt", "llama", ...), for `bos="authors"`.
    Raises:
        InputError: unknown bos, a max_length that leaves no room.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        bos: str = "authors",
        max_length: int = 2048,
        model_type: str | None = None,
    ) -> None:
        if bos not in BOS:
            raise InputError(f"bos={bos!r}: choose {' or '.join(BOS)}")
        room = task.max_new_tokens if task.kind == "generation" else 0
        if not isinstance(max_length, int) or max_length - room < 8:
            raise InputError(f"max_length={max_length}: give at least {room + 8} tokens for task {task.name}")
        self.task, self.tokenizer = task, tokenizer
        self.limit = max_length - room
        self.front = (OPT_BOS,) if bos == "authors" and model_type == "opt" else front_tokens(tokenizer)

    def candidates(self, sample: Sample, demos: Sequence[Sample] = (), *, content_free: str = "none") -> Encoded:
        """All candidates of a classification or multiple-choice sample.

        Args:
            content_free: "sfc": the content-free prompt alone; "icl_sfc": with the demonstrations.
        Raises:
            InputError: a candidate that adds no token to its prompt, or is longer than max_length.
        """
        if content_free != "none":
            sample = self.task.content_free(sample)
            demos = demos if content_free == "icl_sfc" else ()
        answered = [self.task.verbalise(sample, candidate) for candidate in sample.candidates]
        return self._encoded(sample, answered, demos, strip=True)

    def right(self, sample: Sample, demos: Sequence[Sample] = ()) -> Encoded:
        """The right answer only, for the language-model loss; a generation task's with its line break."""
        return self._encoded(
            sample, [self.task.gold_text(sample)], demos, strip=self.task.kind != "generation", gold=(0,)
        )

    def prompt(self, sample: Sample, demos: Sequence[Sample] = ()) -> Prompt:
        """The prompt alone, to be continued."""
        text = self._with_demos(self.task.encode(sample).strip(" "), demos)
        return Prompt(sample.id, self._cut(self._tokens(text)), sample.answers)

    def _encoded(
        self,
        sample: Sample,
        answered: Sequence[str],
        demos: Sequence[Sample],
        *,
        strip: bool,
        gold: tuple[int, ...] | None = None,
    ) -> Encoded:
        asked = len(self._tokens(self.task.encode(sample).strip(" ")))
        all_ids, lens = [], []
        for text in answered:
            text = text.strip(" ") if strip else text.lstrip(" ")
            tokens = self._tokens(text)
            option = len(tokens) - asked
            if option <= 0:
                raise InputError(
                    f"{sample.id}: the answer in {text[-60:]!r} adds no token to the prompt (option_len {option}); the "
                    "template needs a blank or a line break between them"
                )
            whole = self._with_demos(text, demos)
            ids = self._cut(tokens if whole == text else self._tokens(whole))
            if option >= len(ids):
                raise InputError(
                    f"{sample.id}: an option of {option} tokens leaves no prompt in max_length={self.limit}; raise it"
                )
            all_ids.append(ids)
            lens.append(option)
        return Encoded(sample.id, tuple(all_ids), tuple(lens), sample.gold if gold is None else gold)

    def _with_demos(self, text: str, demos: Sequence[Sample]) -> str:
        return "\n\n".join([*(self.task.gold_text(demo).strip() for demo in demos), text]).lstrip()

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _cut(self, ids: list[int]) -> Ids:
        room = self.limit - len(self.front)
        return (*self.front, *ids[max(0, len(ids) - room) :])


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """What the tokenizer puts before a text: BOS, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    with_special = tokenizer("a", add_special_tokens=True)["input_ids"]
    return tuple(with_special[: with_special.index(plain[0])]) if plain else ()
