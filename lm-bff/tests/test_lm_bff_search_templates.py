"""Template search: the shared decoder against T5's own forward pass, the beam, and what becomes of its texts."""

import pytest
import torch

from lm_bff.candidates import read_candidates
from lm_bff.search_templates import load_t5, search, shown_inputs
from lm_bff.tasks import TASKS
from lm_bff.template_beam import Blanks, SharedDecoder, beam_search, search_texts
from lm_bff.template_text import PAIR, SENTENCE_FIRST, SENTENCE_LAST, forms, to_template
from lm_bff.tiny_t5 import tiny_t5
from shared import InputError


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return load_t5(str(tiny_t5(tmp_path_factory.mktemp("t5"))))


def padded(rows, pad=0):
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, pad)
    return ids, (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long()


@torch.no_grad()
def whole_forward(model, ids, mask, hypothesis):
    """The release's way: encoder and prefix anew, the logits of all examples averaged, then normalised."""
    prefix = torch.tensor([[model.config.decoder_start_token_id, *hypothesis]]).expand(len(ids), -1)
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=prefix).logits[:, -1]
    return torch.log_softmax(logits.mean(dim=0), dim=-1)


def test_cached_steps_equal_the_whole_forward_pass(t5):
    model, _ = t5
    ids, mask = padded([[5, 9, 12, 30, 1], [7, 8, 1], [40, 41, 42, 43, 44, 45, 46, 1]])
    decoder = SharedDecoder(model, ids, mask)
    start = model.config.decoder_start_token_id
    first = decoder.step(torch.tensor([start]), None)
    torch.testing.assert_close(first[0], whole_forward(model, ids, mask, []), atol=1e-4, rtol=1e-4)
    texts, parents = [[10], [11], [12]], torch.tensor([0, 0, 0])
    for choice in ([2, 0, 0, 1], [3, 1], [0, 0, 1]):
        out = decoder.step(torch.tensor([text[-1] for text in texts]), parents)
        for row, text in enumerate(texts):
            torch.testing.assert_close(out[row], whole_forward(model, ids, mask, text), atol=1e-4, rtol=1e-4)
        parents = torch.tensor(choice)
        texts = [[*texts[row], 20 + number] for number, row in enumerate(choice)]


def exhaustive(model, ids, mask, blanks, beam, max_tokens):
    """The same beam search in plain Python over whole forward passes."""
    beams = [((), 0.0, 1)]
    for _ in range(max_tokens):
        grown = [one for one in beams if one[2] > blanks.count]
        for text, score, counter in beams:
            if counter > blanks.count:
                continue
            log_probs = whole_forward(model, ids, mask, text)
            for token in log_probs.argsort(descending=True)[: beam + 60].tolist():
                if token in blanks.forbidden or (text and token == text[-1] == blanks.full_stop):
                    continue
                rises = token == blanks.end or (counter < 3 and token == blanks.sentinels[counter])
                grown.append(((*text, token), score + log_probs[token].item(), counter + rises))
        beams = sorted(grown, key=lambda one: -one[1])[:beam]
    return [(text, counter > blanks.count) for text, _, counter in beams]


def test_the_beam_is_that_of_whole_forward_passes(t5):
    model, tokenizer = t5
    rows = [[5, 9, 12, 30, 1], [7, 8, 1]]
    ids, mask = padded(rows)
    found = search_texts(model, tokenizer, rows, beam=12, max_tokens=7)
    expected = exhaustive(model, ids, mask, Blanks.of(tokenizer), 12, 7)
    assert [(one.tokens, one.finished) for one in found] == expected
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_a_finished_hypothesis_stays_and_is_not_continued():
    blanks = Blanks(1, (5, 6), end=1, forbidden=(), full_stop=None)
    asked = []

    def step(tokens, parents):
        asked.append(tokens.tolist())
        logits = torch.full((len(tokens), 8), -20.0)
        logits[:, 6], logits[:, 2] = 2.0, 1.0  # the sentinel that ends is the likeliest everywhere
        return logits.log_softmax(-1)

    found = beam_search(step, 0, blanks, beam=2, max_tokens=3)
    assert found[0].tokens == (6,)
    assert found[0].finished
    assert asked == [[0], [2]]
    assert found[1].tokens == (2, 6)


def test_two_full_stops_in_a_row_and_forbidden_tokens_are_not_generated():
    blanks = Blanks(2, (5, 6, 7), end=1, forbidden=(3,), full_stop=4)

    def step(tokens, parents):
        logits = torch.zeros(len(tokens), 8)
        logits[:, 3], logits[:, 4] = 9.0, 8.0
        return logits.log_softmax(-1)

    for one in beam_search(step, 0, blanks, beam=8, max_tokens=4):
        assert 3 not in one.tokens
        assert (4, 4) not in list(zip(one.tokens, one.tokens[1:], strict=False))


@pytest.mark.parametrize(
    ("form", "tokens", "template"),
    [
        (SENTENCE_FIRST, "<extra_id_0> ▁It ▁was <extra_id_1> . <extra_id_2>", "*cls**sent_0*_It_was*mask*.*sep+*"),
        (SENTENCE_FIRST, "<extra_id_0> ▁A <extra_id_1> ▁film . </s>", "*cls**sent_0*_A*mask*_film.*sep+*"),
        (SENTENCE_LAST, "<extra_id_0> ▁Q : <extra_id_1> : <extra_id_2>", "*cls*_Q:*mask*:*+sent_0**sep+*"),
        (PAIR, "<extra_id_0> . <extra_id_1> ,▁no, <extra_id_2>", "*cls**sent-_0*.*mask*,_no,*+sentl_1**sep+*"),
        (PAIR, "<extra_id_0> <extra_id_1> <extra_id_2>", "*cls**sent-_0**mask**+sentl_1**sep+*"),
    ],
)
def test_generated_text_becomes_the_template_of_its_form(form, tokens, template):
    assert to_template(tokens.split(" "), form) == template


@pytest.mark.parametrize(
    "tokens",
    [
        "<extra_id_0> ▁It ▁was <extra_id_1> .",  # unfinished
        "<extra_id_0> ▁It ▁was . </s>",  # no mask
        "▁It ▁was <extra_id_1> . <extra_id_2>",  # no first blank
        "<extra_id_0> ▁It </s> ▁was </s>",
        "<extra_id_0> ▁a <extra_id_1> ▁b <extra_id_1> ▁c <extra_id_2>",
        "<extra_id_0> ▁a* <extra_id_1> . <extra_id_2>",
        "<extra_id_0> ▁a_b <extra_id_1> . <extra_id_2>",
        "<extra_id_0> ▁a <extra_id_1> <extra_id_3> <extra_id_2>",
    ],
)
def test_text_that_is_no_template_is_refused(tokens):
    assert to_template(tokens.split(" "), SENTENCE_FIRST) is None


def test_long_inputs_lose_their_beginning_where_the_word_stands_at_the_end(t5):
    _, tokenizer = t5
    from lm_bff.data import Example

    words = " ".join(["great film"] * 400)
    for form in (SENTENCE_FIRST, SENTENCE_LAST):
        (row,) = shown_inputs(TASKS["sst-2"], [Example((words,), "1")], form, tokenizer)
        text = tokenizer.convert_ids_to_tokens(row)
        assert len(row) == 256
        assert "<extra_id_0>" in text
        assert "<extra_id_1>" in text


def test_the_examples_own_label_word_stands_between_the_blanks(t5, sentiment):
    _, tokenizer = t5
    rows = shown_inputs(TASKS["sst-2"], sentiment(4), SENTENCE_FIRST, tokenizer, {"0": "terrible", "1": "great"})
    shown = [tokenizer.decode(row) for row in rows]
    assert all("terrible" in text for text in shown[:2])
    assert all("great" in text for text in shown[2:])


@pytest.mark.parametrize("name", ["sst-2", "rte"])
def test_templates_are_whole_distinct_and_of_both_forms(t5, sentiment, name, tmp_path):
    from lm_bff.candidates import write_candidates
    from lm_bff.data import Example

    model, tokenizer = t5
    task = TASKS[name]
    train = sentiment(8, labels=task.labels)
    if task.num_sentences == 2:
        train = [Example((*one.sentences, "The film is great."), one.label) for one in train]
    found = search(model, tokenizer, task, train, beam=20, max_tokens=14)
    templates = [one.template for one in found]
    assert len(set(templates)) == len(templates) > 1
    assert len(templates) <= 20
    if task.num_sentences == 1:
        ends = [template.endswith("*+sent_0**sep+*") for template in templates]
        assert ends == sorted(ends)
        assert True in ends
        assert False in ends
    path = write_candidates(tmp_path / "templates.txt", found)
    assert [one.template for one in read_candidates(path, "template", task)] == templates


def test_a_search_without_a_finished_hypothesis_says_so(t5, sentiment):
    with pytest.raises(InputError, match="max_tokens=2"):
        search(*t5, TASKS["sst-2"], sentiment(4), beam=4, max_tokens=2)


def test_another_model_than_t5_and_too_small_a_beam_are_refused(t5, sentiment, model_folder):
    with pytest.raises(InputError, match="is a roberta model"):
        load_t5(str(model_folder("roberta")))
    with pytest.raises(InputError, match="beam=1"):
        search(*t5, TASKS["sst-2"], sentiment(4), beam=1)
    with pytest.raises(InputError, match="one or two sentences"):
        forms(3)
