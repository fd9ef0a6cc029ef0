import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.encoders import load_encoder
from whylens.errors import InputError, MissingExtraError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["red", "fur", "long", "tail", "a", "photo", "of", "probe"]
PHRASES = ["red fur", "a long tail", "long long tail of fur", "red fur"]
LENGTH = 10
TEXT = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def save_tokenizer(folder, length=LENGTH):
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
    )
    fast.save_pretrained(folder)
    # Some families have a tokenizer of their own that AutoTokenizer makes of these files.
    return transformers.AutoTokenizer.from_pretrained(folder)


def shaken(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_clip(folder):
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    model = shaken(transformers.CLIPModel(config))
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]
    )
    return save(folder, model, processor)


def save_siglip(folder):
    config = transformers.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
    model = shaken(transformers.SiglipModel(config))
    return save(folder, model, transformers.SiglipImageProcessor(size={"height": 32, "width": 32}))


def save_naflex(folder):
    vision = {**VISION, "num_patches": 16, "num_channels": 3}
    config = transformers.Siglip2Config(text_config={**TEXT, "projection_size": 16}, vision_config=vision)
    model = shaken(transformers.Siglip2Model(config))
    return save(folder, model, transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16))


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, save_tokenizer(folder)


@pytest.fixture
def square():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture
def oblong():
    """Smooth, so that two implementations of the same filter agree to a level or two."""
    y, x = np.mgrid[0:90, 0:60]
    waves = [127 + 100 * np.sin(x / 9 + k) * np.cos(y / 11) for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


FAMILIES = {"clip": save_clip, "siglip": save_siglip, "siglip2": save_naflex}


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    folder = tmp_path / f"{request.param} é"
    return request.param, folder, *FAMILIES[request.param](folder)


def test_equals_the_librarys_own_forward(family, square):
    name, folder, model, processor, tokenizer = family
    encoder = load_encoder(f"hf:{folder}", device="cpu")
    assert encoder.size == (32, 32)
    padding = {"padding": True} if name == "clip" else {"padding": "max_length", "max_length": LENGTH}
    tokens = tokenizer(PHRASES, return_tensors="pt", **padding)
    texts = {key: tokens[key] for key in (("input_ids", "attention_mask") if name == "clip" else ("input_ids",))}
    plain = {"do_resize": False, "do_center_crop": False} if name == "clip" else {}
    pictures = processor(images=[square], return_tensors="pt", **plain)
    with torch.no_grad():
        out = model(**texts, **pictures)
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(encoder.encode_images(x), out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_phrases(PHRASES), out.text_embeds, atol=1e-5, rtol=0)
    assert encoder.width == out.text_embeds.shape[1]
    assert (out.text_embeds[0] - out.text_embeds[1]).norm() > 0.01


def test_framing_equals_the_librarys_processor(family, oblong):
    name, folder, _, processor, _ = family
    encoder = load_encoder(f"hf:{folder}", device="cpu")
    if name == "siglip2":
        # The library keeps the aspect ratio of this family's pictures; on squares the two agree.
        oblong = oblong.resize((64, 64))
    own = processor(images=[oblong], return_tensors="pt")["pixel_values"]
    ours = ((encoder.preprocess(oblong) - encoder.mean) / encoder.std)[None]
    if name == "siglip2":
        own = own.reshape(1, 4, 4, 8, 8, 3).permute(0, 5, 1, 3, 2, 4).reshape(1, 3, 32, 32)
    assert own.shape == ours.shape
    assert (own - ours).abs().max() < 3 / 255 / float(encoder.std.min())


def test_batches_do_not_matter_and_weights_stay(family):
    _, folder, *_ = family
    encoder = load_encoder(f"hf:{folder}", device="cpu")
    fingerprint = encoder.fingerprint
    x = torch.rand(5, 3, 32, 32)
    whole, words = encoder.encode_images(x), encoder.encode_phrases(PHRASES)
    encoder.batch_size = 1
    torch.testing.assert_close(encoder.encode_images(x), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_phrases(PHRASES), words, atol=1e-5, rtol=0)
    again = load_encoder(f"hf:{folder}", device="cpu")
    assert again.fingerprint == fingerprint
    assert load_encoder(f"hf:{folder}", pretrained=False, device="cpu").fingerprint != fingerprint


def test_long_phrases_are_cut_to_the_towers_length(family):
    _, folder, *_ = family
    encoder = load_encoder(f"hf:{folder}", device="cpu")
    assert encoder.encode_phrases([" ".join(["red"] * 50)]).shape[0] == 1


def test_other_models_and_missing_files(tmp_path, monkeypatch):
    bert = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"'bert'.*clip"):
        load_encoder(f"hf:{tmp_path / 'bert'}")
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights of hf:.*cannot be loaded"):
        load_encoder(f"hf:{tmp_path / 'clip'}")
    load_encoder(f"hf:{tmp_path / 'clip'}", pretrained=False)

    def offline(*args, **keywords):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"configuration of hf:nobody/nothing.*connect.*needs a network"):
        load_encoder("hf:nobody/nothing")


def test_a_missing_library_names_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **keywords):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"whylens\[hf\]"):
        load_encoder("hf:openai/clip-vit-base-patch16")
