"""What counts as something of a held-out sentence, and what does not."""

import pytest

from lm_bff.held_out import HeldOut, letters, without

LAUGH = "It's so laddish and juvenile, only teenage boys could possibly find it funny ."


def test_letters_are_equal_for_brackets_and_accents():
    assert letters("-lrb- Garbus -rrb- clichés") == letters("( garbus ) cliches")


@pytest.mark.parametrize(
    "text",
    [
        "it 's so laddish and juvenile , only teenage boys could possibly find it funny .",
        "it is so laddish and juvenile , only teenage boys could possibly find it funny , really .",
        "only teenage boys could possibly find it funny",
        "a film so laddish and juvenile , only teenage boys could ever like it .",
        "i agree : it's so laddish and juvenile , only teenage boys could possibly find it funny . so true , alas .",
        "laddish and juvenile",
    ],
)
def test_a_held_out_sentence_is_recognised_whole_changed_cut_and_within_another(text):
    assert text in HeldOut(["Simplistic .", LAUGH])


@pytest.mark.parametrize(
    "text", ["juvenile", "find it", "a funny film about teenage boys .", "teenage boys find juvenile films very funny"]
)
def test_its_words_alone_are_not(text):
    assert text not in HeldOut([LAUGH])


def test_a_question_that_lacks_a_word_is_part_of_the_longer_one():
    assert "Where is the Orinoco ?" in HeldOut(["Where is the Orinoco River ?"])


def test_a_held_out_sentence_of_one_word_holds_back_itself_only():
    held_out = HeldOut(["Dreadful .", "works great !"])
    assert "dreadful" in held_out and "Works great" in held_out
    assert "a dreadful film" not in held_out and "the second pan works great as well" not in held_out


def test_texts_are_kept_once_in_their_order_and_as_many_as_asked_for():
    texts = ["an awful bore", "...", "a quiet gem", "A quiet gem !", "laddish and juvenile", "warm and wise"]
    assert without(texts, HeldOut([LAUGH])) == [0, 2, 5]
    assert without(texts, HeldOut([LAUGH]), most=2) == [0, 2]


def test_without_held_out_sentences_everything_stays():
    assert without(["a b c", "d"], HeldOut([])) == [0, 1]
