"""The frozen tokenizer against NLTK itself, on real text and on random text; its caches and processes."""

import random
import sys
from collections import defaultdict

import numpy as np
import pytest

from litsearch import sentences, text, token_cache, words
from litsearch.keys import title_abstract
from litsearch.memo import Memo
from litsearch.porter import STEP_2, STEP_3, STEP_4, stem
from litsearch.sentences import parameters, sentence_spans
from litsearch.text import Numbering, stop_words, terms, tokenize, tokenizer_version
from litsearch.words import split_sentence
from shared import InputError
from shared.corpus import documents

HARD = [
    "Title: A Survey\nAbstract: We (e.g., [1]) don't use U.S. data vs. others... It's 3.5% of \"all\" that's known.",
    "prof. smith et al. (2019) report gains of 2.5 bleu. see fig. 3. this is no. 7.",
    "what? yes! no?! “quoted.” next 'single.' then (it ends.) and ``tex quotes.''",
    "cannot gonna wanna gimme lemme gotta d'ye more'n 'tis 'twas what's i'll we've they'd shouldn't o'neill's",
    "e.g. i.e. etc. approx. 12 p.m. on mon. the u.k. government",
    "one.two three.four a.b.c. --- -- – — … .. ... .... end",
    'he said "stop." and "go!" "',
    "ends with brackets ). ] } >",
    "a , b ,c: d :e; f@g #h $5 %6 &c *d* <e> {f} [g] /h\\i",
    "tabs\tand\nnewlines\r\nand\u00a0no-break\u2003spaces  doubled ",
    "",
    "   ",
    ".",
    ". . .",
    "''start of sentence'' and 'x' \"y\"",
    "the ﬁnal ligature, straße, İstanbul, naïve, 日本語のテキスト。 and emoji 🙂.",
    "j. r. r. tolkien; a. b. 5. c. and 1. first 2. second.",
    "\"quoted start.\" it goes on. 'single start.' and on.",
]


@pytest.fixture(scope="module")
def nltk_terms():
    """The plain pipeline: NLTK's own classes with the frozen parameters."""
    from nltk.stem import PorterStemmer
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model, punkt = parameters(), PunktParameters()
    punkt.abbrev_types, punkt.sent_starters = set(model.abbreviations), set(model.starters)
    punkt.collocations, punkt.ortho_context = set(model.collocations), defaultdict(int, model.orthography)
    splitter, tokenizer, stemmer = PunktSentenceTokenizer(punkt), NLTKWordTokenizer(), PorterStemmer()

    class Nltk:
        def sentences(self, some: str) -> list[str]:
            return splitter.tokenize(some)

        def words(self, sentence: str) -> list[str]:
            return tokenizer.tokenize(sentence)

        def stem(self, word: str) -> str:
            return stemmer.stem(word)

        def terms(self, some: str) -> list[str]:
            tokens = [word for sentence in self.sentences(some.lower()) for word in self.words(sentence)]
            return [self.stem(token) for token in tokens if token not in stop_words()]

    return Nltk()


def random_texts(count: int, seed: int) -> list[str]:
    """Words, abbreviations, quotes, brackets and numbers in any order: what the rules have to be careful with."""
    rng = random.Random(seed)
    pieces = ["the", "model", "we", "e.g", "u.s", "dr", "et", "al", "fig", "3", "2.5", "1,000", "x", "cannot", "it's"]
    pieces += ["however", "n't", "o'clock", "rock'n'roll", "self-attention", "Ünïcode", "naïve", "'", '"', "''", "``"]
    marks = [".", ",", "?", "!", ":", ";", "...", "--", "(", ")", "[", "]", '"', "'", "’", "“", "”", "%", "*", "", ""]
    gaps = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ""]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 30)):
            parts += [rng.choice(marks) if rng.random() < 0.2 else "", rng.choice(pieces)]
            parts += [rng.choice(marks), rng.choice(marks) if rng.random() < 0.3 else "", rng.choice(gaps)]
        texts.append("".join(parts))
    return texts


def test_the_frozen_parameters_are_complete():
    model = parameters()
    assert len(stop_words()) == 179
    assert (len(model.abbreviations), len(model.starters)) == (156, 39)
    assert (len(model.collocations), len(model.orthography)) == (37, 20_366)


def test_a_title_becomes_these_terms():
    assert terms("Title: Attention Is All You Need\nAbstract: Models.") == [
        "titl",
        ":",
        "attent",
        "need",
        "abstract",
        ":",
        "model",
        ".",
    ]


def test_a_period_is_a_term_only_where_a_sentence_ends():
    assert terms("We use the model. It works.")[-1] == "."
    assert "model." not in terms("We use the model. It works.")
    assert "mr." in terms("We thank Mr. Smith for it.")


@pytest.mark.parametrize("some", HARD)
def test_hard_texts_are_tokenized_as_nltk_does(some, nltk_terms):
    assert terms(some) == nltk_terms.terms(some)


def test_random_texts_are_tokenized_as_nltk_does(nltk_terms):
    for some in random_texts(3000, seed=1):
        lower = some.lower()
        spans = [lower[start:end] for start, end in sentence_spans(lower)]
        assert spans == nltk_terms.sentences(lower), some
        for sentence in spans:
            assert split_sentence(sentence) == nltk_terms.words(sentence), sentence
        assert terms(some) == nltk_terms.terms(some), some


def test_text_in_upper_case_is_split_into_sentences_as_nltk_does(nltk_terms):
    for some in [*HARD, *(piece.title() for piece in random_texts(500, seed=2))]:
        assert [some[start:end] for start, end in sentence_spans(some)] == nltk_terms.sentences(some)


def test_installed_documentation_is_tokenized_as_nltk_does(nltk_terms):
    for document in documents(max_documents=300):
        whole = f"{document.title}\n{document.summary}\n\n{document.text}"[:5000]
        assert terms(whole) == nltk_terms.terms(whole)


def test_stems_are_nltks(nltk_terms):
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz" + "aeiouy" * 3 + "-1."
    suffixes = [*STEP_2, *STEP_3, *STEP_4, "alli", "ed", "ing", "s", "sses", "ies", "ied", "eed", "y", "e", "ll", ""]
    made = {
        "".join(rng.choices(letters, k=rng.randint(1, 7))) + rng.choice(suffixes) + rng.choice(suffixes)
        for _ in range(20_000)
    }
    known = [
        "exceptionally",
        "Sky",
        "dying",
        "news",
        "flies",
        "dies",
        "spied",
        "agreed",
        "hopping",
        "falling",
        "filing",
    ]
    known += ["enjoyment", "geology", "theologies", "controlling", "rolls", "a", "is", "yyyy", "syzygy", "123s"]
    for word in [*known, *made]:
        assert stem(word) == nltk_terms.stem(word), word


def test_what_is_remembered_of_pieces_does_not_change_the_terms(monkeypatch):
    texts = random_texts(200, seed=3)
    before = [terms(some) for some in texts]
    for name in ("_inside", "_last", "_stems"):
        monkeypatch.setattr(text, name, Memo(getattr(text, name).compute, limit=3))
    monkeypatch.setattr(sentences, "_decisions", Memo(sentences.has_break, limit=2))
    assert [terms(some) for some in texts] == before


def test_a_memo_starts_over_when_it_is_full():
    calls = []
    memo = Memo(lambda key: calls.append(key) or key, limit=2)
    assert [memo[key] for key in (1, 2, 1, 3, 1)] == [1, 2, 1, 3, 1]
    assert calls == [1, 2, 3, 1] and len(memo) == 2


def test_importing_the_tokenizer_does_not_import_nltk():
    import subprocess

    code = "import sys, litsearch.bm25, litsearch.text; litsearch.text.terms('a test.'); print('nltk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ----------------------------------------------------------------------------------------------- many texts, and caches


def run(texts, **options):
    numbering = Numbering()
    batches = list(tokenize(texts, numbering, **options))
    ids = np.concatenate([batch.ids for batch in batches])
    return list(numbering), ids.tolist(), np.concatenate([batch.lengths for batch in batches]).tolist()


def test_ids_are_the_same_for_any_batches_processes_and_caches(tmp_path, monkeypatch):
    texts = [*random_texts(300, seed=4), "", "same text.", "same text."]
    wanted = run(texts)
    assert run(texts, batch_characters=100) == wanted
    monkeypatch.setattr(text, "WORTH_A_PROCESS", 1)
    assert run(texts, batch_characters=5000, processes=2) == wanted
    for _ in range(2):  # writing the cache, then reading it
        assert run(texts, batch_characters=3000, cache=tmp_path) == wanted


def test_terms_can_be_read_back_from_ids():
    texts = random_texts(20, seed=5)
    names, ids, lengths = run(texts)
    assert [names[i] for i in ids] == [term for some in texts for term in terms(some)]
    assert lengths == [len(terms(some)) for some in texts]


def test_cached_texts_are_not_tokenized_again(tmp_path, monkeypatch):
    texts = random_texts(50, seed=6)
    wanted = run(texts[:40], cache=tmp_path)
    tokenized = []
    original = text.tokenize_locally
    monkeypatch.setattr(text, "tokenize_locally", lambda some: tokenized.extend(some) or original(some))
    assert run(texts[:40], cache=tmp_path) == wanted
    assert tokenized == []
    mixed = texts[35:] + texts[:5]
    assert run(mixed, cache=tmp_path) == run(mixed)
    assert tokenized[: len(texts[40:])] == texts[40:]


def test_a_cache_of_another_tokenizer_is_not_used(tmp_path, monkeypatch):
    run(["some text."], cache=tmp_path)
    monkeypatch.setattr(text, "tokenizer_version", lambda: "another")
    run(["some text."], cache=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted([tokenizer_version(), "another"])


def test_a_broken_segment_is_left_out_with_a_warning(tmp_path, caplog):
    texts = random_texts(10, seed=7)
    wanted = run(texts, cache=tmp_path)
    segment = next(tmp_path.glob("*/segment-*"))
    (segment / "ids.npy").write_bytes(b"")
    assert run(texts, cache=tmp_path) == wanted
    assert "is left out" in caplog.text


def test_segments_are_written_while_texts_still_come(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "SEGMENT_TOKENS", 50)
    texts = random_texts(60, seed=8)
    stream = tokenize(iter(texts), Numbering(), cache=tmp_path, batch_characters=200)
    for _ in range(8):
        next(stream)
    assert list(tmp_path.glob("*/segment-*"))  # a kill now would keep these
    stream.close()


def test_a_generator_is_read_only_as_far_as_needed():
    taken = []
    stream = tokenize((taken.append(i) or "some words here." for i in range(1000)), Numbering(), batch_characters=100)
    next(stream)
    assert len(taken) < 50


@pytest.mark.parametrize("processes", [0, -1, True, 1.5])
def test_a_number_of_processes_below_one_is_refused(processes):
    with pytest.raises(InputError, match="processes="):
        list(tokenize(["a"], Numbering(), processes=processes))


def test_a_text_that_is_none_is_refused_by_position():
    with pytest.raises(InputError, match="text 1 is NoneType"):
        list(tokenize(["a", None], Numbering()))


@pytest.mark.mirror
def test_real_abstracts_are_tokenized_as_nltk_does(mini_corpus, nltk_terms):
    for paper in mini_corpus.papers[::40]:
        assert terms(title_abstract(paper)) == nltk_terms.terms(title_abstract(paper))


def test_pieces_that_need_their_neighbours_are_recognised():
    assert words.is_plain_start("word.") and not words.is_plain_start('"word')
    assert words.is_plain_end("word).") and not words.is_plain_end(")”")
