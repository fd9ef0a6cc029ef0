from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dictionary_worlds import toy
from PIL import Image

from whylens.classifiers import Classifier
from whylens.dictionaries import FeatureStore, fact_positions, store_features
from whylens.dictionaries.features import picture_order
from whylens.dictionaries.sampling import importance, sample_positions
from whylens.errors import FitError, InputError, StoreError
from whylens.images import read_picture


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def layer() -> Classifier:
    return toy().at("act2")


def expected(classifier: Classifier, paths: list[Path]) -> torch.Tensor:
    x = torch.stack([classifier.preprocess(read_picture(p)) for p in paths])
    return classifier.features(x.double()).float()


def test_stored_features_are_the_layers(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    store = store_features(layer, files, tmp_path / "s", held_out=0.5, shard_bytes=2000, batch_size=7, seed=3)
    order = picture_order(files, 3)
    assert store.held_out_rows == 30 * 16
    assert store.rows == 30 * 16
    assert store.used == 60
    assert len(store.shards) > 4
    z = expected(layer, [files[i] for i in order]).flatten(2).transpose(1, 2).flatten(0, 1)
    rows = torch.randperm(480, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(store.read_held_out(rows), z[:480][rows], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(store.read(rows[:9]), z[480:][rows[:9]], atol=2e-3, rtol=1e-3)
    again = FeatureStore.open(tmp_path / "s")
    assert again.fingerprint == store.fingerprint
    assert torch.equal(again.read(rows), store.read(rows))
    assert store.bytes == sum(p.stat().st_size for p in (tmp_path / "s").glob("*.f16"))


def test_neither_the_order_nor_the_batch_size_matters(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    a = store_features(layer, files, tmp_path / "a", positions=3, batch_size=1, seed=1)
    b = store_features(layer, files[::-1], tmp_path / "b", positions=3, batch_size=32, seed=1)
    rows = torch.arange(a.rows)
    torch.testing.assert_close(a.read(rows), b.read(rows), atol=1e-3, rtol=1e-3)


def test_large_features_fit_into_fp16(files: list[Path], tmp_path: Path) -> None:
    classifier = toy()
    with torch.no_grad():
        classifier.module.mix.weight.mul_(1e6)
    large = Classifier(classifier.module, size=8, mean=(0.5,) * 3, std=(0.25,) * 3, features="act2")
    store = store_features(large, files, tmp_path / "s")
    z = expected(large, [files[i] for i in picture_order(files, 0)][store.meta["held_out"] :])
    assert z.max() > 65504
    rows = z.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(store.read(torch.arange(store.rows)), rows, atol=float(z.max()) * 1e-5, rtol=1e-3)


def test_pooled_features_are_the_average(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    store = store_features(layer, files, tmp_path / "s", pooled=True)
    assert store.origin.pooled
    z = expected(layer, [files[i] for i in picture_order(files, 0)])[store.held_out_rows :].mean((2, 3))
    torch.testing.assert_close(store.read(torch.arange(store.rows)), z, atol=2e-3, rtol=1e-3)


def test_an_interrupted_store_goes_on(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    whole = store_features(layer, files, tmp_path / "whole", shard_bytes=2000, batch_size=4)

    def power_cut(done: int, total: int) -> None:
        if done > 40:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store_features(layer, files, tmp_path / "s", shard_bytes=2000, batch_size=4, progress=power_cut)
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore.open(tmp_path / "s")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*.f16")}
    assert kept
    again = store_features(layer, files, tmp_path / "s", shard_bytes=2000, batch_size=4)
    assert again.fingerprint == whole.fingerprint
    assert all((tmp_path / "s" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert not list((tmp_path / "s").glob("*.part"))


def test_a_damaged_shard_is_named_and_made_again(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    whole = store_features(layer, files, folder, shard_bytes=2000)
    shard = folder / whole.shards[2].file
    content = bytearray(shard.read_bytes())
    content[5] ^= 64
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=f"{shard.name} has other content"):
        FeatureStore.open(folder)
    assert store_features(layer, files, folder, shard_bytes=2000).fingerprint == whole.fingerprint
    shard.write_bytes(content[:10])
    with pytest.raises(StoreError, match="10 bytes"):
        FeatureStore.open(folder, verify=False)
    shard.unlink()
    with pytest.raises(StoreError, match="missing"):
        FeatureStore.open(folder)
    assert store_features(layer, files, folder, shard_bytes=2000).fingerprint == whole.fingerprint


def test_another_configuration_is_refused(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    store_features(layer, files, tmp_path / "s")
    for change in ({"seed": 1}, {"positions": 2}, {"pooled": True}, {"held_out": 0.5}):
        with pytest.raises(InputError, match="another configuration"):
            store_features(layer, files, tmp_path / "s", **change)
    with pytest.raises(InputError, match="another configuration"):
        store_features(toy().at("act"), files, tmp_path / "s")
    (tmp_path / "s/features.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        store_features(layer, files, tmp_path / "s")


def test_unreadable_pictures_are_listed(layer: Classifier, files: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    store = store_features(layer, [*files, bad], tmp_path / "s")
    assert [name for name, _ in store.failed] == [str(bad)]
    assert store.used == 60
    empty = [tmp_path / f"{i}.png" for i in range(5)]
    for path in empty:
        path.write_bytes(b"x")
    with pytest.raises(FitError, match="5 of 7 pictures"):
        store_features(layer, [*files[:2], *empty], tmp_path / "t")
    meta = json.loads((tmp_path / "s/features.json").read_text())
    assert meta["finished"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": 0}, "positions must be"),
        ({"sampling": "important"}, "importance"),
        ({"held_out": 0.9}, "held_out"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings_are_named(
    layer: Classifier, files: list[Path], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        store_features(layer, files, tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_importance_is_the_gradient_times_the_features(layer: Classifier) -> None:
    z = layer.features(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    head = layer.affine_head
    weights = head.weight[layer.head(z).argmax(1)]
    by_hand = (weights[:, :, None] * z.flatten(2) / 16).sum(1).abs()
    torch.testing.assert_close(importance(layer, z), by_hand)


def test_positions_are_drawn_in_proportion_and_without_replacement() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 4.0, 0.0, 1.0])
    generator = torch.Generator().manual_seed(2)
    pictures = torch.rand(3000, 3, 2, 2, generator=generator)
    one = sample_positions(pictures, weights.expand(3000, 6), 1, 0)
    shares = torch.bincount(one.flatten(), minlength=6) / 3000
    torch.testing.assert_close(shares, weights / 8, atol=0.03, rtol=0)
    three = sample_positions(pictures[:200], weights.expand(200, 6), 3, 0)
    assert all(len(set(row)) == 3 and not set(row) & {0, 4} for row in three.tolist())
    assert torch.equal(sample_positions(pictures[5:6], weights[None], 3, 0)[0], three[5])
    assert sorted(sample_positions(pictures[:1], torch.zeros(1, 6), 6, 0)[0].tolist()) == list(range(6))


def test_facts_number_of_positions() -> None:
    assert [fact_positions(c) for c in (2048, 1024, 512, 384, 256)] == [18, 36, 72, 96, 144]
