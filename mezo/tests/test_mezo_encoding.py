"""Which tokens are a prompt's and which an option's; what is joined, stripped and cut."""

import copy
from dataclasses import replace

import pytest
from tokenizers import processors

from mezo.encoding import Encoder, front_tokens
from mezo.tasks import get_task
from shared import InputError


def sst2(sentence, label=1):
    return get_task("sst2").sample({"sentence": sentence, "label": label}, f"row {sentence[:5]!r}")


def squad(question="who ?", answer="Tom"):
    row = {"title": "T", "context": "Tom ran .", "question": question, "answers": {"text": [answer]}}
    return get_task("squad").sample(row, "row 0")


def test_options_are_the_tokens_a_candidate_adds(tiny_tokenizer):
    encoded = Encoder(get_task("sst2"), tiny_tokenizer).candidates(sst2("The film is a joy ."))
    prompt = tiny_tokenizer("The film is a joy . It was", add_special_tokens=False)["input_ids"]
    words = [tiny_tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" terrible", " great")]
    assert encoded.candidates == tuple((0, *prompt, *word) for word in words)
    assert encoded.option_lens == (1, 1)
    assert encoded.single_tokens
    assert encoded.gold == (1,)


def test_what_stands_in_front_is_the_releases_or_the_models_own(tiny_tokenizer):
    assert front_tokens(tiny_tokenizer) == (0,)
    opt = copy.deepcopy(tiny_tokenizer)
    opt.backend_tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    none = copy.deepcopy(tiny_tokenizer)
    none.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    task, sample = get_task("sst2"), sst2("a film")

    def first(tokenizer, **options):
        return Encoder(task, tokenizer, **options).candidates(sample).candidates[0][0]

    assert first(opt, model_type="opt") == 0
    assert first(opt, model_type="opt", bos="model") == 2
    assert first(opt, model_type="llama") == 2
    assert front_tokens(none) == ()
    assert first(none) == tiny_tokenizer("a film", add_special_tokens=False)["input_ids"][0]


def test_what_is_too_long_loses_its_beginning_and_keeps_the_first_token_and_the_option(tiny_tokenizer):
    long = "The film is a joy . " * 20
    task = get_task("sst2")
    whole = Encoder(task, tiny_tokenizer).candidates(sst2(long))
    cut = Encoder(task, tiny_tokenizer, max_length=12).candidates(sst2(long))
    for before, after in zip(whole.candidates, cut.candidates, strict=True):
        assert after == (0, *before[-11:])
    assert cut.option_lens == whole.option_lens


def test_a_generation_task_leaves_room_for_its_answer(tiny_tokenizer):
    prompt = Encoder(get_task("squad"), tiny_tokenizer, max_length=66).prompt(squad())
    assert len(prompt.ids) == 16
    assert prompt.answers == ("Tom",)


def test_the_line_break_after_a_generated_answer_is_trained_on(tiny_tokenizer):
    encoded = Encoder(get_task("squad"), tiny_tokenizer).right(squad())
    answer = tiny_tokenizer.decode(encoded.candidates[0][-encoded.option_lens[0] :])
    assert answer == " Tom\n"


def test_demonstrations_come_first_answered_with_blank_lines_between(tiny_tokenizer):
    encoder = Encoder(get_task("squad"), tiny_tokenizer)
    demos = [squad("what ?", "A film"), squad("which ?", "No")]
    text = tiny_tokenizer.decode(encoder.prompt(squad(), demos).ids[1:])
    one = "Title: T\nContext: Tom ran .\nQuestion: {}\nAnswer:{}"
    expected = [one.format("what ?", " A film"), one.format("which ?", " No"), one.format("who ?", "")]
    assert text == "\n\n".join(expected)


def test_demonstrations_do_not_change_what_an_option_is(tiny_tokenizer):
    encoder = Encoder(get_task("sst2"), tiny_tokenizer)
    bare, shown = (encoder.candidates(sst2("a plot"), demos) for demos in ((), [sst2("a joy"), sst2("holes", 0)]))
    assert shown.option_lens == bare.option_lens
    assert all(a[-3:] == b[-3:] for a, b in zip(bare.candidates, shown.candidates, strict=True))


def test_calibration_prompts_have_no_content_with_or_without_demonstrations(tiny_tokenizer):
    encoder, demos = Encoder(get_task("sst2"), tiny_tokenizer), [sst2("a joy")]

    def text(content_free):
        encoded = encoder.candidates(sst2("a plot"), demos, content_free=content_free)
        return tiny_tokenizer.decode(encoded.candidates[1][1:])

    assert text("sfc") == "It was great"
    assert text("icl_sfc") == "a joy It was great\n\nIt was great"


def test_candidates_of_different_lengths_keep_their_own(tiny_tokenizer):
    task = get_task("copa")
    row = {
        "premise": "I fell.",
        "choice1": "The floor was wet.",
        "choice2": "I slept.",
        "question": "cause",
        "label": 0,
    }
    encoded = Encoder(task, tiny_tokenizer).candidates(task.sample({**row, "label": 0}, "row"))
    texts = [tiny_tokenizer.decode(ids[-n:]) for ids, n in zip(encoded.candidates, encoded.option_lens, strict=True)]
    assert texts == [" the floor was wet.", " I slept."]
    assert not encoded.single_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "none"}, "bos='none': choose authors or model"),
        ({"max_length": 4}, "max_length=4: give at least 8 tokens for task sst2"),
    ],
)
def test_settings_that_make_no_sense_are_named(tiny_tokenizer, options, message):
    with pytest.raises(InputError, match=message):
        Encoder(get_task("sst2"), tiny_tokenizer, **options)


def test_an_option_that_fills_the_limit_or_adds_nothing_is_refused(tiny_tokenizer):
    task = get_task("copa")
    row = {"premise": "I", "choice1": "x " * 40, "choice2": "y", "question": "effect", "label": 0}
    with pytest.raises(InputError, match="leaves no prompt in max_length=16; raise it"):
        Encoder(task, tiny_tokenizer, max_length=16).candidates(task.sample(row, "row"))
    joined = replace(get_task("sst2"), candidates=(" ", " great"))
    with pytest.raises(InputError, match=r"adds no token to the prompt \(option_len 0\)"):
        Encoder(joined, tiny_tokenizer).candidates(joined.sample({"sentence": "x", "label": 0}, "row"))
