"""What LoRA, a prefix and the head train, how many numbers that is, and that the model is otherwise what it was."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    RobertaConfig,
)

from lm_bff.model import PromptModel, detach_decoder
from mezo import MeZO
from mezo.modes import Mode, attach, count_trainable, load_trained, save_trained, trainable
from mezo.prefix import generating
from shared import InputError

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 60}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
ENCODER = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
CONFIGS = {
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "roberta": RobertaConfig(**ENCODER),
    "bert": BertConfig(**ENCODER),
}
CAUSAL = ("opt", "llama", "qwen2", "mistral")


def build(kind: str, attention: str = "sdpa", **changes) -> torch.nn.Module:
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), **changes})
    auto = AutoModelForCausalLM if kind in CAUSAL else AutoModelForMaskedLM
    torch.manual_seed(0)
    # Large weights, so that a mask that is wrong by one place shows in the logits.
    config.initializer_range = config.init_std = 0.2
    return auto.from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def batch():
    """Three rows of 9 tokens, the second padded at the left, the third at the right."""
    torch.manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :3] = 0
    mask[2, -2:] = 0
    return {"input_ids": torch.randint(5, 60, (3, 9)), "attention_mask": mask}


def real(logits: torch.Tensor, batch: dict) -> torch.Tensor:
    return logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_starts_at_the_base_model_and_trains_only_its_matrices(kind, batch):
    model = build(kind)
    before = model(**batch).logits
    attach(model, Mode("lora", rank=3))
    assert torch.equal(model(**batch).logits, before)
    names = [name for name, _ in trainable(model)]
    assert len(names) == 2 * 2 * 2 and all(name.rpartition(".")[2] in ("lora_A", "lora_B") for name in names)
    query = "query" if kind in ("bert", "roberta") else "q_proj"
    assert sum(f".{query}.lora_A" in name for name in names) == 2
    with torch.no_grad():
        dict(model.named_parameters())[names[-1]].fill_(0.5)
    assert not torch.allclose(model(**batch).logits, before)


def test_lora_is_the_low_rank_product_of_the_paper():
    model = build("opt")
    attach(model, Mode("lora", rank=3, alpha=6, seed=5))
    layer = model.model.decoder.layers[0].self_attn.v_proj
    layer.lora_B.data.normal_()
    x = torch.randn(4, 32)
    merged = layer.weight + 6 / 3 * layer.lora_B @ layer.lora_A
    assert torch.allclose(layer(x), x @ merged.T + layer.bias, atol=1e-5)
    assert layer.lora_A.abs().max() <= (1 / 32) ** 0.5 and layer.lora_A.std() > 0.05
    # Registration order is the release's: v before q in OPT.
    assert [n.split(".")[-2] for n, _ in trainable(model)][:4] == ["v_proj", "v_proj", "q_proj", "q_proj"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_prefix_is_what_text_in_a_cache_would_be(kind, attention, batch):
    """With keys and values of real tokens as the prefix, tokens attend to them as to a past without positions."""
    model = build(kind, attention)
    before = model(**batch).logits
    attach(model, Mode("prefix", num_prefix=4, prefix_tokens=(7, 8, 9, 10)))
    found = model(**batch).logits
    assert found.shape == before.shape
    assert not torch.allclose(real(found, batch), real(before, batch), atol=1e-3)
    if kind in CAUSAL:
        expected = through_a_cache(build(kind, attention), batch)
        assert torch.allclose(real(found, batch), real(expected, batch), atol=1e-4)


def through_a_cache(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    """Logits with tokens 7, 8, 9, 10 in transformers' own cache and the positions of the text unchanged."""
    past = model(input_ids=torch.tensor([[7, 8, 9, 10]]), use_cache=True).past_key_values
    past.batch_repeat_interleave(3)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0) if model.config.model_type == "opt" else torch.arange(9).expand(3, 9)
    whole = torch.cat((torch.ones(3, 4, dtype=torch.long), mask), 1)
    return model(batch["input_ids"], attention_mask=whole, position_ids=positions, past_key_values=past).logits


@pytest.mark.parametrize("kind", CAUSAL)
def test_prefixed_models_decode_with_a_cache_as_they_read_at_once(kind):
    model = build(kind)
    attach(model, Mode("prefix", prefix_init="random"))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    whole = model(ids).logits
    first = model(ids[:, :3], use_cache=True)
    second = model(ids[:, 3:5], past_key_values=first.past_key_values, use_cache=True)
    third = model(ids[:, 5:], past_key_values=second.past_key_values)
    parts = torch.cat((first.logits, second.logits, third.logits), 1)
    assert torch.allclose(parts, whole, atol=1e-4)
    # Later tokens stay invisible to earlier ones, with the mask left out too.
    other = ids.clone()
    other[0, -1] = 11
    assert torch.allclose(model(other).logits[:, :-1], whole[:, :-1], atol=1e-5)


def test_positions_jump_in_generation_only_as_in_the_release():
    """Prompt 0..3, then 9, 10 where the release counts the prefix, 4, 5 where positions are consistent."""
    seen = {}
    for positions in ("authors", "consistent"):
        model = build("opt")
        attach(model, Mode("prefix", prefix_init="random", prefix_positions=positions))
        calls = seen[positions] = []
        model.model.decoder.embed_positions.register_forward_pre_hook(
            lambda module, arguments, options, calls=calls: calls.append(options["position_ids"][0].tolist()),
            with_kwargs=True,
        )
        with generating(model):
            model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=3, do_sample=False, eos_token_id=99)
        past = model(torch.tensor([[5, 6, 7, 8]]), use_cache=True).past_key_values
        model(torch.tensor([[9]]), past_key_values=past)
    assert seen["authors"] == [[0, 1, 2, 3], [9], [10], [0, 1, 2, 3], [4]]
    assert seen["consistent"] == [[0, 1, 2, 3], [4], [5], [0, 1, 2, 3], [4]]


def test_random_tokens_of_the_prefix_follow_its_seed():
    prefixes = []
    for seed in (0, 0, 1):
        model = build("llama")
        attach(model, Mode("prefix", seed=seed))
        prefixes.append(model.model.layers[1].self_attn.prefix.value.clone())
    assert torch.equal(prefixes[0], prefixes[1]) and not torch.equal(prefixes[0], prefixes[2])
    assert prefixes[0].shape == (5, 16)


COUNTS = [
    ("opt", {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}, 6_553_600, 2_048_000),
    ("opt", {"hidden_size": 9216, "num_hidden_layers": 64, "num_attention_heads": 72}, 18_874_368, 5_898_240),
    ("roberta", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}, 786_432, 245_760),
]


@pytest.mark.parametrize(("kind", "sizes", "lora", "prefix"), COUNTS, ids=["opt-13b", "opt-66b", "roberta-large"])
def test_trained_weights_are_as_many_as_in_the_paper(kind, sizes, lora, prefix):
    for mode, count in (("lora", lora), ("prefix", prefix)):
        with torch.device("meta"):
            model = build(kind, **sizes, **({"word_embed_proj_dim": sizes["hidden_size"]} if kind == "opt" else {}))
            attach(model, Mode(mode))
        assert count_trainable(model) == count


def test_lora_of_the_authors_leaves_a_masked_models_head_trainable():
    model = build("roberta")
    attach(model, Mode("lora", lora_trainable="authors"))
    heads = [name for name, _ in trainable(model) if "lora" not in name]
    assert heads and all(name.startswith("lm_head.") for name in heads)
    causal = build("opt")
    attach(causal, Mode("lora", lora_trainable="authors"))
    assert all("lora" in name for name, _ in trainable(causal))


def test_the_head_alone_is_trained_once_it_is_its_own():
    model = build("opt")
    with pytest.raises(InputError, match=r"tied to the input embeddings; set mode\.untie_embeddings=true"):
        attach(model, Mode("head"))
    attach(model, Mode("head", untie_embeddings=True))
    assert [name for name, _ in trainable(model)] == ["lm_head.weight"]
    before = model.get_input_embeddings().weight.clone()
    model.lm_head.weight.data.add_(1)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("mode", ["full", "lora", "prefix", "head"])
@pytest.mark.parametrize("kind", ["opt", "roberta"])
def test_what_was_trained_is_saved_and_loaded_alone(kind, mode, batch, tmp_path):
    model = build(kind)
    attach(model, Mode(mode, untie_embeddings=mode == "head"))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, model=model)
    optimizer.step(lambda: model(**batch).logits.logsumexp(-1).mean())
    save_trained(model, tmp_path)
    fresh = build(kind)
    load_trained(fresh, tmp_path)
    assert torch.equal(fresh(**batch).logits, model(**batch).logits)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 4 * count_trainable(model) + 6000
    if mode in ("lora", "prefix"):
        other = build(kind, num_hidden_layers=3)
        with pytest.raises(InputError, match=r"is of another model: .* is missing there"):
            load_trained(other, tmp_path)


@pytest.mark.parametrize("restore", ["exact", "inplace"])
@pytest.mark.parametrize("mode", ["lora", "prefix", "head"])
def test_mezo_moves_the_trained_weights_and_no_other(mode, restore, batch):
    model = build("llama")
    attach(model, Mode(mode, untie_embeddings=mode == "head"))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = MeZO(model.named_parameters(), lr=1e-2, model=model if restore == "exact" else None)
    optimizer.step(lambda: model(**batch).logits.logsumexp(-1).mean())
    assert optimizer.last.projected_gradient != 0
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, _ in trainable(model)}


def test_bad_modes_and_unsupported_architectures_are_refused():
    gpt = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=30))
    for kind in ("lora", "prefix"):
        with pytest.raises(InputError, match=f"mode={kind} is not defined for a model of type gpt2: use one of opt"):
            attach(gpt, Mode(kind))
    with pytest.raises(InputError, match="mode=lore: give one of full, lora, prefix, head"):
        Mode("lore")
    for changes, message in (
        ({"prefix_tokens": (1, 2, 3, 4, 60)}, "id 60 is not in the model's vocabulary of 60"),
        ({"prefix_tokens": (1, 2)}, "has 2 ids for num_prefix=5"),
        ({"num_prefix": 0}, "mode.num_prefix=0: give a whole number, 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            attach(build("opt"), Mode("prefix", **changes))
    with pytest.raises(InputError, match=r"mode\.rank=0"):
        attach(build("opt"), Mode("lora", rank=0))
    twice = build("opt")
    attach(twice, Mode("lora"))
    with pytest.raises(InputError, match="the model has LoRA already"):
        attach(twice, Mode("lora"))


@pytest.mark.parametrize("mode", ["lora", "prefix", "head"])
def test_a_prompt_model_of_lm_bff_trains_like_the_masked_model_in_it(mode, batch):
    """Its last layer computes one query per row only; what it gives are the masked model's logits at that place."""
    whole = build("roberta")
    inner = build("roberta")
    weight, bias = detach_decoder(inner)
    prompts = PromptModel(inner, weight, bias, [11, 12]).eval()
    place = torch.tensor([2, 5, 0])
    for model in (whole, prompts):
        attach(model, Mode(mode, untie_embeddings=mode == "head"))
    if mode == "lora":
        for model in (whole, inner):
            for name, tensor in model.named_parameters():
                if name.endswith("lora_B"):
                    tensor.data.fill_(0.1)
    if mode == "head":
        assert [name for name, _ in trainable(prompts)] == ["decoder_weight", "decoder_bias"]
    expected = whole(**batch).logits[torch.arange(3), place][:, [11, 12]]
    assert torch.allclose(prompts(**batch, mask_position=place), expected, atol=1e-4)
