import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from whylens.encoders import builtin_encoder_names, list_encoders, load_encoder, save_builtin_encoder
from whylens.errors import InputError, ModelError, StoreError


def test_round_trip_gives_the_towers_own_embeddings(towers, encoder_root):
    image, text, vocabulary = towers
    encoder = load_encoder("builtin:tiny", root=encoder_root, device="cpu")
    assert (encoder.name, encoder.width, encoder.size) == ("builtin:tiny", 6, (20, 20))
    x = torch.rand(5, 3, 20, 20)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        pictures = F.normalize(image((x - mean) / std), dim=1)
        words = F.normalize(text(torch.tensor([vocabulary.encode("long tail", 5), vocabulary.encode("red", 5)])), dim=1)
    # Matrices are kept in fp16: 2e-3 of the unit length.
    torch.testing.assert_close(encoder.encode_images(x), pictures, atol=4e-3, rtol=0)
    torch.testing.assert_close(encoder.encode_phrases(["long tails", "Red"]), words, atol=4e-3, rtol=0)
    assert encoder.encode_images(x).dtype == torch.float32
    kept = load_file(encoder_root / "tiny" / "encoder.safetensors")
    assert {t.dtype for t in kept.values() if t.ndim > 1} == {torch.float16}


def test_unit_length_batches_and_repeats(encoder_root):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    x = torch.rand(9, 3, 20, 20)
    whole = encoder.encode_images(x)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(encoder.encode_images(x[4:5])[0], whole[4], atol=1e-5, rtol=0)
    phrases = ["red fur", "no wheel", "red fur", "stone"]
    together = encoder.encode_phrases(phrases)
    assert torch.equal(together[0], together[2])
    encoder.batch_size = 1
    torch.testing.assert_close(encoder.encode_phrases(phrases), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_images(x), whole, atol=1e-5, rtol=0)
    assert encoder.encode_images(x[:0]).shape == encoder.encode_phrases([]).shape == (0, 6)


def test_templates_are_averaged_and_normalised_again(encoder_root):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    first, second = encoder.encode_phrases(["stone"]), encoder.encode_phrases(["photo of stone"])
    both = encoder.encode_phrases(["stone"], ["{}", "a photo of {}"])
    expected = F.normalize((first + second) / 2, dim=1)
    assert (first - second).norm() > 0.01
    torch.testing.assert_close(both, expected, atol=1e-6, rtol=0)
    for templates in ([], ["photo"], ["{} {}"], "{}"):
        with pytest.raises(InputError):
            encoder.encode_phrases(["stone"], templates)


def test_coverage_and_refusal(encoder_root):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    phrases = ["red fur", "purple fur", "it", "red red red red red red", "tails of animals"]
    assert encoder.coverage(phrases) == [True, False, False, False, True]
    with pytest.raises(InputError, match=r"'whel' \(nearest known words: wheel\)"):
        encoder.encode_phrases(["red fur", "red whel"])
    for wrong in ("red fur", [""], [3]):
        with pytest.raises(InputError):
            encoder.encode_phrases(wrong)


def test_pictures_of_another_shape_or_range_are_refused(encoder_root):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    for wrong in (torch.rand(3, 20, 20), torch.rand(1, 3, 21, 20), torch.rand(1, 1, 20, 20)):
        with pytest.raises(InputError, match=r"\(B, 3, 20, 20\)"):
            encoder.encode_images(wrong)
    for wrong in (torch.rand(1, 3, 20, 20) * 255, torch.rand(1, 3, 20, 20) - 1, torch.full((1, 3, 20, 20), torch.nan)):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            encoder.encode_images(wrong)


def test_preprocess_is_resize_and_centre_crop(encoder_root, tmp_path):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "b.png")
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BICUBIC).crop((5, 0, 25, 20)))
    got = encoder.preprocess(tmp_path / "b.png")
    assert got.dtype == torch.float32
    assert np.array_equal((got.permute(1, 2, 0).numpy() * 255).round(), expected)
    for shape in ((1, 1, 3), (3, 5000, 3), (5000, 3, 3)):
        assert encoder.preprocess(np.zeros(shape, dtype=np.uint8)).shape == (3, 20, 20)


def test_fingerprint_follows_weights_words_and_scaling(towers, encoder_root):
    image, text, vocabulary = towers
    first = load_encoder("builtin:tiny", root=encoder_root)
    assert first.fingerprint == load_encoder("tiny", root=encoder_root).fingerprint
    assert len(first.fingerprint) == 64
    settings = {"widths": (4, 8, 12), "blocks": (0, 1), "layers": 1, "heads": 2, "size": 20}
    scaling = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    save_builtin_encoder(encoder_root / "same", image, text, vocabulary, **settings, **scaling)
    save_builtin_encoder(
        encoder_root / "scaled", image, text, vocabulary, **settings, mean=(0.5, 0.5, 0.5), std=scaling["std"]
    )
    swapped = type(vocabulary)(tuple(reversed(vocabulary.words)))
    save_builtin_encoder(encoder_root / "swapped", image, text, swapped, **settings, **scaling)
    with torch.no_grad():
        text.fc.bias[0] += 0.01
    save_builtin_encoder(encoder_root / "moved", image, text, vocabulary, **settings, **scaling)
    prints = {
        name: load_encoder(f"builtin:{name}", root=encoder_root).fingerprint
        for name in builtin_encoder_names(encoder_root)
    }
    assert prints["same"] == prints["tiny"]
    assert len(set(prints.values())) == 4


def test_unknown_names(encoder_root):
    assert builtin_encoder_names(encoder_root) == ("tiny",)
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        load_encoder("builtin:tinny", root=encoder_root)
    with pytest.raises(InputError, match="Did you mean 'open_clip'"):
        load_encoder("openclip:ViT-B-16/openai")
    for spec in ("nonsense", "hf:"):
        with pytest.raises(InputError, match="does not name an encoder"):
            load_encoder(spec)
    with pytest.raises(InputError, match="Unknown device"):
        load_encoder("builtin:tiny", root=encoder_root, device="abacus")


def test_damaged_folders(encoder_root):
    weights, card = encoder_root / "tiny" / "encoder.safetensors", encoder_root / "tiny" / "encoder.json"
    original, text = weights.read_bytes(), card.read_text()
    for damaged in (b"", original[:-10], original[:20]):
        weights.write_bytes(damaged)
        with pytest.raises(StoreError, match="cannot be read"):
            load_encoder("builtin:tiny", root=encoder_root)
    weights.write_bytes(original)
    content = json.loads(text)
    for change in ({"std": [0, 1, 1]}, {"image": {"nonsense": 1}}, {"words": ["red"]}):
        card.write_text(json.dumps(content | change))
        with pytest.raises(StoreError):
            load_encoder("builtin:tiny", root=encoder_root)
    card.write_text("{}")
    with pytest.raises(StoreError, match="image, text, words"):
        load_encoder("builtin:tiny", root=encoder_root)


def test_random_weights_need_no_file_and_are_seeded(encoder_root):
    (encoder_root / "tiny" / "encoder.safetensors").unlink()
    state = torch.random.get_rng_state()
    first = load_encoder("builtin:tiny", root=encoder_root, pretrained=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert first.fingerprint == load_encoder("builtin:tiny", root=encoder_root, pretrained=False).fingerprint


def test_nan_and_zero_embeddings_are_errors(encoder_root):
    encoder = load_encoder("builtin:tiny", root=encoder_root)
    image, text = encoder.module["image"], encoder.module["text"]
    with torch.no_grad():
        image.fc.bias.fill_(float("nan"))
        text.fc.weight.zero_()
        text.fc.bias.zero_()
    with pytest.raises(ModelError, match="NaN or infinite values for picture number 0"):
        encoder.encode_images(torch.rand(2, 3, 20, 20))
    with pytest.raises(ModelError, match="a zero vector for phrase 'red fur'"):
        encoder.encode_phrases(["red fur"])


def test_weights_beyond_fp16_are_not_saved(towers, tmp_path):
    image, text, vocabulary = towers
    with torch.no_grad():
        text.fc.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"text\.fc\.weight"):
        save_builtin_encoder(
            tmp_path / "e", image, text, vocabulary, widths=(4, 8, 12), blocks=(0, 1), layers=1, heads=2, size=20,
            mean=(0, 0, 0), std=(1, 1, 1),
        )  # fmt: skip
    assert not (tmp_path / "e").exists()


def test_every_listed_encoder_has_the_form_that_load_takes():
    names = list_encoders()
    assert "open_clip:ViT-B-16/openai" in names
    assert all(
        name.startswith(("builtin:", "planted:")) or (name.startswith("open_clip:") and "/" in name) for name in names
    )


def test_optional_libraries_are_not_imported_with_the_package():
    optional = "('open_clip', 'transformers', 'timm')"
    code = f"import sys, whylens.encoders, whylens.banks; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
