"""The template language: parsing, rendering, limits, and what it refuses."""

import pytest

from lm_bff.data import load_splits
from lm_bff.label_words import label_words, parse_mapping, word_id
from lm_bff.tasks import TASKS
from lm_bff.template import Literal, Sentence, Special, parse
from shared import InputError

NLI = "*cls**sent-_0*?*mask*,*+sentl_1**sep+*"
MNLI_SEED_13 = (
    "Price caps may sound more attractive with every passing rate case.",
    "Rate cases make price caps sound more attractive.",
)


def decoded(tokenizer, template: str, sentences, **options) -> str:
    return tokenizer.decode(parse(template).render(tokenizer, sentences, **options).input_ids)


def test_pieces_are_structured():
    assert parse("*cls**sent-_0*?*mask*,*+sentl_12*_x*sep+*").pieces == (
        Special("cls"),
        Sentence(0, cut=True),
        Literal("?"),
        Special("mask"),
        Literal(","),
        Sentence(12, space=True, case="l"),
        Literal(" x"),
        Special("sep", ends_segment=True),
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_task_template_is_written_again_as_it_was(name):
    assert str(parse(TASKS[name].template)) == TASKS[name].template


def test_a_pair_is_rendered_as_in_the_release(bpe):
    """The decoded example of the release on MNLI's first training pair."""
    assert decoded(bpe, NLI, MNLI_SEED_13) == (
        "<s>Price caps may sound more attractive with every passing rate case?<mask>, "
        "rate cases make price caps sound more attractive.</s>"
    )


@pytest.mark.mirror
def test_token_ids_of_roberta(roberta_tokenizer):
    rendered = parse(NLI).render(roberta_tokenizer, MNLI_SEED_13)
    assert rendered.input_ids == [
        *(0, 36677, 9686, 189, 2369, 55, 6043, 19, 358, 3133, 731, 403, 116, 50264),
        *(6, 731, 1200, 146, 425, 9686, 2369, 55, 6043, 4, 2),
    ]
    assert rendered.mask_position == 13
    assert set(rendered.token_type_ids) == {0}


@pytest.mark.mirror
def test_first_training_prompts_have_the_known_lengths(roberta_tokenizer, mirror):
    """Far below the 128 tokens that the release pads to: all but QNLI's 125 have 65 at most."""
    lengths = {}
    for name in TASKS:
        if name in ("mpqa", "subj"):
            continue
        first = load_splits(TASKS[name], 16, 13, mirror / "lm-bff/k-shot").train[0]
        lengths[name] = len(parse(TASKS[name].template).render(roberta_tokenizer, first.sentences).input_ids)
    assert lengths.pop("qnli") == 125
    assert max(lengths.values()) == 65 == lengths["mrpc"] and min(lengths.values()) >= 11


@pytest.mark.mirror
def test_label_words_of_roberta_are_single_tokens_with_their_space(roberta_tokenizer):
    for task in TASKS.values():
        found = label_words(roberta_tokenizer, task.mapping, task.labels, task.name)
        assert roberta_tokenizer.convert_ids_to_tokens(list(found.ids)) == [f"Ġ{word}" for word in found.words]
    assert word_id(roberta_tokenizer, "great") == 372 and word_id(roberta_tokenizer, "terrible") == 6587


def test_sentence_variants(bpe):
    sentence = ["The End."]
    for variable, expected in {
        "sent_0": "The End.",
        "+sent_0": " The End.",
        "sent-_0": "The End",
        "sentl_0": "the End.",
        "+sentl_0": " the End.",
        "sentl-_0": "the End",
    }.items():
        assert decoded(bpe, f"*{variable}**mask*", sentence) == expected + "<mask>", variable
    assert decoded(bpe, "*sentu_0**mask*", ["the end."]) == "The end.<mask>"
    assert decoded(bpe, "*+sentu_0**mask*", ["the end."]) == " The end.<mask>"
    assert decoded(bpe, "*sent-_0**mask*", ["no stop"]) == "no sto<mask>", "the last character goes whatever it is"
    assert decoded(bpe, "*sentl-_0**mask*", [""]) == "<mask>"


def test_pieces_are_never_tokenised_together(bpe):
    rendered = parse("*sent_0*_It_was*mask*.").render(bpe, ["good"])
    apart = [bpe.encode(text, add_special_tokens=False) for text in ("good", " It was")]
    assert rendered.input_ids == [*apart[0], *apart[1], bpe.mask_token_id, bpe.convert_tokens_to_ids(".")]


def test_a_single_character_is_looked_up_and_a_lone_space_is_encoded(bpe):
    assert parse(".*mask*").render(bpe, []).input_ids == [bpe.convert_tokens_to_ids("."), bpe.mask_token_id]
    assert parse("_*mask*").render(bpe, []).input_ids == [*bpe.encode(" ", add_special_tokens=False), bpe.mask_token_id]


def test_limits_of_sentences(bpe):
    template = "*cls**sent_0**mask*,*+sent_1**sep+*"
    long = "the film is a warm and funny story about two people"
    ids = [bpe.encode(text, add_special_tokens=False) for text in (long, " " + long)]
    rendered = parse(template).render(bpe, [long, long], first_sent_limit=4, other_sent_limit=2)
    comma = bpe.convert_tokens_to_ids(",")
    assert rendered.input_ids == [0, *ids[0][:4], bpe.mask_token_id, comma, *ids[1][:2], 2]


def test_truncation_keeps_the_end_with_truncate_head_else_the_beginning(bpe):
    template = parse("*cls**mask*:*+sent_0**sep+*")
    whole = template.render(bpe, ["the film is a warm and funny story"])
    cut = template.render(bpe, ["the film is a warm and funny story"], max_length=6)
    assert cut.input_ids == whole.input_ids[:6] and cut.mask_position == 1
    tail = parse("*cls**sent_0*_It_was*mask*.*sep+*")
    whole = tail.render(bpe, ["the film is a warm and funny story"])
    cut = tail.render(bpe, ["the film is a warm and funny story"], max_length=6, truncate_head=True)
    assert cut.input_ids == whole.input_ids[-6:]
    assert cut.input_ids[cut.mask_position] == bpe.mask_token_id


def test_a_mask_that_is_cut_away_names_the_example_and_the_remedy(bpe):
    with pytest.raises(InputError, match=r"line 7: its prompt has \d+ tokens.*max_length=5.*first_sent_limit"):
        parse("*cls**sent_0*_It_was*mask*.*sep+*").render(
            bpe, ["the film is a warm story"], max_length=5, name="line 7"
        )


def test_the_mask_token_in_a_text_is_refused(bpe):
    with pytest.raises(InputError, match="line 3: its text holds the mask token '<mask>'"):
        parse("*cls**sent_0*_It_was*mask*.").render(bpe, ["a <mask> film"], name="line 3")


def test_segments_rise_after_sep_plus_only(wordpiece):
    rendered = parse("*cls**sent_0**sep**mask**sep+**sent_1**sep+*").render(wordpiece, ["film", "story"])
    assert rendered.token_type_ids == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("*cls**sent_0*", "has 0 .mask., but must have exactly 1"),
        ("*mask**sent_0**mask*", "has 2 .mask."),
        ("*cls**sentence_0**mask*", r"unknown variable \*sentence_0\*"),
        ("*cls*sent_0**mask*", "odd number of|unknown variable"),
        ("*cls**mask", "odd number of"),
        ("*cls**label**mask*", r"unknown variable \*label\*"),
        ("*<extra_id_0>**mask*", "unknown variable"),
        (None, "give a text such as"),
    ],
)
def test_bad_templates(template, message):
    with pytest.raises(InputError, match=message):
        parse(template)


def test_a_sentence_that_is_not_there(bpe):
    with pytest.raises(InputError, match="asks for sentence 2, but the example has 2"):
        parse("*sent_2**mask*").render(bpe, ["a", "b"])
    with pytest.raises(InputError, match=r"asks for \*label_1\*, but there are 1 label words"):
        parse("*label_1**mask*").render(bpe, ["a"], label_word_ids=[5])


def test_templates_for_t5_are_parsed_where_they_are_wanted():
    template = parse("*cls**sentu_0**<extra_id_0>**label**<extra_id_1>**sep+*", fill_in=True)
    assert str(template) == "*cls**sentu_0**<extra_id_0>**label**<extra_id_1>**sep+*"


# ------------------------------------------------------------------------------------------------------- label words


def test_a_word_of_several_tokens_is_named_with_its_pieces(bpe):
    with pytest.raises(InputError, match=r"label word 'unbelievable' is not one token: .*\['Ġ"):
        word_id(bpe, "unbelievable")


def test_tokens_by_name(bpe):
    assert word_id(bpe, ".") == bpe.convert_tokens_to_ids(".")
    assert word_id(bpe, "<mask>") == bpe.mask_token_id
    with pytest.raises(InputError, match="is no token"):
        word_id(bpe, "<unheard>")


def test_unknown_words_of_wordpiece_are_refused(wordpiece):
    with pytest.raises(InputError, match="not in the tokenizer's vocabulary"):
        word_id(wordpiece, "\u4e2d")


def test_mappings_are_read_in_either_spelling():
    assert parse_mapping("{'0':'terrible','1':'great'}") == {"0": "terrible", "1": "great"}
    assert parse_mapping('{"0": "terrible", "1": "great"}') == {"0": "terrible", "1": "great"}
    assert parse_mapping("{0:'terrible',1:'great'}") == {0: "terrible", 1: "great"}
    for wrong in ("great", "{}", "['a']", "{'0': 3}", "{True: 'a'}"):
        with pytest.raises(InputError, match="mapping"):
            parse_mapping(wrong)


def test_keys_must_be_the_tasks_labels_numbers_or_texts(bpe):
    with pytest.raises(InputError, match=r"mapping of task mr has the keys \['0', '1'\].*numbers without quotes"):
        label_words(bpe, '{"0": "terrible", "1": "great"}', TASKS["mr"].labels, "mr")
    with pytest.raises(InputError, match="texts in quotes"):
        label_words(bpe, {0: "terrible", 1: "great"}, TASKS["sst-2"].labels, "sst-2")
    with pytest.raises(InputError, match="needs"):
        label_words(bpe, {"0": "terrible"}, TASKS["sst-2"].labels, "sst-2")


def test_columns_follow_the_labels_not_the_mapping(bpe):
    found = label_words(bpe, {"not_entailment": "No", "entailment": "Yes"}, TASKS["rte"].labels)
    assert found.words == ("Yes", "No")
