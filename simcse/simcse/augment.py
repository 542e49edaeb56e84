"""Discrete augmentation of the text of a view: the rows of Table 1, always on top of the usual dropout.

| kind | what happens to a sentence |
|---|---|
| crop | a contiguous span of (100 - k)% of the words is kept |
| word_deletion | k% of the words are deleted |
| delete_one_word | one word is deleted |
| synonym | one word is replaced by a WordNet synonym |
| mlm | k% of the words are replaced by samples of a masked language model |

The paper writes h = f(g(x), z) and does not say whether one or both views are changed; `sides: positive` changes the
positive alone, `both` changes both, each with its own draw. Rounding is to the nearest word; at least one word stays.
Every draw is a function of (seed, epoch, example, view).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from shared import InputError

KINDS = ("crop", "word_deletion", "delete_one_word", "synonym", "mlm")
SIDES = {"positive": (1,), "both": (0, 1)}
NEEDS_PERCENT = ("crop", "word_deletion", "mlm")

Words = list[str]


def crop(words: Words, percent: float, rng: np.random.Generator) -> Words:
    """Keep a contiguous span of (100 - percent)% of the words, at a random place."""
    keep = max(1, round(len(words) * (1 - percent / 100)))
    start = int(rng.integers(0, len(words) - keep + 1))
    return words[start : start + keep]


def word_deletion(words: Words, percent: float, rng: np.random.Generator) -> Words:
    """Delete percent% of the words."""
    count = min(round(len(words) * percent / 100), len(words) - 1)
    gone = set(rng.permutation(len(words))[:count].tolist())
    return [word for i, word in enumerate(words) if i not in gone]


def delete_one_word(words: Words, percent: float, rng: np.random.Generator) -> Words:
    """Delete one word; a sentence of one word stays."""
    if len(words) < 2:
        return words
    gone = int(rng.integers(len(words)))
    return words[:gone] + words[gone + 1 :]


def synonym(words: Words, percent: float, rng: np.random.Generator) -> Words:
    """Replace one random word that WordNet knows a synonym of; without any such word the sentence stays."""
    for place in rng.permutation(len(words)).tolist():
        word = words[place]
        core = word.strip(".,;:!?\"'()")
        choices = sorted(_synonyms(core.lower())) if core else []
        if choices:
            chosen = choices[int(rng.integers(len(choices)))]
            chosen = chosen.capitalize() if core[0].isupper() else chosen
            return [*words[:place], word.replace(core, chosen, 1), *words[place + 1 :]]
    return words


def _synonyms(word: str) -> set[str]:
    from nltk.corpus import wordnet

    names = {lemma.name().replace("_", " ") for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
    return {name for name in names if name.lower() != word}


def check_wordnet() -> None:
    """Raises InputError, saying how to get it, if nltk or its WordNet data is not here."""
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except ImportError:
        raise InputError("augment.kind=synonym needs the package nltk: pip install nltk") from None
    except LookupError:
        raise InputError(
            "augment.kind=synonym needs nltk's WordNet data, which is not on this machine. Fetch it with "
            "`python -m nltk.downloader wordnet`, or unpack it below a folder named by NLTK_DATA."
        ) from None


class MaskedLanguageModel:
    """Replaces words by samples of a masked language model's distribution at their place (Table 1, "MLM k%").

    A chosen word becomes one mask token, whatever its number of pieces; the sample is drawn from the full softmax
    without special tokens. One forward pass per batch and side: run it with dataloader_num_workers=0.
    """

    def __init__(self, name: str, max_length: int = 128, device: str | torch.device | None = None):
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name)
        if self.tokenizer.mask_token is None:
            raise InputError(f"augment.mlm_model={name} has no mask token. Name a masked language model.")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForMaskedLM.from_pretrained(name).eval().to(self.device)
        self.max_length = max_length
        self.special = torch.tensor(sorted(self.tokenizer.all_special_ids), device=self.device)

    @torch.inference_mode()
    def replace(self, sentences: list[Words], percent: float, rngs: Sequence[np.random.Generator]) -> list[Words]:
        """Replace percent% of the words of every sentence."""
        places = [
            sorted(rng.permutation(len(words))[: round(len(words) * percent / 100)].tolist())
            for words, rng in zip(sentences, rngs, strict=True)
        ]
        masked = [[*words] for words in sentences]
        for words, chosen in zip(masked, places, strict=True):
            for place in chosen:
                words[place] = self.tokenizer.mask_token
        inputs = self.tokenizer(
            [" ".join(words) for words in masked],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        rows, columns = (inputs["input_ids"] == self.tokenizer.mask_token_id).nonzero(as_tuple=True)
        logits = self.model(**inputs).logits[rows, columns].float()
        logits[:, self.special] = -torch.inf
        cumulative = logits.softmax(-1).cumsum(-1).double().cpu().numpy()
        result = [[*words] for words in sentences]
        found = rows.cpu().numpy()
        for row, (chosen, rng) in enumerate(zip(places, rngs, strict=True)):
            mine = cumulative[found == row]  # fewer than chosen where truncation cut the sentence: the rest stays
            draws = rng.random(len(chosen))
            for place, draw, distribution in zip(chosen, draws, mine, strict=False):
                token = min(
                    int(np.searchsorted(distribution, draw * distribution[-1], side="right")), len(distribution) - 1
                )
                result[row][place] = self.tokenizer.decode([token]).strip() or sentences[row][place]
        return result


class Augmenter:
    """One row of Table 1 as a function on the texts of a batch.

    Args:
        kind: one of KINDS. percent: k, where the kind has one. sides: positive | both.
        masked_lm: for kind mlm.

    Raises:
        InputError: an unknown kind or side, a percentage outside (0, 100), missing WordNet data or model.
    """

    def __init__(
        self,
        kind: str,
        *,
        percent: float | None = None,
        sides: str = "positive",
        seed: int = 42,
        masked_lm: MaskedLanguageModel | None = None,
    ):
        if kind not in KINDS:
            raise InputError(f"augment.kind={kind}: give one of {', '.join(KINDS)}, or null.")
        if sides not in SIDES:
            raise InputError(f"augment.sides={sides}: give positive or both.")
        if kind in NEEDS_PERCENT and (percent is None or not 0 < percent < 100):
            raise InputError(f"augment.percent={percent}: {kind} needs a percentage between 0 and 100, e.g. 10.")
        if kind == "synonym":
            check_wordnet()
        if kind == "mlm" and masked_lm is None:
            raise InputError("augment.kind=mlm needs augment.mlm_model: the name of a masked language model.")
        self.kind, self.percent, self.seed, self.masked_lm = kind, percent, seed, masked_lm
        self.slots = SIDES[sides]

    def __call__(self, texts: Sequence[str], epoch: np.ndarray, index: np.ndarray, slot: int) -> list[str]:
        """Change one view's texts; `epoch` and `index` (batch,) identify the examples, `slot` the view."""
        rngs = [np.random.default_rng([self.seed, 2, int(e), int(i), slot]) for e, i in zip(epoch, index, strict=True)]
        sentences = [text.split() or [text] for text in texts]
        if self.masked_lm is not None:
            changed = self.masked_lm.replace(sentences, self.percent, rngs)
        else:
            change = FUNCTIONS[self.kind]
            changed = [change(words, self.percent or 0.0, rng) for words, rng in zip(sentences, rngs, strict=True)]
        return [" ".join(words) for words in changed]


FUNCTIONS: dict[str, Callable[[Words, float, np.random.Generator], Words]] = {
    "crop": crop,
    "word_deletion": word_deletion,
    "delete_one_word": delete_one_word,
    "synonym": synonym,
}
