"""`python -m mlm_masking.pmi text=...`: the list of collocations that PMI masking treats as units, from any corpus.

    text -> words, hashed -> n-grams seen more than 10 times -> ranked by PMI per length -> the best of each, as text

Levine et al., "PMI-Masking" (ICLR 2021), section 3. The association of an n-gram is that of its weakest cut,

    PMI_n(w1..wn) = min over segmentations s of log( p(w1..wn)**2 / prod of p(segment) for segment in s ),

so that "the United States of" does not rank high only because "United States" does. The squared probability is the
form behind the published lists (the paper prints the first power); it demotes rare n-grams. Half of the list is
bigrams, a quarter trigrams, an eighth each of 4- and 5-grams.

The list is text, one n-gram per line, the best first within its length: the format of the authors' lists, which
`mlm_masking.ngrams` reads too. Beside it, `<list>.json` says what it was made from.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from mlm_masking.ngram_counts import (
    Counts,
    chunks,
    count_ngrams,
    inside_lines,
    read_lines,
    remove_intermediate,
    write_words,
)
from mlm_masking.ngrams import LENGTHS, WORD, ngram_hashes, word_hashes
from shared import InputError, hub
from shared.launch import entrypoint
from shared.results import write_atomic
from shared.training import run_folder

log = logging.getLogger(__name__)

SCORED_AT_A_TIME = 2**20


@dataclass
class Scored:
    """Frequent n-grams of one length: PMI, and a position in the corpus where each occurs."""

    score: np.ndarray
    position: np.ndarray


def pmi(log_p: dict[tuple[int, int], np.ndarray], length: int) -> np.ndarray:
    """PMI_n of n-grams from the log-probabilities of all their parts.

    Args:
        log_p: (first word, number of words) -> `(n,)`.
    Returns:
        `(n,)`: 2 log p(whole) - the largest sum of log p over the segmentations into two parts or more.
    """
    best: dict[tuple[int, int], np.ndarray] = {}
    for size in range(1, length + 1):
        for first in range(length - size + 1):
            cuts = [best[first, left] + best[first + left, size - left] for left in range(1, size)]
            whole = [log_p[first, size]] if size < length else []
            best[first, size] = np.max(whole + cuts, axis=0)
    return 2 * log_p[0, length] - best[0, length]


def score(words: np.ndarray, counts: dict[int, Counts], length: int) -> Scored:
    """Rank the frequent n-grams of one length; their parts are frequent too, so all counts are at hand."""
    table = counts[length]
    scored = Scored(np.full(len(table), np.nan), np.zeros(len(table), np.int64))
    for start, part, hashes in chunks(words, length, SCORED_AT_A_TIME):
        place = table.find(hashes)
        place[~inside_lines(part, length)] = -1
        seen = np.flatnonzero(place >= 0)
        seen = seen[np.isnan(scored.score[place[seen]])]
        found, first_seen = np.unique(place[seen], return_index=True)
        at = seen[first_seen]
        log_p = {}
        for size in range(1, length + 1):
            parts = ngram_hashes(part, size)
            for first in range(length - size + 1):
                log_p[first, size] = counts[size].log_probability(parts[at + first])
        scored.score[found], scored.position[found] = pmi(log_p, length), start + at
    return scored


def best(scored: Scored, table: Counts, wanted: int) -> np.ndarray:
    """Places in the table of the `wanted` best, best first; equal ones by count, then by hash."""
    order = np.lexsort((table.hashes, -table.counts, -scored.score))
    return order[:wanted]


def spell(files: list[Path], hashes: np.ndarray) -> dict[int, str]:
    """The words behind these hashes, looked up in the text."""
    missing, found = set(hashes.tolist()), {}
    for path in files:
        offset, lines = 0, [""]
        while lines and missing:
            lines, offset = read_lines(path, offset)
            distinct = list({word.lower() for line in lines for word in WORD.findall(line)})
            for word, each in zip(distinct, word_hashes(distinct).tolist(), strict=True):
                if each in missing:
                    found[each] = word
                    missing.discard(each)
    return found


def quotas(size: int, mix: dict[int, float]) -> dict[int, int]:
    """How many n-grams of each length, `size` in all."""
    until = [round(size * sum(mix[each] for each in LENGTHS[: place + 1])) for place in range(len(LENGTHS))]
    return {length: after - before for length, before, after in zip(LENGTHS, [0, *until], until, strict=False)}


def build(files: list[Path], folder: Path, size: int, mix: dict[int, float], min_count: int, memory: int) -> tuple:
    """The list of n-grams (texts, best first, shortest first) and what is known about it.

    Args:
        files: text, UTF-8. folder: for intermediate files, from which a killed run goes on.
        size: n-grams in the list. mix: share of each length. min_count: n-grams seen this often or less are left out.
        memory: bytes that counting may use.
    """
    words = write_words(files, folder)
    counts = {length: count_ngrams(words, length, folder, min_count, memory) for length in (1, *LENGTHS)}
    chosen, about = {}, {"words": int((words != 0).sum()), "lengths": {}}
    quota = quotas(size, mix)
    for length in LENGTHS:
        scored, wanted = score(words, counts, length), quota[length]
        top = best(scored, counts[length], wanted)
        chosen[length] = np.stack([words[scored.position[top] + place] for place in range(length)], axis=1)
        about["lengths"][length] = {
            "candidates": len(counts[length]),
            "wanted": wanted,
            "listed": len(top),
            "lowest_pmi": float(scored.score[top[-1]]) if len(top) else None,
        }
    if short := [length for length, row in about["lengths"].items() if row["listed"] < row["wanted"]]:
        log.warning(
            "too little text for size=%d: of %s words per n-gram all that were seen often enough are listed, "
            "collocations or not; a smaller size keeps the best",
            size,
            ", ".join(map(str, short)),
        )
    spelled = spell(files, np.unique(np.concatenate([rows.reshape(-1) for rows in chosen.values()])))
    texts = []
    for length, rows in chosen.items():
        lines = [" ".join(spelled[each] for each in row) for row in rows.tolist()]
        # A few letters lower-case into something that is no longer one word; such an n-gram could not be found again.
        kept = [line for line in lines if sum(len(WORD.findall(word)) for word in line.split()) == length]
        about["lengths"][length]["listed"] = len(kept)
        texts += kept
    return texts, about


def text_files(text: str | list[str] | None) -> list[Path]:
    """The corpus: files, folders (their *.txt) and globs; by default WikiText-2.

    Raises:
        InputError: nothing there.
    """
    if text is None:
        text = [str(hub.locate("mlm-masking", "wikitext2"))]
    files: list[Path] = []
    for name in [text] if isinstance(text, str) else text:
        path = Path(name).expanduser()
        pattern = str(path.relative_to(path.anchor))
        found = sorted(path.glob("**/*.txt")) if path.is_dir() else sorted(Path(path.anchor).glob(pattern))
        if not found:
            raise InputError(f"text={name}: no such file, and no *.txt below such a folder")
        files += [each for each in found if each.is_file()]
    return files


def check(cfg: DictConfig) -> dict[int, float]:
    """The mix by length. Raises InputError for numbers that make no list."""
    for name, least in (("size", 4), ("min_count", 0), ("memory_mb", 16)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise InputError(f"{name}={cfg[name]}: give a whole number, at least {least}")
    mix = {int(length): float(share) for length, share in cfg.mix.items()}
    if sorted(mix) != list(LENGTHS) or abs(sum(mix.values()) - 1) > 1e-6 or min(mix.values()) < 0:
        given = OmegaConf.to_container(cfg.mix)
        raise InputError(f"mix={given}: give the shares of 2-, 3-, 4- and 5-grams, adding up to 1")
    return mix


def show(about: dict, output: Path) -> None:
    table = Table(title=f"{about['words']:,} words -> {output.name}", title_justify="left")
    for name in ("words per n-gram", "seen often enough", "wanted", "listed", "lowest PMI"):
        table.add_column(name, justify="right")
    for length, row in about["lengths"].items():
        lowest = "" if row["lowest_pmi"] is None else f"{row['lowest_pmi']:.2f}"
        table.add_row(str(length), f"{row['candidates']:,}", f"{row['wanted']:,}", f"{row['listed']:,}", lowest)
    Console().print(table)


def build_list(cfg: DictConfig) -> Path:
    """Make the list that the configuration asks for, unless it is there already; returns its path.

    Raises:
        InputError: see `check`, `text_files` and `write_words`; or a corpus with no n-gram that is frequent enough.
    """
    mix, files = check(cfg), text_files(OmegaConf.to_object(cfg.text) if isinstance(cfg.text, ListConfig) else cfg.text)
    output = Path(cfg.output) if cfg.output else run_folder(cfg.paper, cfg.scale, "pmi") / "ngrams.txt"
    corpus = [[each.name, each.stat().st_size] for each in files]
    settings = {"size": cfg.size, "mix": mix, "min_count": cfg.min_count, "text": corpus}
    settings = json.loads(json.dumps(settings))  # keys as they will be read back
    record = output.with_name(output.name + ".json")
    if output.is_file() and record.is_file() and json.loads(record.read_text())["settings"] == settings:
        log.info("%s is already there, from the same text and settings", output)
        return output
    work = Path(cfg.work_dir) if cfg.work_dir else output.with_name(f".{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    texts, about = build(files, work, cfg.size, mix, cfg.min_count, cfg.memory_mb * 2**20)
    if not texts:
        raise InputError(f"no n-gram occurs more than min_count={cfg.min_count} times: give more text, or a lower one")
    record.unlink(missing_ok=True)
    write_atomic(output, "\n".join(texts) + "\n")
    write_atomic(record, json.dumps({"settings": settings} | about, indent=1) + "\n")
    remove_intermediate(work)
    show(about, output)
    return output


@entrypoint(config_path="../configs", config_name="pmi")
def main(cfg: DictConfig) -> None:
    print(build_list(cfg))


if __name__ == "__main__":
    main()
