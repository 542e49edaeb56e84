"""Demonstrations and in-context examples: layout, filter arithmetic, draws, and rendering from blocks."""

import numpy as np
import pytest

from lm_bff import demonstrations, in_context
from lm_bff.data import Example, load_splits
from lm_bff.demonstrations import filter_limit, pools, select
from lm_bff.in_context import InContext, draw_context
from lm_bff.label_words import label_words
from lm_bff.prompts import PromptBuilder
from lm_bff.similarity import Embedder, cosine, text_of
from lm_bff.tasks import TASKS
from lm_bff.template import parse
from shared import InputError, hub

BINARY = [0, 1] * 16


def builder_for(tokenizer, name: str = "sst-2", **options) -> PromptBuilder:
    task = TASKS[name]
    words = label_words(tokenizer, task.mapping, task.labels, name).ids
    options = {"max_length": 256, **options}
    return PromptBuilder(tokenizer, parse(task.template), words, task.num_sentences, **options)


# ------------------------------------------------------------------------------------------------------------- layout


def test_layout_of_a_pair_task():
    template = parse(TASKS["rte"].template)
    assert str(demonstrations.layout(template, 2, 2)) == (
        "*cls**sent-_0*?*mask*,*+sentl_1**sep+**sent-_2*?*label_0*,*+sentl_3**sep+**sent-_4*?*label_1*,*+sentl_5**sep+*"
    )


def test_layout_survives_underscored_digits_and_many_classes():
    """Where text replacement goes wrong: `_0` in literal text, and indices of two digits."""
    whole = str(demonstrations.layout(parse("*cls**sent_0*_version_0_1*mask**+sent_1**sep+*"), 6, 2))
    assert whole.count("_version_0_1") == 7
    assert "*+sent_11*" in whole and "*+sent_13**sep+*" in whole and "*sent_12*" in whole


def test_blocks_render_what_the_whole_template_renders(bpe, wordpiece, sentiment):
    support = sentiment(8)
    query = Example(("a dull and stale film .",), "0", "query")
    for tokenizer in (bpe, wordpiece):
        built = builder_for(tokenizer, first_sent_limit=3, other_sent_limit=5, max_length=60)
        (rendered,) = built.demonstrated([query], support, np.array([[1, 6]]))
        whole = demonstrations.layout(built.template, 2, 1)
        expected = whole.render(
            tokenizer,
            [query.sentences[0], support[1].sentences[0], support[6].sentences[0]],
            label_word_ids=built.label_word_ids,
            first_sent_limit=3,
            other_sent_limit=5,
            max_length=60,
        )
        assert rendered == expected
        assert rendered.token_type_ids[-1] == 2


def test_second_sentence_of_the_query_and_all_of_the_demonstrations_are_other(bpe):
    long = "the film is a warm and funny story about two people who meet"
    example = Example((long, long), "entailment")
    built = builder_for(bpe, "rte", first_sent_limit=6, other_sent_limit=3)
    ids, _ = built.query(example)
    demo, _ = built.demonstration(example, 1)
    yes, no = built.label_word_ids
    assert ids.index(bpe.mask_token_id) == 1 + 6 + 1 and len(ids) == 1 + 6 + 3 + 3 + 1
    assert demo.index(no) == 3 + 1 and len(demo) == 3 + 3 + 3 + 1 and yes not in demo


@pytest.mark.parametrize(("style", "expected"), [("n", [0, 1, 2]), ("2", [0, 1]), ("1", [0])])
def test_segment_styles(wordpiece, sentiment, style, expected):
    (rendered,) = builder_for(wordpiece, segments=style).demonstrated(
        [sentiment(2, seed=3)[0]], sentiment(4), np.array([[0, 3]])
    )
    assert sorted(set(rendered.token_type_ids)) == expected


def test_more_than_ten_segments_are_refused(wordpiece, sentiment):
    support = sentiment(16)
    context = draw_context(16, 1, 16, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"has 17 segments, but the model has 10 token types; set segments=2"):
        builder_for(wordpiece, limit_segments=True).in_context(support[:1], support, BINARY[:16], context, InContext())
    built = builder_for(wordpiece, limit_segments=True, segments="2")
    built.in_context(support[:1], support, BINARY[:16], context, InContext())


def test_prompts_longer_than_the_positions_are_refused(bpe, sentiment):
    with pytest.raises(InputError, match=r"line 0: its prompt has \d+ tokens, but the model has 10 positions"):
        builder_for(bpe, max_positions=10).plain(sentiment(2))


def test_a_mask_pushed_out_is_named_by_its_example(bpe, sentiment):
    with pytest.raises(InputError, match=r"line 1: .*removed the mask"):
        builder_for(bpe, max_length=4).plain(sentiment(2)[1:])


def test_standard_inputs_have_one_separator_between_sentences(bpe, wordpiece):
    pair = Example(("a film .", "a story ."), "entailment")
    (roberta,) = builder_for(bpe, "rte").sequence_pairs([pair])
    assert bpe.decode(roberta.input_ids) == "<s>a film .</s>a story .</s>"
    (bert,) = builder_for(wordpiece, "rte").sequence_pairs([pair])
    assert bert.token_type_ids == [0] * 5 + [1] * 4 and bert.mask_position is None


# ------------------------------------------------------------------------------------------------------ filter, draws


def test_filter_keeps_half_of_each_class():
    assert filter_limit(32, 2) == 8 and filter_limit(31, 2) == 7
    assert filter_limit(96, 6) == 8 and filter_limit(95, 6) == 7
    assert filter_limit(48, 3) == 8 and filter_limit(80, 5) == 8


def test_filter_takes_the_most_similar_with_ties_in_order():
    similarities = np.array([[0.1, 0.9, 0.5, 0.9, 0.5, 0.2, 0.5, 0.1]])
    left = pools([0, 0, 0, 0, 1, 1, 1, 1], similarities, 2)
    assert [pool.tolist() for pool in left[0]] == [[1, 3], [4, 6]]


def test_in_training_the_query_is_no_candidate():
    similarities = np.eye(32) * 5
    left = pools(BINARY, similarities, 2, exclude=list(range(32)))
    for query, (zeros, ones) in enumerate(left):
        assert len(zeros) == len(ones) == 7
        assert query not in zeros and query not in ones


@pytest.mark.parametrize("sampler", ["uniform", "permutation"])
@pytest.mark.parametrize("filtered", [False, True])
def test_draws_stay_in_the_pools_and_use_all_of_them(sampler, filtered):
    rng = np.random.RandomState(1) if sampler == "permutation" else np.random.default_rng(1)
    similarities = np.random.default_rng(2).normal(size=(3, 32)) if filtered else None
    chosen = select(BINARY, 3, 400, rng, classes=2, similarities=similarities, exclude=[4, -1, 7], sampler=sampler)
    assert chosen.shape == (400, 3, 2)
    reference = np.zeros((3, 32)) if similarities is None else similarities
    left = pools(BINARY, reference, 2, keep=0.5 if filtered else 2.0, exclude=[4, -1, 7])
    for query in range(3):
        for label in range(2):
            drawn, counts = np.unique(chosen[:, query, label], return_counts=True)
            assert set(drawn) == set(left[query][label].tolist())
            assert counts.max() < 3 * counts.mean(), "drawn evenly"


def test_permutations_replay_the_release():
    """One permutation per draw and query over the candidates by similarity, walked until every class is seen."""
    similarities = np.random.default_rng(3).normal(size=(5, 32))
    chosen = select(
        BINARY, 5, 2, np.random.RandomState(13), classes=2, similarities=similarities, sampler="permutation"
    )
    rng = np.random.RandomState(13)
    for draw in range(2):
        for query in range(5):
            ranked = sorted(range(32), key=lambda i: similarities[query, i], reverse=True)
            counts, left = {0: 0, 1: 0}, []
            for index in ranked:
                if counts[BINARY[index]] < 8:
                    left.append(index)
                    counts[BINARY[index]] += 1
            found: dict[int, int] = {}
            for place in rng.permutation(len(left)):
                found.setdefault(BINARY[left[place]], left[place])
                if len(found) == 2:
                    break
            assert chosen[draw, query].tolist() == [found[0], found[1]]


def test_draws_are_sample_major(bpe, sentiment):
    examples, support = sentiment(4, seed=5), sentiment(8)
    chosen = select([0] * 4 + [1] * 4, 4, 3, np.random.default_rng(0), classes=2)
    rendered = builder_for(bpe).demonstrated(examples, support, chosen)
    assert len(rendered) == 12
    one = builder_for(bpe).demonstrated(examples[1:2], support, chosen[2:3, 1:2])
    assert rendered[2 * 4 + 1] == one[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sample": 0}, "num_sample=0: give 1 or more"),
        ({"similarities": np.zeros((2, 31))}, r"similarities have the shape \(2, 31\), but there are 2 queries and 32"),
        ({"similarities": np.zeros((3, 32))}, "made from other data"),
        ({"classes": 3}, "no training example of class 2 is left"),
        ({"similarities": np.zeros((2, 32)), "keep": 0.01}, "class 0 is left .*filter keeps 0.01"),
        ({"sampler": "best"}, "sampler 'best'"),
    ],
)
def test_bad_draws(options, message):
    arguments = {"num_sample": 1, "classes": 2, **options}
    with pytest.raises(InputError, match=message):
        select(BINARY, 2, arguments.pop("num_sample"), np.random.default_rng(0), **arguments)


# --------------------------------------------------------------------------------------------------------- similarity


def test_embeddings_of_two_encoders_do_not_go_together():
    with pytest.raises(InputError, match=r"shapes \(3, 4\) and \(2, 5\) do not belong together"):
        cosine(np.ones((3, 4)), np.ones((2, 5)))


def test_one_product_equals_pairwise_cosines():
    rng = np.random.default_rng(0)
    queries, support = rng.normal(size=(4, 8)), rng.normal(size=(6, 8))
    found = cosine(queries, support)
    for i in range(4):
        for j in range(6):
            expected = queries[i] @ support[j] / np.linalg.norm(queries[i]) / np.linalg.norm(support[j])
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_minilm_ranks_by_meaning_and_embeds_pairs_as_one_text():
    embed = Embedder(hub.model_path("minilm", "lm-bff"), device="cpu")
    queries = [Example(("The movie was wonderful .",), "1")]
    support = [Example((text,), "1") for text in ("A great film .", "Stocks fell sharply .", "He bought bread .")]
    assert embed.similarities(queries, support).argmax() == 0
    assert text_of(Example(("a", "b"), "1")) == "a b"
    known = len(embed.known)
    embed.similarities(queries, support)
    assert len(embed.known) == known


# --------------------------------------------------------------------------------------------------------- in context


def test_in_context_layout_puts_copies_before_the_query():
    template = parse("*cls**sent_0*_It_was*mask*.*sep+*")
    assert str(in_context.layout(template, 2, 1, InContext())) == (
        "*sent_2*_It_was*labelx_1*.*sep+**sent_1*_It_was*labelx_0*.*sep+**cls**sent_0*_It_was*mask*.*sep+*"
    )
    front = str(in_context.layout(template, 2, 1, InContext(cls_position="front")))
    assert front.startswith("*cls**sent_2*") and front.count("*cls*") == 1
    tail = str(in_context.layout(template, 2, 1, InContext(placement="tail")))
    assert tail.startswith("*cls**sent_0*_It_was*mask*") and tail.endswith("*sent_2*_It_was*labelx_1*.*sep+*")


@pytest.mark.parametrize("options", [InContext(), InContext(placement="tail"), InContext(cls_position="front")])
def test_in_context_blocks_render_what_the_whole_template_renders(bpe, sentiment, options):
    support, query = sentiment(6), sentiment(2, seed=8)[0]
    classes = [0, 0, 0, 1, 1, 1]
    context = np.array([[4, 0, 5]])
    built = builder_for(bpe)
    (rendered,) = built.in_context([query], support, classes, context, options)
    whole = in_context.layout(built.template, 3, 1, options).render(
        bpe,
        [query.sentences[0], *(support[i].sentences[0] for i in context[0])],
        context_word_ids=[built.label_word_ids[classes[i]] for i in context[0]],
        max_length=512,
    )
    assert rendered.input_ids == whole.input_ids and rendered.mask_position == whole.mask_position


@pytest.mark.mirror
def test_in_context_positions_of_the_release(roberta_tokenizer, mirror):
    """SST-2 split 13, first dev example: 512 tokens, `<s>` at 466 and the mask at 509; or `<s>` first, on request."""
    task = TASKS["sst-2"]
    splits = load_splits(task, 16, 13, mirror / "lm-bff/k-shot")
    classes = [task.context_class(example.label) for example in splits.train]
    context = draw_context(len(splits.train), 1, 32, np.random.RandomState(13))
    assert sorted(context[0]) == list(range(32)), "the entire training set"
    built = builder_for(roberta_tokenizer)
    (rendered,) = built.in_context(splits.dev[:1], splits.train, classes, context, InContext())
    assert len(rendered.input_ids) == 512
    assert rendered.input_ids.index(0) == 466 and rendered.mask_position == 509
    (front,) = built.in_context(splits.dev[:1], splits.train, classes, context, InContext(cls_position="front"))
    assert len(front.input_ids) == 512 and front.input_ids[0] == 0 and front.mask_position == 509


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "middle"}, "icl.placement"),
        ({"cls_position": "x"}, "icl.cls_position"),
        ({"examples": 0}, "icl.examples"),
    ],
)
def test_bad_in_context_options(options, message):
    with pytest.raises(InputError, match=message):
        InContext(**options)


def test_the_context_differs_between_queries():
    context = draw_context(32, 4, 32, np.random.default_rng(0))
    assert context.shape == (4, 32) and not np.array_equal(context[0], context[1])
    assert draw_context(6, 4, 32, np.random.default_rng(0)).shape == (4, 6)
