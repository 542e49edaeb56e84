"""Training files are read strictly; batches are what the release's collator would make, without its per-step work."""

import json
import logging

import numpy as np
import pytest
import torch

from shared import InputError
from shared.corpus import Document
from simcse.batches import Collator, EpochSampler, MaskTokens, TokenRows, tokenize
from simcse.data import Examples, check_examples, read_examples, repeats_in_batches, sentence_numbers
from simcse.pairs import positives
from simcse.text_sources import corpus_pairs, corpus_sentences, is_held_out, load_examples, split_sentences

TRIPLETS = 'sent0,sent1,hard_neg\n"A man, old",A man,A dog\nTwo,Deux,\n'


@pytest.fixture
def file(tmp_path):
    """A function: name, content -> path."""

    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_columns_decide_by_order_whatever_their_names(file):
    examples = read_examples(file("x.csv", TRIPLETS))
    assert examples.columns == (["A man, old", "Two"], ["A man", "Deux"], ["A dog", " "])
    renamed = read_examples(file("y.csv", TRIPLETS.replace("sent0,sent1,hard_neg", "b,a,c")))
    assert renamed.columns == examples.columns
    assert examples.first_columns(2).columns == examples.columns[:2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tsv", "a\tb\nHe, runs\tHe moves\n"),
        ("x_tsv.csv", "a\tb\nHe, runs\tHe moves\n"),
        ("tsv/x.csv", "a\tb\nHe, runs\tHe moves\n"),
        ("tsv/y.csv", 'a,b\n"He, runs",He moves\n'),
        ("x.jsonl", '{"a": "He, runs", "b": "He moves"}\n'),
        ("x.json", '[{"a": "He, runs", "b": "He moves"}]'),
    ],
)
def test_every_format_of_pairs_reads_alike(file, name, content):
    assert read_examples(file(name, content)).columns == (["He, runs"], ["He moves"])


def test_null_and_empty_cells_become_one_space(file):
    assert read_examples(file("x.jsonl", '{"a": "x", "b": null}\n{"a": "y", "b": ""}\n')).columns[1] == [" ", " "]


def test_blank_lines_are_dropped_with_a_count_and_separate_documents(file, caplog):
    examples = read_examples(file("x.txt", "one\ntwo\n\n \r\nthree\r\n"))
    assert examples.columns == (["one", "two", "three"],) and examples.document.tolist() == [0, 0, 1]
    assert examples.dropped == 2 and "dropped 2 blank line(s)" in caplog.text


def test_line_separators_inside_a_sentence_do_not_split_it(file):
    assert read_examples(file("x.txt", "one\u2028still one\x0cand still\ntwo\n")).columns[0] == [
        "one\u2028still one\x0cand still",
        "two",
    ]


def test_several_files_are_read_after_one_another(file):
    first, second = file("a.txt", "one\ntwo\n"), file("b.txt", "three\n")
    examples = read_examples([first, second])
    assert examples.columns == (["one", "two", "three"],) and examples.document.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match=r"different numbers of columns \(a.txt: 1, x.csv: 3\)"):
        read_examples([first, file("x.csv", TRIPLETS)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "is empty"),
        ("x.txt", " \n\n", "is empty"),
        ("x.csv", "sent0,sent1\n", "no examples below its header"),
        ("x.parquet", "x", r"extension '\.parquet'.*\.txt, \.csv"),
        ("x", "x", r"extension '\(none\)'"),
        ("x.csv", "a,b,c,d\n1,2,3,4\n", "has 4 columns"),
        ("x.jsonl", "{}\n", "has 0 columns"),
        ("x.csv", "a,b\n1,2\n\n1,2,3\n", r"line 4: 3 column\(s\), but the header has 2"),
        ("x.csv", "a,b\n1\n", r"line 2: 1 column\(s\)"),
        ("x.csv", "a\tb\nHe, runs\tHe moves\n", "looks tab separated: name it .tsv"),
        ("x.tsv", "a,b\nHe runs,He moves\n", "looks comma separated"),
        ("x.csv", "A man is playing a guitar.,He plays\nx,y\n", "does not look like a column name"),
        ("x.csv", "a,a\nx,y\n", "same name"),
        ("x.csv", 'a,b\n"x,y\n', "Check the quotes"),
        ("x.txt", b"fine\nfine\ncaf\xe9\n", r"line 3: byte 0xe9 is not UTF-8"),
        ("x.csv", b"a,b\ncaf\xe9,x\n", r"line 2: byte 0xe9 is not UTF-8"),
        ("x.jsonl", '{"a": "x"}\n{"a": \n', "line 2: not JSON"),
        ("x.jsonl", '{"a": "x"}\n{"b": "x"}\n', "line 2: fields b; the first example has a"),
        ("x.jsonl", '{"a": 3}\n', "line 1: field 'a' is a int"),
        ("x.json", '["a"]', "example 1: a str"),
    ],
)
def test_bad_file_names_file_and_line(file, name, content, message):
    path = file(name, content)
    with pytest.raises(InputError, match=message) as error:
        read_examples(path)
    assert path.name in str(error.value)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt does not exist"):
        read_examples(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_examples(tmp_path)


def test_data_that_cannot_train_is_refused():
    with pytest.raises(InputError, match=r"3 example\(s\), fewer than one batch \(batch_size=4\)"):
        check_examples(Examples((["a", "b", "c"],), "x.txt"), 4)
    with pytest.raises(InputError, match=r"all 4 examples of x\.txt are the same sentence: 'a'"):
        check_examples(Examples((["a"] * 4,), "x.txt"), 2)
    check_examples(Examples((["a", "b"], ["a", "a"]), "x.csv"), 2)


def test_repeats_inside_a_batch_are_counted():
    numbers = sentence_numbers(["a", "b", "a", "c", "a", "a"])
    assert numbers.tolist() == [0, 1, 0, 2, 0, 0]
    assert repeats_in_batches(numbers, np.array([0, 1, 2, 3, 4, 5]), 3) == (2, 2)
    assert repeats_in_batches(numbers, np.array([0, 1, 3, 2, 4, 5]), 3) == (2, 1)


@pytest.fixture
def rows(tiny_tokenizer, sentences, tmp_path) -> TokenRows:
    return tokenize(sentences(200), tiny_tokenizer, 12, tmp_path)


def test_token_files_hold_what_the_tokenizer_gives(rows, tiny_tokenizer, sentences):
    expected = tiny_tokenizer(sentences(200), truncation=True, max_length=12)["input_ids"]
    assert [rows.ids[rows.offsets[i] : rows.offsets[i + 1]].tolist() for i in range(200)] == expected
    assert rows.ids.dtype == np.int32 and isinstance(rows.ids, np.memmap)


def test_token_files_are_written_once_and_anew_for_other_text(rows, tiny_tokenizer, sentences, tmp_path):
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    tokenize(sentences(200), tiny_tokenizer, 12, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == stamps
    for other in (sentences(200, seed=5), sentences(199)):
        assert len(tokenize(other, tiny_tokenizer, 12, tmp_path)) == len(other)
    assert len(list(tmp_path.rglob("ids.npy"))) == 3
    with pytest.raises(InputError, match="leaves no room"):
        tokenize(["a"], tiny_tokenizer, 2, tmp_path)


def test_batch_is_example_major_and_padded_to_its_longest_row(tiny_tokenizer, sentences, tmp_path):
    texts = [sentences(20, seed) for seed in range(3)]
    columns = tuple(tokenize(column, tiny_tokenizer, 32, tmp_path) for column in texts)
    batch = Collator(columns, tiny_tokenizer, 20, 42)([3, 7, 25])  # 25 = example 5 of epoch 1
    flat = [texts[s][i] for i in (3, 7, 5) for s in range(3)]
    expected = tiny_tokenizer(flat, padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name].flatten(0, 1), expected[name]) and batch[name].shape[:2] == (3, 3)
    padded = Collator(columns, tiny_tokenizer, 20, 42, pad_to_max_length=True)([3])
    assert padded["input_ids"].shape == (1, 3, 32)


def test_one_column_is_its_own_positive(rows, tiny_tokenizer):
    batch = Collator((rows,), tiny_tokenizer, 200, 42)([0, 5])
    assert batch["input_ids"].shape[1] == 2 and torch.equal(batch["input_ids"][:, 0], batch["input_ids"][:, 1])


def test_neighbours_come_from_the_token_file(rows, tiny_tokenizer):
    chosen = positives("next_sentence", np.zeros(200, dtype=np.int64), 200, 42)
    batch = Collator((rows,), tiny_tokenizer, len(chosen), 42, positives=chosen)([10])
    real = batch["attention_mask"][0, 1].bool()
    assert batch["input_ids"][0, 1][real].tolist() == rows.ids[rows.offsets[11] : rows.offsets[12]].tolist()


def test_mlm_masks_a_copy_at_the_stated_rates(rows, tiny_tokenizer):
    collator = Collator((rows,), tiny_tokenizer, 200, 42, mask=MaskTokens(tiny_tokenizer, 0.15))
    plain = Collator((rows,), tiny_tokenizer, 200, 42)
    targets = masked = kept = words = 0
    for epoch in range(20):
        positions = list(range(epoch * 200, epoch * 200 + 200))
        batch = collator(positions)
        assert torch.equal(batch["input_ids"], plain(positions)["input_ids"])
        ids, labels, changed = batch["input_ids"], batch["mlm_labels"], batch["mlm_input_ids"]
        target = labels != -100
        special = torch.isin(ids, torch.tensor(tiny_tokenizer.all_special_ids))
        assert not (target & special).any() and torch.equal(changed[~target], ids[~target])
        assert torch.equal(labels[target], ids[target])
        targets, words = targets + target.sum().item(), words + (~special).sum().item()
        masked += (changed[target] == tiny_tokenizer.mask_token_id).sum().item()
        kept += (changed[target] == ids[target]).sum().item()
    assert targets / words == pytest.approx(0.15, abs=0.01)
    assert masked / targets == pytest.approx(0.8, abs=0.02)
    assert kept / targets == pytest.approx(0.1 + 0.1 / len(tiny_tokenizer), abs=0.02)
    assert not torch.equal(labels[:, 0], labels[:, 1])  # both views are masked on their own


def test_mlm_needs_a_mask_token_and_a_probability(tiny_tokenizer):
    from transformers import PreTrainedTokenizerFast

    for probability in (0, 1, -0.1):
        with pytest.raises(InputError, match="mlm_probability"):
            MaskTokens(tiny_tokenizer, probability)
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(InputError, match="mask token"):
        MaskTokens(bare)


def test_order_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and list(EpochSampler(50, seed=1)) == first
    sampler.set_epoch(3)
    later = list(sampler)
    assert sorted(later) == list(range(150, 200)) and [p - 150 for p in later] != first
    assert list(EpochSampler(50, seed=2)) != first


def _document(package: str, number: int) -> Document:
    body = f"The first sentence of {package} number {number} tells a story. The second one goes on with it."
    return Document(
        text=body, title="t", summary=f"Summary of {number}", origin=f"{package}/{number}", kind="docs", package=package
    )


def test_corpus_pairs_take_the_hard_negative_from_another_document_of_the_package():
    documents = [_document(package, number) for package in ("a", "b") for number in range(30)]
    examples = corpus_pairs(documents)
    assert len(examples) == sum(not is_held_out(document) for document in documents)
    for summary, positive, negative in zip(*examples.columns, strict=True):
        number = summary.split()[-1]
        package = positive.split()[4]
        assert f"number {number} " in positive and f"number {number} " not in negative and f"of {package} " in negative
    held_out = {document.text for document in documents if is_held_out(document)}
    assert held_out and not any(text.startswith(sentence) for text in held_out for sentence in examples.columns[1])


def test_corpus_sentences_keep_document_order():
    examples = corpus_sentences([_document("a", number) for number in range(3)])
    assert examples.document.tolist() == sorted(examples.document.tolist())
    assert len(examples.columns[0]) == 2 * len(set(examples.document.tolist()))
    assert split_sentences("x = y(1)\n\n* a b\n\nThis is a sentence. And this, too, is one!") == [
        "This is a sentence.",
        "And this, too, is one!",
    ]


def _nli(folder, name: str, rows: list[tuple[str, str, int]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path = folder / "simcse" / name / {"snli": "plain_text", "multi_nli": "data"}[name] / "train-0.parquet"
    path.parent.mkdir(parents=True)
    columns = dict(zip(("premise", "hypothesis", "label"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), path)


def test_labelled_nli_becomes_pairs_and_triplets(tmp_path, monkeypatch, compose_train):
    monkeypatch.setenv("REPRO_MIRROR", str(tmp_path))
    _nli(
        tmp_path,
        "snli",
        [("p", "ent", 0), ("p", "neu", 1), ("p", "con", 2), ("p", "ent2", 0), ("q", "con2", 2), ("r", "?", -1)],
    )
    _nli(tmp_path, "multi_nli", [("s", "ent3", 0), ("s", "con3", 2)])

    def load(source: str) -> Examples:
        return load_examples(compose_train(["experiment=sup_bert_base", f"data={source}"]).data, 42)

    assert load("nli_entailment").columns == (["p", "p", "s"], ["ent", "ent2", "ent3"])
    assert load("nli_contradiction").columns == (["p", "q", "s"], ["con", "con2", "con3"])
    assert len(load("nli_all")) == 7
    assert load("nli_neutral_negatives").columns == (["p"], ["ent"], ["con"], ["neu"])


def test_sample_is_drawn_with_the_seed_and_keeps_file_order(file, compose_train):
    path = file("x.txt", "\n".join(f"sentence {i}" for i in range(100)))

    def load(seed: int, *more: str) -> list[str]:
        return load_examples(compose_train([f"data.path={path}", *more]).data, seed).columns[0]

    drawn = load(1, "data.sample=10")
    assert len(drawn) == 10 and drawn == load(1, "data.sample=10") and drawn != load(2, "data.sample=10")
    assert [int(text.split()[1]) for text in drawn] == sorted(int(text.split()[1]) for text in drawn)
    assert load(1, "data.max_examples=3") == ["sentence 0", "sentence 1", "sentence 2"]
    with pytest.raises(InputError, match=r"data\.columns=3, but x\.txt has 1"):
        load(1, "data.columns=3")


@pytest.mark.mirror
def test_real_files_have_their_published_counts(mirror, compose_train):
    def load(source: str) -> Examples:
        return load_examples(compose_train([f"data={source}", "data.columns=null"]).data, 42)

    assert len(load("wiki_sample")) == 11_914
    triplets = load("snli_triplets")
    assert len(triplets) == 5_864 and len(triplets.columns) == 3
    assert triplets.columns[0][0].startswith("Two women are embracing")


def test_auto_without_mirror_falls_back_to_the_corpus_and_says_so(monkeypatch, compose_train, caplog):
    from simcse import text_sources

    monkeypatch.setenv("REPRO_MIRROR", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(text_sources, "documents", lambda: [_document("a", n) for n in range(20)])
    with caplog.at_level(logging.WARNING):
        examples = load_examples(compose_train(["experiment=triplets"]).data, 42)
    assert len(examples.columns) == 3 and "offline corpus" in examples.source
    assert "snli_triplets is not on this machine" in caplog.text
    assert json.dumps(examples.source)
