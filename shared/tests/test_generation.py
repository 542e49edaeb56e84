"""What holds for every back end: requests, journals, duplicates, lengths, cost, recorded answers."""

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shared import InputError
from shared.generation import Completion, FailedItems, Generator, Price, Request, dry_run, make_generator
from shared.generation.journal import Journal
from shared.generation.prompts import PromptEncoder, load_tokenizer
from shared.generation.tiny_model import write_tiny_llama

TEXTS = ["the quick brown fox jumps over the lazy dog", "Output (a) is better. Output (b) is better.", "a b c d e f"]


def chat(id: str, content: str = "Which is better?", **decoding) -> Request:
    return Request(id=id, messages=[{"role": "user", "content": content}], **decoding)


class Reversing(Generator):
    """Answers a chat with its last message reversed, in reverse order; `asked` lists what reached it."""

    backend, model = "reversing", "mirror"

    def __init__(self, broken: Sequence[str] = (), dies_after: int | None = None, encoder=None, limit=None) -> None:
        self.asked: list[str] = []
        self.broken, self.dies_after = set(broken), dies_after
        self.encoder, self.max_model_len = encoder, limit

    def binding(self) -> dict:
        return {"backend": self.backend, "model": self.model}

    def _answer(self, items) -> Iterator[Completion]:
        for item in reversed(items):
            request = item if isinstance(item, Request) else item.request
            if self.dies_after is not None and len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(request.id)
            if request.id in self.broken:
                yield Completion.failure(request, "out of order")
            else:
                text = request.messages[-1]["content"] if request.messages else request.prompt
                yield Completion(request.id, text[::-1], "stop", 1, 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), TEXTS * 10, vocabulary=300, max_position_embeddings=256)


def test_answers_come_in_the_order_of_the_requests():
    requests = [chat(f"q{i}", f"text {i}") for i in range(7)]
    assert [c.text for c in Reversing().generate(requests)] == [f"text {i}"[::-1] for i in range(7)]


def test_equal_greedy_requests_are_asked_once_and_answered_each():
    generator = Reversing()
    answers = generator.generate(
        [chat("a", "same"), chat("b", "same"), chat("c", "other"), chat("d", "same", stop=["x"])]
    )
    assert len(generator.asked) == 3
    assert [(c.id, c.text) for c in answers] == [("a", "emas"), ("b", "emas"), ("c", "rehto"), ("d", "emas")]


def test_samples_of_one_prompt_are_asked_each_with_their_own_seed():
    requests = [chat(f"s{i}", "same", temperature=0.7) for i in range(3)]
    generator = Reversing()
    generator.generate(requests)
    assert len(generator.asked) == 3
    assert len({request.sampling_seed for request in requests}) == 3
    assert requests[0].sampling_seed == chat("s0", "same", temperature=0.7).sampling_seed
    assert chat("s0", "same", temperature=0.7, seed=5).sampling_seed == 5


def test_the_key_covers_all_that_decides_the_answer():
    base = chat("a", "x", max_tokens=5)
    same = [replace(base, id="b"), replace(base, temperature=0), replace(base, logit_bias={})]
    assert {request.key for request in same} == {base.key}
    different = [
        replace(base, max_tokens=6),
        replace(base, stop=["x"]),
        replace(base, logit_bias={3: 1.0}),
        replace(base, candidates=["x"]),
        replace(base, temperature=0.5),
        replace(base, messages=[{"role": "system", "content": "x"}]),
        Request(id="a", prompt="x", max_tokens=5),
        Request(id="a", prompt="x", max_tokens=5, add_special_tokens=False),
    ]
    assert len({request.key for request in [base, *different]}) == 9


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": ""}, "id"),
        ({"id": "a"}, "either messages or prompt"),
        ({"id": "a", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "either messages or prompt"),
        ({"id": "a", "messages": []}, "messages is empty"),
        ({"id": "a", "messages": [{"role": "judge", "content": "x"}]}, "judge"),
        ({"id": "a", "messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"id": "a", "prompt": "x", "max_tokens": -1}, "max_tokens=-1"),
        ({"id": "a", "prompt": "x", "max_tokens": 0}, "max_tokens=0"),
        ({"id": "a", "prompt": "x", "temperature": math.nan}, "temperature=nan"),
        ({"id": "a", "prompt": "x", "top_p": 0}, "top_p=0"),
        ({"id": "a", "prompt": "x", "stop": "abc"}, "stop='abc'"),
        ({"id": "a", "prompt": "x", "logit_bias": {"Both": -100}}, "logit_bias"),
        ({"id": "a", "prompt": "x", "logit_bias": {3: 1000}}, "logit_bias"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(fields, said):
    with pytest.raises(InputError, match=r"^request ") as error:
        Request(**fields)
    assert said in str(error.value)


def test_two_requests_with_one_id_are_refused():
    with pytest.raises(InputError, match="'a'"):
        Reversing().generate([chat("a", "x"), chat("a", "y")])


def test_a_restarted_run_asks_only_for_what_is_missing_and_ends_as_an_uninterrupted_one(tmp_path):
    requests = [chat(f"q{i}", f"text {i}") for i in range(10)]
    journal = tmp_path / "run.jsonl"
    first = Reversing(dies_after=4)
    with pytest.raises(KeyboardInterrupt):
        first.generate(requests, journal)
    second = Reversing()
    answers = second.generate(requests, journal)
    assert sorted(first.asked + second.asked) == sorted(request.id for request in requests)
    assert answers == Reversing().generate(requests)
    third = Reversing()
    assert third.generate(requests, journal) == answers
    assert third.asked == []


def test_a_question_of_an_earlier_stage_is_answered_from_the_journal(tmp_path):
    generator, journal = Reversing(), tmp_path / "run.jsonl"
    generator.generate([chat("vanilla", "x"), chat("metrics/1", "aux")], journal)
    answers = generator.generate([chat("metrics_reference/1", "aux"), chat("new", "y")], journal)
    assert generator.asked == ["metrics/1", "vanilla", "new"]
    assert answers[0] == Completion("metrics_reference/1", "xua", "stop", 1, 1)


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path, cut):
    requests = [chat(f"q{i}", f"text {i}") for i in range(3)]
    journal = tmp_path / "run.jsonl"
    whole = Reversing().generate(requests, journal)
    intact = journal.read_bytes()
    journal.write_bytes(intact[:-cut])
    generator = Reversing()
    assert generator.generate(requests, journal) == whole
    assert generator.asked == ["q0"]
    assert journal.read_bytes() == intact


def test_a_torn_header_is_written_anew(tmp_path):
    journal = tmp_path / "run.jsonl"
    journal.write_bytes(b'{"journal": "gener')
    assert Reversing().generate([chat("a", "x")], journal)[0].text == "x"
    assert json.loads(journal.read_text().splitlines()[0])["binding"]["model"] == "mirror"


def test_a_journal_of_another_model_is_refused_and_left_alone(tmp_path):
    journal = tmp_path / "run.jsonl"
    Reversing().generate([chat("a", "x")], journal)
    before = journal.read_bytes()
    other = Reversing()
    other.model = "window"
    with pytest.raises(InputError, match="'mirror', is 'window'"):
        other.generate([chat("a", "x")], journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize("content", [b'{"text": "hello"}\n', b'{"text": "no line end"}', b"just text"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.jsonl"):
        Reversing().generate([chat("a", "x")], path)
    assert path.read_bytes() == content


def test_a_journal_corrupt_in_the_middle_is_refused_with_its_line(tmp_path):
    journal = tmp_path / "run.jsonl"
    Reversing().generate([chat("a", "x"), chat("b", "y")], journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"###\n" + lines[2])
    with pytest.raises(InputError, match="line 2"):
        Reversing().generate([chat("a", "x")], journal)


def test_one_journal_serves_one_run_at_a_time(tmp_path):
    journal = tmp_path / "run.jsonl"
    code = (
        "import sys; from pathlib import Path; from shared.generation.journal import Journal\n"
        f"with Journal(Path({str(journal)!r}), {{'backend': 'reversing', 'model': 'mirror'}}):\n"
        "    print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="in use by another run"):
            Reversing().generate([chat("a", "x")], journal)
        holder.communicate("\n", timeout=30)
    assert Reversing().generate([chat("a", "x")], journal)[0].text == "x"


def test_failed_items_are_reported_at_the_end_and_asked_again(tmp_path):
    requests = [chat(f"q{i}", f"text {i}") for i in range(4)]
    journal = tmp_path / "run.jsonl"
    first = Reversing(broken=["q2"])
    with pytest.raises(FailedItems, match=r"1 of 4 items (?s:.*) q2: out of order") as error:
        first.generate(requests, journal)
    assert isinstance(error.value, InputError)
    assert len(first.asked) == 4
    assert [completion.failed for completion in error.value.completions] == [False, False, True, False]
    again = Reversing()
    assert not any(completion.failed for completion in again.generate(requests, journal))
    assert again.asked == ["q2"]
    kept = Reversing(broken=["q2"]).generate(requests, keep_failures=True)
    assert kept[2].error == "out of order"


def test_a_prompt_longer_than_the_context_is_named_before_anything_is_asked(tiny, tmp_path):
    encoder = PromptEncoder(load_tokenizer(str(tiny)))
    generator = Reversing(encoder=encoder, limit=100)
    requests = [chat("short", "a", max_tokens=20), chat("long", "lazy dog " * 60, max_tokens=20)]
    with pytest.raises(InputError, match=r"item 'long': \d+ prompt tokens \+ 20 to come exceed the 100 positions"):
        generator.generate(requests, tmp_path / "run.jsonl")
    with pytest.raises(InputError, match="'long'"):
        generator.dry_run(requests)
    assert generator.asked == []
    [item] = encoder.encode([requests[0]])
    assert Reversing(encoder=encoder, limit=len(item.input_ids) + 20).generate(requests[:1])
    with pytest.raises(InputError, match="'short'"):
        Reversing(encoder=encoder, limit=len(item.input_ids) + 19).generate(requests[:1])


def test_a_bias_on_a_token_of_another_tokenizer_is_refused(tiny):
    generator = Reversing(encoder=PromptEncoder(load_tokenizer(str(tiny))))
    with pytest.raises(InputError, match="token 99999"):
        generator.generate([chat("a", "x", logit_bias={99999: 7})])


def test_a_chat_needs_a_template_and_may_bring_its_own(tiny, tmp_path):
    tokenizer = load_tokenizer(str(tiny))
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        list(PromptEncoder(tokenizer).encode([chat("a")]))
    template = tmp_path / "template.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<s>Q")
    encoder = PromptEncoder(tokenizer, template)
    assert encoder.text(chat("a")) == "<s>Q"
    with pytest.raises(InputError, match=r"item 's': the chat template refuses .*no system role"):
        encoder.text(Request(id="s", messages=[{"role": "system", "content": "x"}]))
    with pytest.raises(InputError, match="is not a file"):
        PromptEncoder(tokenizer, tmp_path / "absent.jinja")


def test_plain_prompts_get_the_special_tokens_and_chats_only_their_template(tiny):
    encoder = PromptEncoder(load_tokenizer(str(tiny)))
    bos = encoder.tokenizer.bos_token_id
    plain, bare, turn = encoder.encode(
        [Request(id="p", prompt="a b"), Request(id="b", prompt="a b", add_special_tokens=False), chat("c", "a b")]
    )
    assert plain.input_ids.tolist() == [bos, *bare.input_ids.tolist()]
    assert turn.input_ids.tolist().count(bos) == 1


def test_the_dry_run_counts_different_prompts_tokens_and_money(tiny, tmp_path):
    tokenizer = load_tokenizer(str(tiny))
    requests = [
        chat("a", "lazy dog", max_tokens=50),
        chat("b", "lazy dog", max_tokens=50),
        chat("c", "fox", max_tokens=10),
    ]
    lengths = [len(item.input_ids) for item in PromptEncoder(tokenizer).encode(requests)]
    cost = dry_run(requests, tokenizer, Price(prompt=2.5, completion=10.0))
    assert (cost.prompts, cost.unique, cost.to_ask) == (3, 2, 2)
    assert cost.prompt_tokens == lengths[0] + lengths[2]
    assert cost.max_completion_tokens == 60
    assert cost.least == pytest.approx((lengths[0] + lengths[2]) * 2.5e-6)
    assert cost.most == pytest.approx(cost.least + 60 * 10e-6)
    generator, journal = Reversing(encoder=PromptEncoder(tokenizer)), tmp_path / "run.jsonl"
    generator.generate(requests[:1], journal)
    left = generator.dry_run(requests, journal)
    assert (left.answered, left.to_ask, left.prompt_tokens) == (1, 1, lengths[2])
    assert left.least is None
    with pytest.raises(InputError, match="set tokenizer="):
        Reversing().dry_run(requests)
    with pytest.raises(InputError, match=r"price\.prompt=-1"):
        Price(prompt=-1, completion=0)


def test_make_generator_refuses_what_it_does_not_know(tmp_path):
    for options, said in (
        ({"backend": "vlm"}, "backend='vlm'"),
        ({"backend": "transformers", "model": "x", "batch_token": 3}, "did you mean batch_tokens"),
        ({"backend": "openai"}, "model is missing"),
        ({"backend": "recorded", "path": str(tmp_path / "absent.jsonl")}, "is not a file"),
        ({"backend": "transformers", "model": str(tmp_path)}, "cannot be loaded"),
    ):
        with pytest.raises(InputError) as error:
            make_generator(options)
        assert said in str(error.value)


def test_a_machine_without_vllm_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install vllm"):
        make_generator({"backend": "vllm", "model": "any"})


def test_a_journal_is_a_recording(tmp_path):
    requests = [chat(f"q{i}", f"text {i}") for i in range(4)]
    journal = tmp_path / "run.jsonl"
    answers = Reversing().generate(requests, journal)
    packed = tmp_path / "run.jsonl.gz"
    packed.write_bytes(gzip.compress(journal.read_bytes()))
    for path in (journal, packed):
        replayed = make_generator({"backend": "recorded", "path": str(path)})
        assert replayed.generate(requests) == answers
        assert replayed.generate([chat("renamed", "text 2")]) == [Completion("renamed", "2 txet", "stop", 1, 1)]


def test_a_recording_by_id_alone_is_enough_and_a_missing_answer_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "text": "A"}\n{"id": "z", "text": "Z"}\n')
    replayed = make_generator({"backend": "recorded", "path": str(path)})
    assert replayed.generate([chat("a")]) == [Completion("a", "A", "stop")]
    with pytest.raises(InputError, match=r"item 'b' \(and 1 more\) has no recorded answer"):
        replayed.generate([chat("a"), chat("b", "x"), chat("c", "y")])


def test_an_answer_to_another_prompt_is_not_taken_for_this_one(tmp_path):
    journal = tmp_path / "run.jsonl"
    Reversing().generate([chat("a", "old prompt")], journal)
    replayed = make_generator({"backend": "recorded", "path": str(journal)})
    with pytest.raises(InputError, match="'a' was recorded for another prompt"):
        replayed.generate([chat("a", "new prompt")])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"id": "a", "text": "A"}\nnot json\n', "line 2"),
        (b'{"id": "a", "text": "\xff"}\n', "line 1"),
        (b'{"id": "a"}\n', "has no text"),
        (b'{"id": "a", "text": "1"}\n{"id": "a", "text": "2"}\n', "a second answer"),
        (b"[]\n", "not a JSON object"),
    ],
)
def test_a_broken_recording_is_refused_with_its_line(tmp_path, content, said):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        make_generator({"backend": "recorded", "path": str(path)}).generate([chat("a")])


def test_a_cut_gzip_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"id": "%d", "text": "A"}\n' % i for i in range(1000)))[:-20])
    with pytest.raises(InputError, match="broken gzip"):
        make_generator({"backend": "recorded", "path": str(path)}).generate([chat("a")])


def test_the_children_of_a_killed_run_are_ended_and_those_before_it_spared():
    code = (
        "import subprocess, sys, time; from shared.generation.orphans import OrphanWatch\n"
        "sleep = lambda: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "before = sleep(); watch = OrphanWatch(); engine = sleep(); watch.settle()\n"
        "print(before.pid, engine.pid, watch._process.pid, flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        before, engine, watcher = (psutil.Process(int(pid)) for pid in run.stdout.readline().split())
        run.kill()
    try:
        _, alive = psutil.wait_procs([engine, watcher], timeout=60)
        assert alive == []
        assert before.is_running()
    finally:
        before.kill()


def test_two_checkpoints_of_one_shape_have_different_fingerprints(tmp_path):
    from shared.generation.fingerprint import model_fingerprint

    for seed, folder in enumerate(("one/model", "two/model", "moved/model")):
        write_tiny_llama(tmp_path / folder, TEXTS, vocabulary=300, seed=min(seed, 1))
    one, two, moved = (model_fingerprint(str(tmp_path / name / "model")) for name in ("one", "two", "moved"))
    assert one != two == moved
    assert Journal(tmp_path / "j", {"model": one}).path.exists()
