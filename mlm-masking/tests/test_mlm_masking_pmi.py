"""PMI masking: the list (counts, ranking, mix, resumption) and the segmentation of blocks by it."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlm_masking import ngram_counts, pmi
from mlm_masking.masker import build_masker
from mlm_masking.ngrams import WORD, NgramList, Segmenter, ngram_hashes, read_ngrams, resolve_overlaps, word_hashes
from mlm_masking.tokenizer import load_tokenizer, train_tokenizer
from mlm_masking.vocabulary import Vocabulary
from shared import InputError

MIX = {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}


def corpus(lines: int = 3000) -> list[str]:
    """Random words, with collocations put in, in mixed case and with punctuation."""
    draw = np.random.default_rng(0)
    units = [
        "New York",
        "machine learning model",
        "don't",
        "the",
        "of",
        "a",
        "river",
        "Stone",
        "once upon a time",
        "in 1984",
        "green",
        "tea",
        "tree",
        "état",
        "as far as I know",
    ]
    weights = 1 / np.arange(2, len(units) + 2)
    rows = [draw.choice(units, draw.integers(3, 12), p=weights / weights.sum()) for _ in range(lines)]
    return [", ".join([" ".join(row[:4]), " ".join(row[4:])]) + "." for row in rows]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(corpus()) + "\n\n")
    return path


def counted(text: Path) -> dict[int, Counter]:
    """n-grams of 1 to 5 words by Python's own counter."""
    counts = {length: Counter() for length in range(1, 6)}
    for line in text.read_text().splitlines():
        words = [word.lower() for word in WORD.findall(line)]
        for length, counter in counts.items():
            counter.update(tuple(words[at : at + length]) for at in range(len(words) - length + 1))
    return counts


def expected_pmi(ngram: tuple[str, ...], counts: dict[int, Counter]) -> float:
    """The definition, over all segmentations into two parts or more."""
    totals = {length: sum(counter.values()) for length, counter in counts.items()}

    def log_p(part):
        return math.log(counts[len(part)][part] / totals[len(part)])

    values = []
    for number in range(1, len(ngram)):
        for cuts in itertools.combinations(range(1, len(ngram)), number):
            edges = [0, *cuts, len(ngram)]
            values.append(2 * log_p(ngram) - sum(log_p(ngram[i:j]) for i, j in itertools.pairwise(edges)))
    return min(values)


def hash_of(ngram: tuple[str, ...]) -> int:
    return int(ngram_hashes(word_hashes(list(ngram)), len(ngram))[0])


# ------------------------------------------------------------------------------------------------- the list


@pytest.mark.parametrize("memory", [2**30, 2**18])
def test_counts_are_exact_whatever_the_memory(text, tmp_path, memory):
    words = ngram_counts.write_words([text], tmp_path)
    for length, counter in counted(text).items():
        table = ngram_counts.count_ngrams(words, length, tmp_path, 10, memory)
        often = {ngram: count for ngram, count in counter.items() if count > 10}
        assert table.total == sum(counter.values()) and len(table) == len(often)
        places = table.find(np.array([hash_of(ngram) for ngram in often], np.uint64))
        assert table.counts[places].tolist() == list(often.values())
    if memory == 2**18:
        assert len(words) * 48 > 2 * memory  # several runs, merged in several ranges


def test_ranking_is_the_weakest_cut_of_the_squared_form(text, tmp_path):
    words, counts = ngram_counts.write_words([text], tmp_path), counted(text)
    tables = {length: ngram_counts.count_ngrams(words, length, tmp_path, 10, 2**30) for length in range(1, 6)}
    for length in range(2, 6):
        scored = pmi.score(words, tables, length)
        often = [ngram for ngram, count in counts[length].items() if count > 10]
        places = tables[length].find(np.array([hash_of(ngram) for ngram in often], np.uint64))
        assert scored.score[places] == pytest.approx([expected_pmi(ngram, counts) for ngram in often])


def test_the_list_has_the_best_of_each_length_in_the_mix(text, tmp_path):
    texts, about = pmi.build([text], tmp_path, 40, MIX, 10, 2**30)
    lengths = [len(line.split()) for line in texts]
    assert Counter(lengths) == {2: 20, 3: 10, 4: 5, 5: 5} and lengths == sorted(lengths)
    counts = counted(text)
    for length in MIX:
        values = [expected_pmi(tuple(line.split()), counts) for line in texts if len(line.split()) == length]
        assert values == sorted(values, reverse=True)
        every = sorted((expected_pmi(n, counts) for n, c in counts[length].items() if c > 10), reverse=True)
        assert values == pytest.approx(every[: len(values)])
        assert about["lengths"][length]["lowest_pmi"] == pytest.approx(values[-1])
    for collocation in ("new york", "machine learning model", "once upon a time", "as far as i know"):
        assert collocation in texts


def test_the_command_writes_a_list_that_is_read_back(text, tmp_path, command):
    output = tmp_path / "list.txt"
    arguments = [f"text={text}", f"output={output}", "size=40"]
    assert command("pmi", *arguments) == (0, "")
    assert len(read_ngrams(output)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "list.txt.json"]
    written = output.stat().st_mtime_ns
    assert command("pmi", *arguments)[0] == 0 and output.stat().st_mtime_ns == written  # nothing to do
    assert command("pmi", *arguments, "size=20")[0] == 0 and len(read_ngrams(output)) == 20


def test_a_killed_build_goes_on_and_ends_with_the_same_list(tmp_path, environment):
    big = tmp_path / "big.txt"
    big.write_text("\n".join(corpus(20_000)) * 5)
    (tmp_path / "whole").mkdir()
    expected, _ = pmi.build([big], tmp_path / "whole", 80, MIX, 10, 2**24)
    output, work = tmp_path / "killed.txt", tmp_path / ".killed.txt.work"
    command = [sys.executable, "-m", "mlm_masking.pmi", f"text={big}", f"output={output}", "size=80", "memory_mb=16"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (work / "counts-2-over-10.npz").exists() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not output.exists()
    texts, _ = pmi.build([big], work, 80, MIX, 10, 2**24)
    assert texts == expected


def test_words_written_after_the_last_record_are_dropped(text, tmp_path):
    whole = np.array(ngram_counts.write_words([text], tmp_path))
    state = json.loads((tmp_path / "words.json").read_text())
    half = len(text.read_bytes()) // 2
    cut = text.read_bytes().rfind(b"\n", 0, half) + 1
    words = sum(
        len(found) + 1 for line in text.read_bytes()[:cut].decode().splitlines() if (found := WORD.findall(line))
    )
    (tmp_path / "words.json").write_text(json.dumps(state | {"file": 0, "offset": cut, "words": words}))
    with (tmp_path / "words.u64").open("r+b") as stream:
        stream.truncate(8 * words + 5)  # killed while it wrote
    assert (np.array(ngram_counts.write_words([text], tmp_path)) == whole).all()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["text=nowhere.txt"], "text=nowhere.txt: no such file"),
        (["size=0"], "size=0"),
        (["min_count=-1"], "min_count=-1"),
        (["mix={2: 1.0}"], "mix="),
        (["mix={2: 0.9, 3: 0.9, 4: 0, 5: 0}"], "adding up to 1"),
        (["min_count=1000000"], "min_count=1000000 times"),
    ],
)
def test_bad_settings_are_named(text, tmp_path, command, arguments, names):
    status, message = command("pmi", f"text={text}", f"output={tmp_path}/list.txt", *arguments)
    assert status == 2 and names in message
    assert not (tmp_path / "list.txt").exists()


@pytest.mark.parametrize(
    ("content", "names"), [(b"", "no word in"), (b"\n \n\n", "no word in"), (b"caf\xe9 au lait", "not UTF-8")]
)
def test_text_without_words_is_refused(tmp_path, command, content, names):
    (tmp_path / "text.txt").write_bytes(content)
    status, message = command("pmi", f"text={tmp_path}/text.txt", f"output={tmp_path}/list.txt")
    assert status == 2 and names in message


def test_other_text_is_not_mixed_into_a_begun_build(text, tmp_path):
    ngram_counts.write_words([text], tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("something else\n")
    with pytest.raises(InputError, match="other text"):
        ngram_counts.write_words([other], tmp_path)


# ------------------------------------------------------------------------------------------------ reading lists


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("New York\n", "line 1: 'New York' has capitals"),
        ("new york\nla ##me duck\n", "line 2: .* subword pieces"),
        ("Ġnew Ġyork\n", "subword pieces"),
        ("new\n", "'new' has 1 words"),
        ("one two three four five six\n", "has 6 words"),
        ("\n\n", "no n-gram"),
    ],
)
def test_lists_that_cannot_match_are_refused(tmp_path, content, names):
    path = tmp_path / "list.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=names):
        read_ngrams(path)


def test_a_missing_list_says_how_to_build_one(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*mlm_masking\.pmi"):
        read_ngrams(tmp_path / "list.txt")


def test_a_list_may_have_columns_after_a_tab_and_repetitions(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("new york\t12.5\t88\nnew york\nonce upon a time\n")
    assert len(read_ngrams(path)) == 2


# ------------------------------------------------------------------------------------------------- segmentation


@pytest.fixture(scope="module")
def vocabulary() -> tuple:
    tokenizer = train_tokenizer(corpus(), 340)
    return tokenizer, Vocabulary.from_tokenizer(tokenizer)


def block(tokenizer, line: str) -> list[int]:
    return [0, *tokenizer.encode(line, add_special_tokens=False), 2]


def check_words(tokenizer, vocabulary, lines: list[str]) -> None:
    segmenter = Segmenter(NgramList({}), vocabulary)
    for line in lines:
        ids = np.array([block(tokenizer, line)])
        _, starts, hashes = segmenter.words(ids)
        expected = word_hashes([word.lower() for word in WORD.findall(line)])
        assert hashes[1:-1].tolist() == expected.tolist(), line
        assert starts[0] == 0 and starts[-1] == ids.shape[1] - 1


def test_words_of_tokens_are_the_words_of_the_text(vocabulary):
    check_words(*vocabulary, corpus(200))
    hard = ["It doesn't (not) 3.14, is it?", "it 's", "WE'RE don't -- stop...", "x2y 10km", "naïve ångström", "a_b"]
    check_words(*vocabulary, hard)


@pytest.mark.mirror
def test_words_of_tokens_are_the_words_of_real_text(mirror):
    tokenizer = load_tokenizer(mirror / "mlm-masking" / "roberta-tokenizer")
    text = (mirror / "mlm-masking" / "wikitext-2" / "valid.txt").read_text().replace("<unk>", "it").splitlines()
    lines = [line.strip() for line in text if line.strip()][:1500]
    vocabulary, agree = Vocabulary.from_tokenizer(tokenizer), 0
    segmenter = Segmenter(NgramList({}), vocabulary)
    for line in lines:
        ids = np.array([block(tokenizer, line)])
        expected = word_hashes([word.lower() for word in WORD.findall(line)])
        agree += segmenter.words(ids)[2][1:-1].tolist() == expected.tolist()
    assert agree / len(lines) > 0.99  # the rest: characters that are split over tokens


def brute_force(words: list[str], ngrams: set[str]) -> set[tuple[int, int]]:
    """Listed n-grams that are not inside another."""
    spans = [
        (i, i + n) for n in (5, 4, 3, 2) for i in range(len(words) - n + 1) if " ".join(words[i : i + n]) in ngrams
    ]
    return {(i, j) for i, j in spans if not any((a, b) != (i, j) and a <= i and j <= b for a, b in spans)}


def test_longest_ngrams_win_and_every_other_word_is_a_unit(vocabulary, tmp_path):
    tokenizer, known = vocabulary
    listed = {
        "new york",
        "york the",
        "once upon",
        "once upon a time",
        "machine learning",
        "learning model",
        "of the",
        "the of",
    }
    path = tmp_path / "list.txt"
    path.write_text("\n".join(listed))
    segmenter = Segmenter(read_ngrams(path), known)
    joined = 0
    for number, line in enumerate(corpus(300)):
        ids = np.array([block(tokenizer, line)])
        words = [word.lower() for word in WORD.findall(line)]
        _, starts, _ = segmenter.words(ids)
        units = np.flatnonzero(segmenter.unit_begins(1, 0, np.array([number]), ids)[0])
        place = np.searchsorted(starts, units)
        assert (starts[place] == units).all()  # units begin where words do
        candidates = brute_force(words, listed)
        taken = {(a - 1, b - 1) for a, b in itertools.pairwise([*place, len(starts)]) if b - a > 1}
        assert taken <= candidates
        for i, j in candidates - taken:  # left out only for one that overlaps it
            assert any(a < j and i < b for a, b in taken)
        joined += len(taken)
    assert joined > 300


def test_overlaps_are_decided_by_the_key_and_by_nothing_else(vocabulary, tmp_path):
    tokenizer, known = vocabulary
    path = tmp_path / "list.txt"
    path.write_text("green tea\ntea tree\n")
    segmenter = Segmenter(read_ngrams(path), known)
    ids = np.array([block(tokenizer, "the green tea tree")] * 2000)
    begins = segmenter.unit_begins(1, 0, np.arange(2000), ids)
    shapes = {tuple(row) for row in begins.tolist()}
    assert len(shapes) == 2
    share = (begins == np.array(sorted(shapes)[0])).all(1).mean()
    assert share == pytest.approx(0.5, abs=0.05)
    assert (segmenter.unit_begins(1, 0, np.arange(1990, 2000), ids[:10]) == begins[1990:]).all()


def test_parallel_resolution_is_the_greedy_one():
    draw = np.random.default_rng(0)
    for _ in range(300):
        first = np.unique(draw.integers(0, 60, 30))
        last = np.maximum.accumulate(first + draw.integers(2, 6, len(first)))
        keep = np.concatenate([[True], last[1:] > last[:-1]]) & (last - first <= 5)
        first, last = first[keep], last[keep]
        random = draw.integers(0, 20, len(first))
        taken: list[int] = []
        for at in np.lexsort((np.arange(len(first)), random)):
            if all(last[at] <= first[other] or last[other] <= first[at] for other in taken):
                taken.append(at)
        ours = resolve_overlaps(first, last, random)
        assert ours[0].tolist() == first[sorted(taken)].tolist() and ours[1].tolist() == last[sorted(taken)].tolist()


def test_ngrams_do_not_reach_over_lines_or_rows(vocabulary, tmp_path):
    tokenizer, known = vocabulary
    path = tmp_path / "list.txt"
    path.write_text("green tea\n")
    segmenter = Segmenter(read_ngrams(path), known)
    green, tea = (tokenizer.encode(word, add_special_tokens=False) for word in ("green", " tea"))
    over_lines = np.array([[0, *green, 2, *tea]])
    joined = np.array([[0, *green, *tea, 2]])
    assert segmenter.unit_begins(1, 0, np.array([0]), over_lines).sum() == 4
    assert segmenter.unit_begins(1, 0, np.array([0]), joined).sum() == 3
    width = max(len(green), len(tea)) + 1
    rows = np.full((2, width), 2)
    rows[0, -len(green) :], rows[1, : len(tea)] = green, tea
    begins = segmenter.unit_begins(1, 0, np.arange(2), rows)
    assert begins[1, 0] and begins[0, -len(green)]


def test_collocations_are_masked_together(vocabulary, text, tmp_path):
    tokenizer, known = vocabulary
    path = tmp_path / "list.txt"
    path.write_text("machine learning model\nnew york\n")
    cfg = {"masking": {"strategy": "pmi", "rate": 0.3, "ngrams": str(path)}, "replace": {"p_same": 0.3}, "rates": {}}
    masker = build_masker(cfg, known)
    line = block(tokenizer, "the New York machine learning model of tea river green tree")
    ids = np.array([line] * 3000)
    batch = masker(ids, np.arange(3000), 0)
    hidden, masked = (batch.labels != -100).numpy(), (batch.input_ids == known.mask_id).numpy()
    _, starts, _ = Segmenter(read_ngrams(path), known).words(ids[:1])
    york, model = slice(starts[2], starts[4]), slice(starts[4], starts[7])
    for unit in (york, model):
        assert (hidden[:, unit].all(1) == hidden[:, unit].any(1)).all()
        assert (masked[:, unit].all(1) == masked[:, unit].any(1)).all()  # kept or masked as a whole
    budget, longest = 0.3 * len(line), starts[7] - starts[4]
    assert hidden.sum(1).min() >= int(budget) and hidden.sum(1).max() < budget + 1 + longest


def test_a_list_that_matches_nothing_is_reported(vocabulary, tmp_path, caplog):
    tokenizer, known = vocabulary
    path = tmp_path / "list.txt"
    path.write_text("guten tag\n")
    segmenter = Segmenter(read_ngrams(path), known)
    ids = np.array([block(tokenizer, "green tea")] * 600)
    segmenter.unit_begins(1, 0, np.arange(600), ids)
    assert "none of the 1 n-grams" in caplog.text
