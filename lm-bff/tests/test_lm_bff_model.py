"""The prompt model: what it computes, where its decoder comes from, and what it refuses."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, RobertaForMaskedLM

from lm_bff.label_words import label_words
from lm_bff.model import SEGMENTS, Pretrained, read_config
from shared import InputError, hub

ARCHITECTURES = ["roberta", "roberta-prelayernorm", "bert", "deberta", "modernbert"]


def batch_of(tokenizer, seed: int = 0, rows: int = 3, length: int = 11):
    """Random ids with one mask each and padding at the end of the later rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, len(tokenizer), (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    position = torch.tensor([2 + row for row in range(rows)])
    for row in range(rows):
        ids[row, position[row]] = tokenizer.mask_token_id
        ids[row, length - row :] = tokenizer.pad_token_id
        attention[row, length - row :] = 0
    return {"input_ids": ids, "attention_mask": attention, "mask_position": position}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_label_words_columns_of_the_tied_model(pretrained, model_folder, architecture):
    loaded = pretrained(architecture)
    words = label_words(loaded.tokenizer, {"0": "terrible", "1": "great"}, ["0", "1"])
    batch = batch_of(loaded.tokenizer)
    folder = model_folder(architecture)
    tied = AutoModelForMaskedLM.from_pretrained(folder, config=read_config(folder)).eval()
    with torch.no_grad():
        whole = tied(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = whole[torch.arange(3), batch["mask_position"]]
        for full in (False, True):
            model = loaded.prompt_model(words.ids, full_decoder=full).eval()
            torch.testing.assert_close(model(**batch), expected[:, list(words.ids)], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.vocabulary_logits(**batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_narrowed_last_layer_gives_the_gradients_of_the_whole_one(pretrained, model_folder, architecture):
    """One query, one row of the feed-forward network: the loss and every gradient are those of the tied model."""
    loaded, folder = pretrained(architecture), model_folder(architecture)
    batch, gold = batch_of(loaded.tokenizer), torch.tensor([0, 1, 1])
    tied = AutoModelForMaskedLM.from_pretrained(folder, config=read_config(folder)).eval()
    logits = tied(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    theirs = torch.nn.functional.cross_entropy(logits[torch.arange(3), batch["mask_position"]][:, [20, 30]], gold)
    theirs.backward()
    model = loaded.prompt_model([20, 30]).eval()
    ours = torch.nn.functional.cross_entropy(model(**batch), gold)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    expected = dict(tied.named_parameters())
    compared = 0
    for name, parameter in model.backbone.named_parameters():
        if name in expected and "word_embeddings" not in name and "tok_embeddings" not in name:
            assert parameter.grad is not None, name
            if "token_type" not in name:
                torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5, msg=name)
                compared += 1
    assert compared > 10


@pytest.mark.parametrize("architecture", ["roberta", "roberta-prelayernorm", "bert", "modernbert"])
def test_the_last_attention_asks_for_one_row(pretrained, monkeypatch, architecture):
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *rest, **options: seen.append(query.shape[2]) or attend(query, *rest, **options),
    )
    loaded = pretrained(architecture)
    loaded.prompt_model([5, 6])(**batch_of(loaded.tokenizer))
    assert seen == [11, 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_equals_the_embeddings_although_the_checkpoint_does_not_store_it(
    pretrained, model_folder, architecture
):
    stored = load_file(model_folder(architecture) / "model.safetensors")
    assert not any("decoder.weight" in name for name in stored)
    loaded = pretrained(architecture)
    model = loaded.prompt_model([3, 7], full_decoder=True)
    assert torch.equal(model.decoder_weight, model.backbone.get_input_embeddings().weight)
    assert torch.equal(loaded.prompt_model([3, 7]).decoder_weight, loaded.decoder_weight[[3, 7]])


def test_an_untied_class_would_start_from_a_random_decoder(model_folder):
    """The trap that the loading order avoids, shown on the same folder."""
    folder = model_folder("roberta")
    config = RobertaForMaskedLM.config_class.from_pretrained(folder)
    config.tie_word_embeddings = False
    model = RobertaForMaskedLM.from_pretrained(folder, config=config)
    assert not torch.allclose(model.lm_head.decoder.weight, model.get_input_embeddings().weight)


def test_a_checkpoint_whose_decoder_would_be_random_is_refused(model_folder, tmp_path, bpe):
    model = RobertaForMaskedLM.from_pretrained(model_folder("roberta"))
    model.config.tie_word_embeddings = False
    state = {name: t for name, t in model.state_dict().items() if "decoder" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    bpe.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"would be random.*decoder included"):
        Pretrained.load(tmp_path)


def test_a_sentence_encoder_has_no_head_for_prompts():
    with pytest.raises(InputError, match=r"lacks \d+ weights .*masked language model head"):
        Pretrained.load(hub.model_path("minilm", "simcse"))


def test_a_causal_model_is_refused(tmp_path, bpe):
    GPT2LMHeadModel(GPT2Config(vocab_size=len(bpe), n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gpt2 model has no masked language model head"):
        Pretrained.load(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Pretrained.load(tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoder_and_embeddings_are_trained_apart(pretrained, architecture):
    model = pretrained(architecture).prompt_model([20, 30]).train()
    before = model.decoder_weight.detach().clone(), model.backbone.get_input_embeddings().weight.detach().clone()
    loss = torch.nn.functional.cross_entropy(
        model(**batch_of(pretrained(architecture).tokenizer)), torch.tensor([0, 1, 1])
    )
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(model.decoder_weight, before[0])
    assert not torch.equal(model.backbone.get_input_embeddings().weight[[20, 30]], model.decoder_weight)
    assert torch.equal(pretrained(architecture).decoder_weight[[20, 30]], before[0]), "the pre-trained copy has changed"


def test_rows_and_full_decoder_train_alike(pretrained):
    loaded = pretrained("roberta")
    batch, gold = batch_of(loaded.tokenizer), torch.tensor([0, 1, 1])
    found = []
    for full in (False, True):
        model = loaded.prompt_model([20, 30], full_decoder=full).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(**batch), gold).backward()
            optimizer.step()
        found.append(model(**batch))
    torch.testing.assert_close(found[0], found[1])


def test_bert_gets_ten_segments_of_which_two_are_its_own(pretrained):
    loaded = pretrained("bert")
    own = loaded._masked_lm.get_submodule("bert.embeddings.token_type_embeddings").weight
    table = loaded.prompt_model([5, 6], seed=1).backbone.bert.embeddings.token_type_embeddings.weight
    assert table.shape[0] == SEGMENTS
    assert torch.equal(table[:2], own)
    assert 0.8 < table[2:].std() < 1.2, "new rows are from normal(0, 1)"
    again = loaded.prompt_model([5, 6], seed=1).backbone.bert.embeddings.token_type_embeddings.weight
    assert torch.equal(table, again)
    drawn = loaded.prompt_model([5, 6], seed=1, random_segments=True).backbone.bert.embeddings.token_type_embeddings
    assert not torch.equal(drawn.weight[:2], own)
    assert not pretrained("deberta").uses_segments and not pretrained("roberta").uses_segments


def test_frozen_layers_and_embeddings_get_no_gradient(pretrained):
    loaded = pretrained("roberta")
    model = loaded.prompt_model([5, 6], freeze_layers=1)
    model(**batch_of(loaded.tokenizer)).sum().backward()
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert any("embeddings" in name for name in frozen) and any("layer.0." in name for name in frozen)
    assert not any("layer.1." in name or "lm_head" in name for name in frozen)
    with pytest.raises(InputError, match="freeze_layers=3: the model has 2 layers"):
        loaded.prompt_model([5, 6], freeze_layers=3)


def test_fine_tuning_heads_differ_by_seed_and_share_the_encoder(pretrained):
    loaded = pretrained("bert")
    one, again, other = (loaded.finetune_model(2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.backbone.classifier.weight, again.backbone.classifier.weight)
    assert not torch.equal(one.backbone.classifier.weight, other.backbone.classifier.weight)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one.backbone.get_parameter(query), loaded._masked_lm.get_parameter(query))
    assert loaded.finetune_model(1, seed=0).backbone.config.num_labels == 1


def test_a_copied_model_looks_at_its_own_masks(pretrained):
    loaded = pretrained("roberta")
    model = loaded.prompt_model([5, 6]).eval()
    twin = copy.deepcopy(model)
    first, second = batch_of(loaded.tokenizer, 1), batch_of(loaded.tokenizer, 2, rows=2)
    expected = model(**first)
    twin(**second)
    torch.testing.assert_close(twin(**first), expected)


def test_positions_of_roberta_begin_after_the_padding(pretrained):
    assert pretrained("roberta").max_positions == 512
    assert pretrained("bert").max_positions == 512
