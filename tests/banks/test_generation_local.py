"""Local transformers models, written by the test: a chain of words that only the weights know."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.banks import LimitReachedError, Limits, LocalModel, Recipe, generate_bank
from whylens.banks.generation_limits import Meter
from whylens.banks.generation_prompts import Message, class_messages
from whylens.errors import InputError, ModelError

transformers = pytest.importorskip("transformers")

# Commas stand with their words, so that every entry follows one other.
ANSWER = ["red", "fur,", "long", "tail,", "sharp", "claws,", "snow"]


def tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(r" ", "removed")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="</s>", extra_special_tokens={}
    )
    fast.save_pretrained(folder)
    return fast


def vocabulary():
    return ["<unk>", "</s>", *ANSWER]


def chain_model(folder):
    """A one-layer Llama whose layer is silent: the next token follows from the last one alone, by a wide margin."""
    words = vocabulary()
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), 16))
        head = torch.zeros(len(words), 16)
        # Whatever the prompt ends with (unknown to the vocabulary) starts the answer, and its end is the end.
        follows = {0: 2, 1: 1} | {i: i + 1 for i in range(2, len(words) - 1)} | {len(words) - 1: 1}
        for last, following in follows.items():
            head[following, last] = 10.0
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "chain"
    tokenizer(made)
    chain_model(made)
    return made


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def ask(model, name="goldfish", temperature=0.0, meter=None, tokens=40, seed=0):
    meter = meter or Meter(Limits())
    return model.complete(
        class_messages(name, 5), answer_tokens=tokens, temperature=temperature, seed=seed, meter=meter
    )


def test_the_model_says_what_its_weights_hold(folder):
    meter = Meter(Limits())
    answer = ask(LocalModel(folder), meter=meter)
    assert answer.text.split() == ANSWER
    assert answer.answer_tokens == len(ANSWER) + 1
    assert answer.finish == "stop"
    assert meter.cost.calls == 1
    assert meter.cost.question_tokens == answer.question_tokens > 5
    assert meter.cost.estimated_calls == 0


def test_a_short_answer_is_cut(folder):
    answer = ask(LocalModel(folder), tokens=5)
    assert answer.finish == "length"
    assert answer.answer_tokens == 5


def test_sampling_depends_on_seed_and_question_alone(folder):
    model = LocalModel(folder)
    first = ask(model, temperature=2.0)
    state = torch.get_rng_state()
    ask(model, "another", temperature=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert ask(model, temperature=2.0).text == first.text
    assert ask(LocalModel(folder), temperature=2.0).text == first.text


def test_a_bank_from_a_local_model_and_again_without_it(folder, tmp_path, monkeypatch):
    options = {"cache": tmp_path / "cache", "recipe": Recipe(rounds=1, answer_tokens=40)}
    made = generate_bank(["ant", "bee"], LocalModel(folder), **options)
    assert made.bank.phrases == ("red fur", "long tail", "sharp claws", "snow")
    assert made.configuration["model"]["kind"] == "transformers"
    assert {item.filter for item in made.removed} == {"duplicate"}
    silent = LocalModel(folder)
    monkeypatch.setattr(LocalModel, "_load", lambda self: pytest.fail("loaded"))
    assert generate_bank(["ant", "bee"], silent, offline=True, **options).bank == made.bank


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert LocalModel(copy).identity["sha256"] == LocalModel(folder).identity["sha256"]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert LocalModel(copy).identity["sha256"] != LocalModel(folder).identity["sha256"]


def test_limits_hold_here_too(folder):
    with pytest.raises(LimitReachedError):
        ask(LocalModel(folder), meter=Meter(Limits(tokens=20)))


def test_what_cannot_be_used(folder, tmp_path):
    with pytest.raises(InputError, match="folder or a name"):
        LocalModel("")
    with pytest.raises(InputError, match="reads 4096 together"):
        ask(LocalModel(folder), tokens=5000)
    with pytest.raises(InputError, match="vision=True"):
        LocalModel(folder).complete(
            [Message("user", "x", b"picture")], answer_tokens=16, temperature=0.0, seed=0, meter=Meter(Limits())
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="could not be loaded"):
        ask(LocalModel(tmp_path / "empty"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A tiny Llava: a CLIP tower with random weights in front of the same chain of words."""
    made = tmp_path_factory.mktemp("models") / "seeing"
    words = [*vocabulary(), "<image>"]
    text = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=len(words) - 1,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        layer = model.model.language_model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.language_model.embed_tokens.weight.copy_(torch.eye(len(words), 16))
        head = torch.zeros(len(words), 16)
        last = len(words) - 2
        for before, following in ({0: 2, 1: 1} | {i: i + 1 for i in range(2, last)} | {last: 1}).items():
            head[following, before] = 10.0
        model.lm_head.weight.copy_(head)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 1
    model.save_pretrained(made)
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(r" ", "removed")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": 16, "width": 16}
    reader = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size=size, crop_size=size),
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    reader.save_pretrained(made)
    return made


def test_a_vision_language_model_reads_pictures(seeing, tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(picture)
    made = generate_bank(
        ["goldfish"],
        LocalModel(seeing, vision=True),
        pictures=[picture],
        ask_classes=False,
        cache=tmp_path / "cache",
        recipe=Recipe(rounds=1, answer_tokens=40),
    )
    assert made.bank.phrases == ("red fur", "long tail", "sharp claws", "snow")
    assert made.bank.sources == ("seeing on picture a.png",) * 4
