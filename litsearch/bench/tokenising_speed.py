"""Tokenising and stemming against the plain pipeline: NLTK's word_tokenize, stop words, PorterStemmer, text by text.

    python litsearch/bench/tokenising_speed.py            # the real small corpus, or what is installed here
    python litsearch/bench/tokenising_speed.py --quick

Forms, each in fresh processes so that nothing is remembered from the one before:

    plain        NLTK, as the release calls it (with the parameters frozen here; importing nltk is not timed)
    cold         ours, one process, nothing remembered
    cold 2       ours, two processes, starting them included
    cold 2 disk  the same, and writing the cache of tokenized texts
    warm         ours, all texts in the cache

The terms are compared first: all forms must give the same.
"""

import argparse
import concurrent.futures
import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from litsearch.generated_texts import real_texts
from litsearch.sentences import parameters
from litsearch.text import Numbering, stop_words, tokenize
from shared.bench import write_record
from shared.provenance import Watch

ROOT = Path(__file__).resolve().parents[2]
FORMS = {
    "plain": None,
    "cold": {"processes": 1},
    "cold 2": {"processes": 2},
    "cold 2 disk": {"processes": 2},
    "warm": {"processes": 1},
}


def plain(texts: list[str]) -> tuple[float, str]:
    """Seconds, and a digest of all terms."""
    from nltk.stem import PorterStemmer
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    frozen, punkt = parameters(), PunktParameters()
    punkt.abbrev_types, punkt.sent_starters = set(frozen.abbreviations), set(frozen.starters)
    punkt.collocations, punkt.ortho_context = set(frozen.collocations), defaultdict(int, frozen.orthography)
    sentences, words, stemmer = PunktSentenceTokenizer(punkt), NLTKWordTokenizer(), PorterStemmer()
    stopped = set(stop_words())
    started = time.perf_counter()
    found = []
    for text in texts:
        tokens = [word for sentence in sentences.tokenize(text.lower()) for word in words.tokenize(sentence)]
        found.append([stemmer.stem(token) for token in tokens if token not in stopped])
    seconds = time.perf_counter() - started
    return seconds, _digest(term for document in found for term in document)


def ours(texts: list[str], processes: int, cache: str | None) -> tuple[float, str]:
    numbering = Numbering()
    started = time.perf_counter()
    batches = list(tokenize(texts, numbering, processes, cache))
    seconds = time.perf_counter() - started
    names = list(numbering)
    return seconds, _digest(names[number] for batch in batches for number in batch.ids.tolist())


def _digest(found) -> str:
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def in_fresh_process(function, *arguments):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(texts: list[str], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    wanted = None
    for round_ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for form, options in FORMS.items():
                if options is None:
                    if round_ >= 3:
                        continue  # by far the slowest, and the steadiest
                    took, digest = in_fresh_process(plain, texts)
                else:
                    folder = cache if form in ("cold 2 disk", "warm") else None
                    took, digest = in_fresh_process(ours, texts, options["processes"], folder)
                wanted = wanted or digest
                if digest != wanted:
                    raise SystemExit(f"{form} gives other terms than the plain pipeline")
                seconds[form].append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,000 texts, one round")
    parser.add_argument("--out", type=Path, help="default: records/<date>-cpu-tokenising.json beside this script")
    options = parser.parse_args()
    watch = Watch(ROOT, config=vars(options))
    name, texts, _ = real_texts()
    texts = texts[: 1000 if options.quick else options.texts]
    seconds = measure(texts, 1 if options.quick else options.rounds)
    medians = {form: statistics.median(times) for form, times in seconds.items()}
    characters = sum(map(len, texts))
    table = Table("form", "seconds", "MB/s", "x plain", title=f"{len(texts):,} texts of {name}")
    for form, median in medians.items():
        table.add_row(form, f"{median:.2f}", f"{characters / median / 1e6:.2f}", f"{medians['plain'] / median:.1f}")
    Console().print(table)
    record = {
        "benchmark": "tokenising_speed",
        "corpus": name,
        "texts": len(texts),
        "characters": characters,
        "seconds": seconds,
        "faster_than_plain": {form: medians["plain"] / median for form, median in medians.items()},
        "provenance": watch.record(),
    }
    write_record(record, __file__, "cpu-tokenising", options.out)


if __name__ == "__main__":
    main()
