"""Training text by name: what `data.source` and `data.path` of a configuration stand for.

| source | what it is |
|---|---|
| a name of sources.yaml | that file (`wiki1m`, `nli`, `wiki_sample`, `snli_triplets`, `paranmt`) |
| corpus, corpus_sentences | the offline corpus as pairs with hard negatives, or as single sentences in document order |
| nli_*, qqp, flickr30k | pairs of Table 4 and triplets of Table 7, built from the data sets' own labelled files |
| auto | the laptop's: mirror if there is one, else the offline corpus, which is then said in the log and the results |

A tenth of the corpus' documents (by a checksum of their origin) is never trained on: it is what retrieval is tested on.
"""

import logging
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from omegaconf import DictConfig

from shared import InputError, hub
from shared.corpus import Document, documents
from simcse.data import Examples, read_examples

log = logging.getLogger(__name__)

PAPER = "simcse"
LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2}
HELD_OUT_PART = 10
MIN_WORDS, MAX_WORDS = 4, 60
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")


def load_examples(data: DictConfig, seed: int) -> Examples:
    """The examples a `data` group describes, cut to its columns, its first n, or a sample of n.

    Raises:
        InputError: no or an unknown source, a bad file, or text that is on none of the machine's places.
    """
    examples = _from_files(data.path) if data.path is not None else _from_source(data.source, data.columns)
    examples = examples.first_columns(data.columns).head(data.max_examples)
    return _sample(examples, data.sample, seed)


def _from_files(path: str | Sequence[str]) -> Examples:
    return read_examples([path] if isinstance(path, str) else list(path))


def _from_source(source: str | None, columns: int | None) -> Examples:
    if source is None:
        raise InputError("no training text: set data.path=FILE, or data=NAME (auto, wiki1m, nli, corpus, ...).")
    if source == "auto":
        return _auto(columns)
    if source in BUILDERS:
        return BUILDERS[source]()
    return replace(_located(source), source=source)


def _located(source: str) -> Examples:
    path = hub.locate(PAPER, source)
    files = [path] if path.is_file() else [path / name for name in hub.source(PAPER, source).files]
    return read_examples(files)


def _sample(examples: Examples, count: int | None, seed: int) -> Examples:
    if count is None or count >= len(examples):
        return examples
    if count < 1:
        raise InputError(f"data.sample={count}: give 1 or more, or null for all.")
    chosen = np.sort(np.random.default_rng([seed, 3]).permutation(len(examples))[:count])
    document = None if examples.document is None else examples.document[chosen]
    return replace(examples, columns=tuple([c[i] for i in chosen] for c in examples.columns), document=document)


def _auto(columns: int | None) -> Examples:
    name, stand_in = ("wiki_sample", "corpus_sentences") if columns == 1 else ("snli_triplets", "corpus")
    try:
        return replace(_located(name), source=name)
    except hub.NotAvailable:
        examples = BUILDERS[stand_in]()
        log.warning("%s is not on this machine: training on %s instead", name, examples.source)
        return examples


# ---- the offline corpus


def is_held_out(document: Document) -> bool:
    """Whether a document is kept from training, for retrieval tests."""
    return zlib.crc32(document.origin.encode()) % HELD_OUT_PART == 0


def split_sentences(text: str) -> list[str]:
    """Sentences of running text, of 4 to 60 words; code, lists and headings are left out."""
    sentences = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            plain = sum(word.strip(".,;:!?()\"'").isalpha() for word in words)
            if MIN_WORDS <= len(words) <= MAX_WORDS and plain >= 0.7 * len(words):
                sentences.append(sentence)
    return sentences


def corpus_sentences(source: Iterable[Document] | None = None) -> Examples:
    """Every sentence of the corpus' training part, in document order."""
    sentences: list[str] = []
    numbers: list[int] = []
    for number, document in enumerate(_training_part(source)):
        found = split_sentences(document.text)
        sentences += found
        numbers += [number] * len(found)
    return Examples((sentences,), "the offline corpus (sentences)", np.array(numbers, dtype=np.int64))


def corpus_pairs(source: Iterable[Document] | None = None) -> Examples:
    """(summary line, first other sentence of the body, first sentence of another document of the same package)."""
    by_package: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for document in _training_part(source):
        summary = (document.summary or document.title or "").strip()
        body = [sentence for sentence in split_sentences(document.text) if sentence != summary]
        if len(summary.split()) >= 2 and body:
            by_package[document.package].append((summary, body[0]))
    columns: tuple[list[str], list[str], list[str]] = ([], [], [])
    for pairs in by_package.values():
        for i, (summary, sentence) in enumerate(pairs):
            other = next((s for _, s in pairs[i + 1 :] + pairs[:i] if s != sentence), None)
            if other is not None:
                for column, text in zip(columns, (summary, sentence, other), strict=True):
                    column.append(text)
    words = "the offline corpus (summary -> body, hard negative from another document of the package)"
    return Examples(columns, words)


def _training_part(source: Iterable[Document] | None) -> list[Document]:
    return [document for document in (documents() if source is None else source) if not is_held_out(document)]


# ---- labelled data sets


def _tables(name: str) -> Iterable[dict[str, list]]:
    from pyarrow import parquet

    path = hub.locate(PAPER, name)
    patterns = hub.source(PAPER, name).files
    files = [path] if path.is_file() else [file for pattern in patterns for file in sorted(path.glob(pattern))]
    for file in files:
        yield parquet.read_table(file).to_pydict()


def nli_by_premise(names: Sequence[str]) -> dict[str, dict[int, list[str]]]:
    """{premise: {label: hypotheses}} over labelled NLI sets, both in file order; unlabelled rows are dropped."""
    grouped: dict[str, dict[int, list[str]]] = {}
    for name in names:
        for table in _tables(name):
            for premise, hypothesis, label in zip(table["premise"], table["hypothesis"], table["label"], strict=True):
                if label in LABELS.values():
                    grouped.setdefault(premise, defaultdict(list))[label].append(hypothesis)
    return grouped


def nli_pairs(labels: Sequence[str], names: Sequence[str] = ("snli", "multi_nli")) -> Examples:
    """Premise and every hypothesis with one of `labels` (Table 4)."""
    wanted = [LABELS[label] for label in labels]
    rows = [
        (premise, hypothesis)
        for premise, by_label in nli_by_premise(names).items()
        for label in wanted
        for hypothesis in by_label.get(label, [])
    ]
    return _from_rows(rows, f"{' + '.join(names)} ({', '.join(labels)})")


def nli_triplets(negatives: Sequence[str], names: Sequence[str]) -> Examples:
    """Premise, entailed hypothesis, and one hypothesis per label of `negatives`; premises that have them all."""
    wanted = [LABELS["entailment"], *(LABELS[label] for label in negatives)]
    rows = [
        (premise, *(by_label[label][0] for label in wanted))
        for premise, by_label in nli_by_premise(names).items()
        if all(by_label.get(label) for label in wanted)
    ]
    return _from_rows(rows, f"{' + '.join(names)} triplets ({', '.join(negatives)} as hard negatives)")


def nli_with_anli() -> Examples:
    """The released triplets followed by ANLI's (Table 4, last row)."""
    released, added = _located("nli"), nli_triplets(["contradiction"], ["anli"])
    columns = tuple(first + second for first, second in zip(released.columns, added.columns, strict=True))
    return Examples(columns, "nli + anli")


def qqp_duplicates() -> Examples:
    """Question pairs marked as duplicates (Table 4)."""
    rows = [
        (first, second)
        for table in _tables("qqp")
        for first, second, label in zip(table["question1"], table["question2"], table["label"], strict=True)
        if label == 1
    ]
    return _from_rows(rows, "qqp")


def flickr30k_captions() -> Examples:
    """Two captions of the same picture, each pair in both directions (Table 4)."""
    rows = [
        pair
        for table in _tables("flickr30k")
        for first, second in zip(table["caption1"], table["caption2"], strict=True)
        for pair in ((first, second), (second, first))
    ]
    return _from_rows(rows, "flickr30k")


def _from_rows(rows: Sequence[tuple[str, ...]], source: str) -> Examples:
    if not rows:
        raise InputError(f"{source}: no example has the wanted labels. Is the data set complete?")
    return Examples(
        tuple([text if text.strip() else " " for text in column] for column in zip(*rows, strict=True)), source
    )


BUILDERS: dict[str, Callable[[], Examples]] = {
    "corpus": corpus_pairs,
    "corpus_sentences": corpus_sentences,
    "nli_entailment": lambda: nli_pairs(["entailment"]),
    "nli_neutral": lambda: nli_pairs(["neutral"]),
    "nli_contradiction": lambda: nli_pairs(["contradiction"]),
    "nli_all": lambda: nli_pairs(list(LABELS)),
    "nli_anli": nli_with_anli,
    "nli_neutral_negatives": lambda: nli_triplets(["contradiction", "neutral"], ["snli", "multi_nli"]),
    "qqp": qqp_duplicates,
    "flickr30k": flickr30k_captions,
}
