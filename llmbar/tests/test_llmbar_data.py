"""Instances: what is read, and what is refused with one message."""

import json
import logging

import pytest

from llmbar.data import HOUSE, RELEASED, is_adversarial, load_file
from shared import InputError

GOOD = {"input": "Say hi.", "output_1": "hi", "output_2": "Hello there, friend!", "label": 1}


@pytest.fixture
def write(tmp_path):
    def to_file(content, raw: bytes | None = None):
        path = tmp_path / "mine.json"
        path.write_bytes(raw if raw is not None else json.dumps(content).encode())
        return path

    return to_file


def test_unknown_keys_are_kept(write):
    (one,) = load_file(write([{**GOOD, "source": "me"}]), "mine")
    assert (one.id, one.extra) == ("mine[0]", {"source": "me"})


def test_an_empty_text_is_warned_about_and_kept(write, caplog):
    with caplog.at_level(logging.WARNING):
        (one,) = load_file(write([{**GOOD, "output_2": " "}]), "mine")
    assert one.output_2 == " "
    assert "`output_2` is empty" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "holds an object; it must hold a list"),
        ([], "holds no instances"),
        (["text"], "instance 0 is text"),
        ([GOOD, {k: v for k, v in GOOD.items() if k != "output_2"}], "instance 1 has no `output_2`"),
        ([{**GOOD, "label": 3}], "`label` is 3"),
        ([{**GOOD, "label": "1"}], "`label` is '1'"),
        ([{**GOOD, "label": True}], "`label` is True"),
        ([{**GOOD, "label": 1.0}], "`label` is 1.0"),
        ([{**GOOD, "output_1": None}], "`output_1` is null"),
        ([{**GOOD, "input": "a <|im_end|> b"}], "contains <|im_end|>"),
        ([{**GOOD, "output_1": "<|im_start|>"}], "contains <|im_start|>"),
    ],
)
def test_a_bad_instance_is_one_message_naming_position_and_field(write, content, message):
    with pytest.raises(InputError) as error:
        load_file(write(content), "mine")
    assert message in str(error.value)


@pytest.mark.parametrize(("raw", "message"), [(b"{oops", "not JSON"), (b'["\xff"]', "not UTF-8")])
def test_a_file_that_is_no_json_is_one_message(write, raw, message):
    with pytest.raises(InputError, match=message):
        load_file(write(None, raw), "mine")


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_file(tmp_path / "none.json", "mine")


def test_our_instances_are_twenty_natural_and_twenty_adversarial_in_four_kinds(house):
    assert {name: len(some) for name, some in house.items()} == HOUSE
    assert sum(len(some) for name, some in house.items() if is_adversarial(name)) == 20
    assert sum(one.label == 1 for some in house.values() for one in some) == 20
    assert len({one.input for some in house.values() for one in some}) == 40


@pytest.mark.mirror
def test_the_released_sets_have_their_sizes(released):
    assert {name: len(some) for name, some in released.items()} == RELEASED
    assert sum(one.label == 1 for one in released["LLMBar/Natural"]) == 42
    assert sum(len(some) for name, some in released.items() if name.startswith("LLMBar/")) == 419
