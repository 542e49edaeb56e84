"""The byte-level BPE with RoBERTa's ids, trained or loaded."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from mlm_masking.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from shared import InputError
from shared.tokenization import tokenizer_facts

LINES = ["the cat sat on the mat", "a dog ran, and ran, in the park's shade", "Grüße an die Katze"] * 5


def test_ids_are_laid_out_as_robertas():
    tokenizer = train_tokenizer(LINES, 300)
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 299]
    roles = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id)
    assert roles == (0, 1, 2, 299) and (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2)


def test_any_text_is_written_and_read_back():
    tokenizer = train_tokenizer(LINES, 261)
    text = "naïve 中文 \t🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("the") == ["t", "h", "e"]


def test_the_mask_takes_the_blank_before_it_along():
    tokenizer = train_tokenizer(LINES, 300)
    assert tokenizer.encode("the <mask>") == [*tokenizer.encode("the"), 299]


def test_the_same_text_gives_the_same_tokenizer_in_every_process():
    code = (
        "from mlm_masking.tokenizer import train_tokenizer; from shared.tokenization import tokenizer_facts; "
        f"print(tokenizer_facts(train_tokenizer({LINES!r}, 300)).sha256)"
    )
    environment = {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3", "PATH": ""}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == tokenizer_facts(train_tokenizer(LINES, 300)).sha256


def test_it_is_saved_for_any_loader_and_loaded_again(tmp_path):
    tokenizer = train_tokenizer(LINES, 300)
    folder = save_tokenizer(tokenizer, tmp_path / "tokenizer")
    for loaded in (
        load_tokenizer(folder),
        load_tokenizer(folder / "tokenizer.json"),
        AutoTokenizer.from_pretrained(folder),
    ):
        assert tokenizer_facts(loaded) == tokenizer_facts(tokenizer)
        assert loaded.encode("the cat <mask>") == tokenizer.encode("the cat <mask>")


def test_vocabulary_and_merges_are_enough(tmp_path):
    tokenizer = train_tokenizer(LINES, 300)
    tokenizer.backend_tokenizer.model.save(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(LINES[1]) == tokenizer.encode(LINES[1])
    assert len(loaded) == 300 and loaded.mask_token_id == 299


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "needs tokenizer.json, or vocab.json and merges.txt"),
        ({"vocab.json": '{"a": 0}'}, "needs tokenizer.json, or vocab.json and merges.txt"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"vocab.json": "{", "merges.txt": ""}, "cannot be read"),
        ({"vocab.json": '{"a": 0, "<s>": 1}', "merges.txt": ""}, "<s> must have id 0, not 1"),
        ({"vocab.json": '{"<s>": 0, "<pad>": 1, "a": 2}', "merges.txt": ""}, "</s> must have id 2, not None"),
    ],
)
def test_what_is_no_such_tokenizer_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("size", "message"), [(260, "at least 261"), (5000, "this text gives only")])
def test_a_size_that_the_text_cannot_fill_is_refused(size, message):
    with pytest.raises(InputError, match=f"tokenizer.vocab_size={size}: .*{message}"):
        train_tokenizer(LINES, size)


@pytest.mark.mirror
def test_robertas_vocabulary_has_the_published_ids(mirror):
    tokenizer = load_tokenizer(mirror / "mlm-masking" / "roberta-tokenizer")
    assert len(tokenizer) == 50_265 and tokenizer.mask_token_id == 50_264
    assert tokenizer.convert_ids_to_tokens([4, 5, 6]) == [".", "Ġthe", ","]
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 50_260
    assert tokenizer.convert_ids_to_tokens([50_261, 50_263]) == ["madeupword0000", "madeupword0002"]
