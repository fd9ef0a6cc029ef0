import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from whylens.encoders import EmbeddingCache, load_encoder
from whylens.encoders.cache import default_folder
from whylens.errors import InputError, PictureError

PHRASES = ["red fur", "long tail", "grey stone", "red fur"]


class Counting:
    """Counts what reaches an encoder's towers."""

    def __init__(self, encoder, monkeypatch):
        self.texts: list[str] = []
        self.pictures = 0
        texts, pictures = encoder._embed_texts, encoder._embed_pictures

        def embed_texts(batch):
            self.texts += batch
            return texts(batch)

        def embed_pictures(x):
            self.pictures += len(x)
            return pictures(x)

        monkeypatch.setattr(encoder, "_embed_texts", embed_texts)
        monkeypatch.setattr(encoder, "_embed_pictures", embed_pictures)


@pytest.fixture
def encoder(encoder_root):
    return load_encoder("builtin:tiny", root=encoder_root, device="cpu")


def files(folder):
    return sorted(Path(folder).rglob("*.embeddings"))


def test_phrases_are_embedded_once(encoder, tmp_path, monkeypatch):
    expected = encoder.encode_phrases(PHRASES)
    count = Counting(encoder, monkeypatch)
    first = EmbeddingCache(tmp_path / "c")
    assert torch.equal(first.phrases(encoder, PHRASES), expected)
    assert sorted(count.texts) == sorted(set(PHRASES))
    count.texts.clear()
    assert torch.equal(first.phrases(encoder, PHRASES), expected)
    again = EmbeddingCache(tmp_path / "c")
    assert torch.equal(again.phrases(encoder, PHRASES[::-1]), expected.flip(0))
    assert count.texts == []
    again.phrases(encoder, ["red fur", "wheel"])
    assert count.texts == ["wheel"]
    assert again.phrases(encoder, []).shape == (0, 6)


def test_templates_and_encoders_are_kept_apart(encoder, encoder_root, tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path / "c")
    plain = cache.phrases(encoder, ["stone"])
    photo = cache.phrases(encoder, ["stone"], ["photo of {}"])
    assert torch.equal(photo, encoder.encode_phrases(["photo of stone"]))
    assert not torch.allclose(plain, photo, atol=1e-3)
    other = load_encoder("builtin:tiny", root=encoder_root, pretrained=False)
    assert torch.equal(cache.phrases(other, ["stone"]), other.encode_phrases(["stone"]))
    assert torch.equal(EmbeddingCache(tmp_path / "c").phrases(encoder, ["stone"]), plain)


def test_pictures_go_by_their_bytes(encoder, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (30, 25, 3), dtype=np.uint8)).save(paths[-1])
    expected = encoder.encode_images(torch.stack([encoder.preprocess(path) for path in paths]))
    count = Counting(encoder, monkeypatch)
    cache = EmbeddingCache(tmp_path / "c")
    torch.testing.assert_close(cache.pictures(encoder, paths), expected, atol=1e-6, rtol=0)
    moved = paths[0].rename(tmp_path / "moved.png")
    torch.testing.assert_close(cache.pictures(encoder, [str(moved), paths[2].read_bytes()]), expected[[0, 2]])
    assert count.pictures == 3
    paths[1].write_bytes(paths[2].read_bytes())
    torch.testing.assert_close(cache.pictures(encoder, [paths[1]]), expected[[2]])
    assert count.pictures == 3
    with pytest.raises(PictureError):
        cache.pictures(encoder, [tmp_path / "absent.png"])
    assert cache.pictures(encoder, []).shape == (0, 6)


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "flipped", "foreign"])
def test_damaged_files_are_passed_over_and_written_again(encoder, tmp_path, monkeypatch, damage):
    expected = EmbeddingCache(tmp_path / "c").phrases(encoder, PHRASES)
    (path,) = files(tmp_path)
    original = path.read_bytes()
    flipped = bytearray(original)
    flipped[-5] ^= 0x10
    path.write_bytes(
        {
            "empty": b"",
            "half": original[: len(original) // 2],
            "noise": os.urandom(300),
            "flipped": bytes(flipped),
            "foreign": (tmp_path / "encoders" / "tiny" / "encoder.safetensors").read_bytes(),
        }[damage]
    )
    count = Counting(encoder, monkeypatch)
    assert torch.equal(EmbeddingCache(tmp_path / "c").phrases(encoder, PHRASES), expected)
    assert len(count.texts) == 3
    assert files(tmp_path) == [path]
    assert path.read_bytes() == original


def test_a_file_that_vanishes_under_a_running_cache_is_made_again(encoder, tmp_path):
    cache = EmbeddingCache(tmp_path / "c")
    expected = cache.phrases(encoder, PHRASES)
    files(tmp_path)[0].unlink()
    assert torch.equal(cache.phrases(encoder, PHRASES), expected)
    assert len(files(tmp_path)) == 1


def test_half_written_leftovers_do_not_count(encoder, tmp_path):
    cache = EmbeddingCache(tmp_path / "c")
    cache.phrases(encoder, ["red fur"])
    path = files(tmp_path)[0]
    (path.parent / f".{path.name}.x.part").write_bytes(b"half")
    assert torch.equal(
        EmbeddingCache(tmp_path / "c").phrases(encoder, ["red fur"]), cache.phrases(encoder, ["red fur"])
    )


def test_clear_and_size(encoder, tmp_path):
    cache = EmbeddingCache(tmp_path / "c")
    cache.phrases(encoder, ["red fur"])
    cache.phrases(encoder, ["long tail"])
    (tmp_path / "c" / "mine.txt").write_text("keep")
    assert cache.size_bytes() == sum(path.stat().st_size for path in files(tmp_path)) > 0
    assert cache.clear() == 2
    assert cache.size_bytes() == 0
    assert (tmp_path / "c" / "mine.txt").exists()
    assert torch.equal(cache.phrases(encoder, ["red fur"]), encoder.encode_phrases(["red fur"]))


def test_the_limit_removes_what_was_unused_for_longest(encoder, tmp_path):
    EmbeddingCache(tmp_path / "c").phrases(encoder, ["red fur"])
    one = files(tmp_path)[0].stat().st_size
    cache = EmbeddingCache(tmp_path / "c", limit_bytes=int(one * 2.5))
    cache.phrases(encoder, ["long tail"])
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, ns=(10**9 * (age + 1), 10**9 * (age + 1)))
    cache.phrases(encoder, ["red fur"])
    cache.phrases(encoder, ["grey stone"])
    assert len(files(tmp_path)) == 2
    fresh = EmbeddingCache(tmp_path / "c")
    folder = next(iter((tmp_path / "c").glob("*/phrases")))
    fresh._lookup(folder, ["absent"], 6)
    assert len(fresh._rows[folder]) == 2
    assert cache._rows[folder].keys() >= fresh._rows[folder].keys()
    with pytest.raises(InputError):
        EmbeddingCache(tmp_path, limit_bytes=-1)


def test_a_folder_that_cannot_be_written_costs_only_the_caching(encoder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cache = EmbeddingCache(tmp_path / "file" / "c")
    with pytest.warns(UserWarning, match="could not be kept"):
        got = cache.phrases(encoder, PHRASES)
    assert torch.equal(got, encoder.encode_phrases(PHRASES))


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WHYLENS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "own" / "embeddings"
    monkeypatch.delenv("WHYLENS_CACHE")
    assert EmbeddingCache().folder == tmp_path / "xdg" / "whylens" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "whylens" / "embeddings"


def _work(root, folder, start, results):
    torch.set_num_threads(1)
    encoder = load_encoder("builtin:tiny", root=root, device="cpu")
    words = ["red", "fur", "long", "tail", "grey", "stone", "four", "green", "legs", "no", "wheel", "animal"]
    cache = EmbeddingCache(folder)
    for step in range(24):
        pair = [words[(start + step) % 12], words[(start * 5 + step * 7) % 12] + " fur"]
        got = cache.phrases(encoder, pair)
        if not torch.allclose(got, encoder.encode_phrases(pair), atol=1e-6):
            results.put(f"wrong at {step}")
    results.put("done")


def test_processes_that_write_at_once_do_not_corrupt(encoder_root, encoder, tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_work, args=(encoder_root, tmp_path / "c", start, results)) for start in range(2)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers == ["done"] * 2
    count = Counting(encoder, monkeypatch)
    every = [f"{word} fur" for word in ("red", "tail", "stone", "green", "no", "animal")]
    EmbeddingCache(tmp_path / "c").phrases(encoder, every)
    assert count.texts == []
    assert not list((tmp_path / "c").rglob("*.part"))
