import builtins
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from whylens.encoders import load_encoder
from whylens.errors import InputError, MissingExtraError

open_clip = pytest.importorskip("open_clip")

NAME = "whylens-tiny-clip"
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PHRASES = ["red fur", "a long tail with two ends", "écorce", "red fur"]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    before = dict(open_clip.factory._MODEL_CONFIGS)
    paths = list(open_clip.factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(5)
    model = open_clip.create_model(NAME, pretrained_text=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    checkpoint = folder / "weights é.pt"
    torch.save(model.state_dict(), checkpoint)
    yield model, checkpoint
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(before)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = paths


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 45, 3), dtype=np.uint8))


def test_checkpoint_equals_open_clips_own_forward(registered, picture):
    model, checkpoint = registered
    encoder = load_encoder(f"open_clip:{NAME}/{checkpoint}", device="cpu")
    assert (encoder.width, encoder.size) == (12, (32, 32))
    _, _, transform = open_clip.create_model_and_transforms(NAME, pretrained_text=False)
    tokenizer = open_clip.get_tokenizer(NAME)
    with torch.no_grad():
        image = F.normalize(model.encode_image(transform(picture)[None]), dim=1)
        text = F.normalize(model.encode_text(tokenizer(PHRASES)), dim=1)
    framed = encoder.preprocess(picture)
    assert framed.min() >= 0
    assert framed.max() <= 1
    torch.testing.assert_close(encoder.encode_images(framed[None]), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_phrases(PHRASES), text, atol=1e-5, rtol=0)
    assert encoder.coverage(PHRASES) == [True] * 4
    assert (text[0] - text[1]).norm() > 0.01


def test_embeddings_do_not_depend_on_the_batch(registered):
    encoder = load_encoder(f"open_clip:{NAME}/{registered[1]}", device="cpu")
    x = torch.rand(7, 3, 32, 32)
    whole, words = encoder.encode_images(x), encoder.encode_phrases(PHRASES)
    encoder.batch_size = 2
    torch.testing.assert_close(encoder.encode_images(x), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_phrases(PHRASES), words, atol=1e-5, rtol=0)


def test_openai_tags_get_the_quick_activation(registered, monkeypatch):
    _, checkpoint = registered
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, NAME, {"openai": {"url": "x", "quick_gelu": True}, "plain": {"url": "x"}}
    )
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *args, **keywords: str(checkpoint))
    quick = load_encoder(f"open_clip:{NAME}/openai", device="cpu")
    plain = load_encoder(f"open_clip:{NAME}/plain", device="cpu")
    own = open_clip.create_model(NAME, pretrained=str(checkpoint), force_quick_gelu=True).eval()
    x = torch.rand(2, 3, 32, 32)
    normalised = (x - quick.mean) / quick.std
    with torch.no_grad():
        expected = F.normalize(own.encode_image(normalised), dim=1)
        expected_text = F.normalize(own.encode_text(open_clip.get_tokenizer(NAME)(PHRASES)), dim=1)
    torch.testing.assert_close(quick.encode_images(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(quick.encode_phrases(PHRASES), expected_text, atol=1e-5, rtol=0)
    assert (plain.encode_images(x) - expected).abs().max() > 1e-3
    assert any(type(module).__name__ == "QuickGELU" for module in quick.module.modules())
    assert not any(type(module).__name__ == "QuickGELU" for module in plain.module.modules())


def test_the_real_name_of_the_openai_model_asks_for_the_quick_activation(registered, monkeypatch):
    asked = {}

    def create(name, **keywords):
        asked[name, keywords["pretrained"]] = keywords["force_quick_gelu"]
        return registered[0]

    tokenizer = open_clip.get_tokenizer(NAME)
    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
    load_encoder("open_clip:ViT-B-16/openai", device="cpu")
    load_encoder("open_clip:ViT-B-16/laion2b_s34b_b88k", device="cpu")
    assert asked == {("ViT-B-16", "openai"): True, ("ViT-B-16", "laion2b_s34b_b88k"): False}


def test_random_weights_are_seeded_and_leave_the_generator_alone(registered):
    state = torch.random.get_rng_state()
    first = load_encoder(f"open_clip:{NAME}", pretrained=False, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(2)
    assert first.fingerprint == load_encoder(f"open_clip:{NAME}", pretrained=False, device="cpu").fingerprint
    assert first.fingerprint != load_encoder(f"open_clip:{NAME}/{registered[1]}", device="cpu").fingerprint


def test_unknown_models_tags_and_files(registered, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"Did you mean .*'ViT-B-16'"):
        load_encoder("open_clip:ViT-B16/openai")
    with pytest.raises(InputError, match="Did you mean 'openai'"):
        load_encoder("open_clip:ViT-B-16/openia")
    with pytest.raises(InputError, match=r"names no weights.*openai"):
        load_encoder("open_clip:ViT-B-16")
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_encoder(f"open_clip:{NAME}/{tmp_path}/absent.pt")
    wrong = tmp_path / "wrong.pt"
    torch.save({"x": torch.ones(2)}, wrong)
    with pytest.raises(InputError, match="does not fit"):
        load_encoder(f"open_clip:{NAME}/{wrong}")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"plain": {"url": "x"}})

    def offline(*args, **keywords):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(InputError, match=r"Network is unreachable.*neither on this machine.*path of a checkpoint"):
        load_encoder(f"open_clip:{NAME}/plain")


def test_a_missing_library_names_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **keywords):
        if name == "open_clip":
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"whylens\[clip\]"):
        load_encoder("open_clip:ViT-B-16/openai")
