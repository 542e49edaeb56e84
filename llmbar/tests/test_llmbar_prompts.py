"""Templates, messages, chat strings, and the second stage's explanations."""

import pytest

from llmbar.data import HOUSE_FOLDER
from llmbar.prompts import (
    falcon_chat,
    llama2_chat,
    merge_system,
    palm_text,
    read_template,
    split_messages,
    swap_letters,
)
from llmbar.stages import second_stage_prompts
from shared import InputError

TWO_SHOT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "Output (b)"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": "Output (a)"},
    {"role": "user", "content": "U3"},
]
FILES = sorted(
    path.relative_to(HOUSE_FOLDER / "prompts").as_posix() for path in (HOUSE_FOLDER / "prompts").rglob("*.txt")
)


def test_messages_are_split_at_the_markers_and_stripped():
    text = "<|im_start|>system\n Be fair. \n<|im_end|>\n<|im_start|>user\nline 1\nline 2\n<|im_end|>rest"
    assert split_messages(text) == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "line 1\nline 2"},
    ]


def test_llama2_string_is_exact():
    assert llama2_chat(TWO_SHOT[:2]) == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST]"
    assert llama2_chat(TWO_SHOT) == (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU1 [/INST] Output (b) </s><s>[INST] U2 [/INST]"
        " Output (a) </s><s>[INST] U3 [/INST]"
    )


def test_falcon_string_is_exact():
    assert falcon_chat(TWO_SHOT[:2]) == "System: S\nUser: U1\nFalcon:"
    assert falcon_chat(TWO_SHOT[:4]) == "System: S\nUser: U1\nFalcon: Output (b)\nUser: U2\nFalcon:"


def test_palm_takes_two_messages_and_refuses_few_shot():
    assert palm_text(TWO_SHOT[:2]) == "S\n\nU1"
    with pytest.raises(InputError, match="few-shot strategies need"):
        palm_text(TWO_SHOT)


def test_a_system_message_can_be_merged_into_the_first_turn():
    merged = merge_system(TWO_SHOT)
    assert merged[0] == {"role": "user", "content": "S\n\nU1"}
    assert [message["role"] for message in merged] == ["user", "assistant", "user", "assistant", "user"]


FIELDS = (
    "input",
    "output",
    "output_1",
    "output_2",
    "explanation_1",
    "explanation_2",
    "auxiliary_input_0",
    "auxiliary_input_1",
)
ROLES = {
    "comparison/Vanilla_1shot.txt": ["system", "user", "assistant", "user"],
    "comparison/Vanilla_2shot.txt": ["system", "user", "assistant", "user", "assistant", "user"],
}


def check_template(template, name):
    """Turns, every shown field in the last user turn, and the same content in all chat strings."""
    values = {field: f"<<{field}>>" for field in FIELDS}
    messages = template.messages(**values)
    assert [message["role"] for message in messages] == ROLES.get(name, ["system", "user"])
    shown = {field for field in FIELDS if values[field] in template.fill(**values)}
    assert all(values[field] in messages[-1]["content"] for field in shown)
    for message in messages:
        assert message["content"] == message["content"].strip()
        assert message["content"] in llama2_chat(messages)
        assert message["content"] in falcon_chat(messages)
    assert llama2_chat(messages).count("[/INST]") == (len(messages)) // 2
    assert falcon_chat(messages).endswith("Falcon:")
    demonstrations = [message["content"] for message in messages if message["role"] == "assistant"]
    assert demonstrations == {3: [], 4: ["Output (a)"], 6: ["Output (b)", "Output (a)"]}.get(len(messages), [])
    return shown


@pytest.mark.parametrize("name", FILES)
def test_every_prompt_of_ours_has_its_turns_and_fields(name, house_templates):
    assert check_template(house_templates[name], name)


@pytest.mark.mirror
def test_every_released_prompt_has_its_turns_and_fields_and_ours_has_the_same(released_templates, house_templates):
    assert set(released_templates) == set(house_templates) == set(FILES)
    for name, template in released_templates.items():
        assert check_template(template, name) == check_template(house_templates[name], name), name


def test_braces_in_data_are_data(house_templates):
    messages = house_templates["comparison/Vanilla.txt"].messages(input="{output_1} {0}", output_1="{}", output_2="}{")
    assert "{output_1} {0}" in messages[1]["content"]


GOOD = "<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\n{input} {output_1} {output_2}\n<|im_end|>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("{output_2}", ""), "field {output_2} is missing"),
        (GOOD.replace("{input}", "{input} {question}"), "unknown field {question}"),
        (GOOD.replace("{input}", "{input.upper}"), "is missing"),
        (GOOD.replace("{input}", "{input} {}"), "unknown field {}"),
        (GOOD.replace("{input}", "{input"), "not a template"),
        (GOOD + "\n<|im_start|>assistant\nx\n<|im_end|>", "last message is from 'assistant'"),
        (GOOD + "\n<|im_start|>user\nx\n<|im_end|>", "turns are user, user"),
        (GOOD.replace("system", "user", 1), "first message is from 'user'"),
    ],
)
def test_a_bad_template_is_one_message(tmp_path, text, message):
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "Mine.txt").write_text(text)
    with pytest.raises(InputError) as error:
        read_template(tmp_path, "comparison/Mine.txt")
    assert message in str(error.value)


def test_auxiliary_texts_must_be_shown_and_files_must_exist(tmp_path):
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "Mine.txt").write_text(GOOD)
    with pytest.raises(InputError, match=r"\{auxiliary_input_0\} is missing"):
        read_template(tmp_path, "comparison/Mine.txt", auxiliary=1)
    with pytest.raises(InputError, match="no such file"):
        read_template(tmp_path, "comparison/None.txt")


def test_letters_are_exchanged_at_the_same_time():
    assert swap_letters("Output (a) beats output (b), (a) stays") == "Output (b) beats output (a), (a) stays"


def test_explanations_vote_for_what_is_shown_under_their_letter(house, house_templates):
    one = house["House/Natural"][0]
    template = house_templates["swap_and_synthesize/Swap.txt"]
    first = ("Output (a) wins", "Output (a) wins too")  # given order for output 1, swapped order for output 2
    given, swapped = second_stage_prompts(one, template, first, ("1", "2"))
    assert given.index("Output (a) wins") < given.index("Output (b) wins too")
    assert swapped.index("Output (a) wins too") < swapped.index("Output (b) wins")
    assert given.index(one.output_1) < given.index(one.output_2)
    assert swapped.index(one.output_2) < swapped.index(one.output_1)
