from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from whylens.bcos import HeldPass, SmallBcosResNet, explanation_mode, last_layer
from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.encoders import load_encoder
from whylens.errors import FitError, InputError, PictureError, StoreError
from whylens.images import read_picture
from whylens.lens import Lens, atlas_mapping, atlas_reading
from whylens.lens.atlas import Atlas, draw_pair, summary
from whylens.lens.atlas_building import build_atlas
from whylens.lens.atlas_pictures import pack, small_maps, unpack
from whylens.lens.latents import LatentReader
from whylens.metrics.consistency import consistency_over_pairs, top_pictures
from whylens.metrics.weighted_features import attribution_embeddings, random_maps
from whylens.randomness import torch_generator

LATENTS, K = 20, 4
DEAD = 3


def dictionary_of(classifier: Classifier, *, pooled: bool = False, layer: str | None = None) -> Dictionary:
    """Random rows, of which one never wins."""
    at = classifier if layer is None else classifier.at(layer)
    generator = torch_generator(4, "atlas dictionary")
    decoder = normalize(torch.randn(LATENTS, at.width, generator=generator), dim=1)
    encoder = decoder + 0.2 * torch.randn(LATENTS, at.width, generator=generator)
    encoder[DEAD] = 0
    return Dictionary(
        encoder,
        decoder,
        DictionarySettings(kind="topk", k=K, bias=False, centre=False),
        origin=Origin.of(at, pooled=pooled),
        frequency=torch.ones(LATENTS).index_fill(0, torch.tensor([DEAD]), 0),
    )


def with_dictionary(lens: Lens, **options: object) -> Lens:
    return replace(lens, dictionary=dictionary_of(lens.classifier, **options))  # type: ignore[arg-type]


def eyes(x: torch.Tensor) -> torch.Tensor:
    """Mean colour of every 4 x 4 block: a backbone whose features are known."""
    return torch.nn.functional.avg_pool2d(x, 4)


@pytest.fixture
def conv_lens(lens: Lens) -> Lens:
    """Positions: the dictionary is of the last stage."""
    return with_dictionary(lens, layer="stages")


@pytest.fixture(scope="module")
def bcos() -> Classifier:
    torch.manual_seed(0)
    network = SmallBcosResNet(6, (4, 8, 12), (0, 1)).double()
    for module in network.modules():
        if hasattr(module, "running_var"):
            torch.nn.init.uniform_(module.running_var, 0.05, 0.2)
    return Classifier(network, size=16, mean=(0.0,) * 3, std=(1.0,) * 3, link="sigmoid", name="small bcos")


def pictures_of(classifier: Classifier, files: list[Path], count: int) -> torch.Tensor:
    return torch.stack([classifier.preprocess(read_picture(p)) for p in files[:count]])


# -- what a latent does on a picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_pixel_maps_of_a_bcos_network_add_up_to_the_activation(
    bcos: Classifier, pictures: list[Path], pooled: bool
) -> None:
    reader = LatentReader(bcos, dictionary_of(bcos, pooled=pooled))
    x = pictures_of(bcos, pictures, 5).double()
    reading = reader.read(x)
    assert reader.held
    assert reader.exact
    active = (reading.presence > 0).nonzero()[::3]
    found = reader.maps(x[active[:, 0]], active[:, 1])
    assert found.kind == "pixel contributions"
    expected = reading.presence[active[:, 0], active[:, 1]]
    torch.testing.assert_close(found.maps.sum((1, 2)), expected, rtol=1e-6, atol=1e-10)
    assert found.colours is not None
    assert found.colours.shape == (len(active), 4, 16, 16)


@pytest.mark.parametrize("pooled", [False, True])
def test_contributions_and_what_is_missed_add_up_to_the_logit(
    bcos: Classifier, pictures: list[Path], pooled: bool
) -> None:
    dictionary = dictionary_of(bcos, pooled=pooled)
    reader = LatentReader(bcos, dictionary)
    x = pictures_of(bcos, pictures, 4).double()
    reading = reader.read(x)
    features, logits = bcos.features_and_logits(x)
    # The held head is linear, so the error of the reconstruction has its own exact part.
    with explanation_mode(bcos.module), torch.enable_grad():
        z = features.detach().requires_grad_(True)
        best = bcos.head(z).gather(1, reading.predicted[:, None]).sum()
        (gradient,) = torch.autograd.grad(best, z)
    missed = ((features - dictionary.replace(features)) * gradient).flatten(1).sum(1)
    if pooled:
        missed = ((features.mean((2, 3)) - dictionary(features))[:, :, None, None] * gradient).flatten(1).sum(1)
        rest = ((features - features.mean((2, 3), keepdim=True)) * gradient).flatten(1).sum(1)
        missed = missed + rest
    bias = bcos.module.logit_layer.logit_bias
    expected = logits.gather(1, reading.predicted[:, None])[:, 0] - bias
    torch.testing.assert_close(reading.contributions.sum(1) + missed, expected, rtol=1e-6, atol=1e-9)
    silent = reading.presence == 0
    assert reading.contributions[silent].abs().max() == 0
    assert not reading.positions[silent].any()


def test_maps_and_contributions_are_those_of_the_held_network(bcos: Classifier, pictures: list[Path]) -> None:
    """Sums alone would not tell: a homogeneous network's ordinary gradient adds up to the same values."""
    dictionary = dictionary_of(bcos)
    reader = LatentReader(bcos, dictionary)
    x = pictures_of(bcos, pictures, 4).double()
    held = HeldPass(bcos.module, x, "stages")
    codes = dictionary.encode(held.output)
    latents = (codes.flatten(2).sum(2) * torch.arange(1, LATENTS + 1)).argmax(1)
    active = codes[torch.arange(4), latents] > 0
    cotangent = dictionary.encoder[latents].double()[:, :, None, None] * active[:, None]
    pulled = held.pull(cotangent)
    found = reader.maps(x, latents)
    torch.testing.assert_close(found.maps, pulled.map, rtol=1e-6, atol=1e-9)
    ordinary = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((bcos.features(ordinary) * cotangent).sum(), ordinary)
    assert not torch.allclose(found.maps, (gradient * x).sum(1), atol=1e-3 * float(found.maps.abs().max()))
    reading = reader.read(x)
    sparse = dictionary.sparse(held.output)
    closed = last_layer(bcos.module).code_contributions(
        held.output, sparse.indices, sparse.values, dictionary.decoder.double(), reading.predicted
    )
    torch.testing.assert_close(reading.contributions, closed, rtol=1e-6, atol=1e-9)


def test_an_ordinary_layer_is_mapped_by_its_codes(conv_lens: Lens, pictures: list[Path]) -> None:
    reader = LatentReader(conv_lens.classifier, conv_lens.dictionary)
    assert reader.classifier.features_name == "output of stages"
    x = pictures_of(reader.classifier, pictures, 4)
    dense = reader.dictionary.encode(reader.classifier.features(x))
    latents = torch.tensor([1, 5, 7, 11])
    found = reader.maps(x, latents)
    assert found.kind == "activation map"
    torch.testing.assert_close(found.maps, dense[torch.arange(4), latents])
    reading = reader.read(x)
    torch.testing.assert_close(reading.presence, dense.flatten(2).sum(2))
    assert torch.equal(reading.positions, (dense > 0).flatten(2).sum(2).float())


def test_features_without_positions_are_mapped_through_the_last_layer_that_has_some(
    lens: Lens, pictures: list[Path]
) -> None:
    lens = with_dictionary(lens)
    reader = LatentReader(lens.classifier, lens.dictionary)
    x = pictures_of(reader.classifier, pictures, 3)
    latents = torch.tensor([2, 9, 13])
    found = reader.maps(x, latents)
    assert found.kind == "gradient map"
    cells = reader.classifier.at("stages").features(x)
    # The features are the average over positions, so the map is known in closed form.
    expected = torch.einsum("md,mdhw->mhw", reader.dictionary.encoder[latents], cells) / cells[0, 0].numel()
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-6)
    assert not any(p.grad is not None for p in reader.classifier.module.parameters())


def test_a_dictionary_of_another_network_is_refused(bcos: Classifier, classifier: Classifier) -> None:
    with pytest.raises(InputError, match="other weights"):
        LatentReader(classifier, dictionary_of(bcos))


# -- the atlas --------------------------------------------------------------------------------------------------------


def slow_reference(lens: Lens, files: list[Path]) -> dict[str, torch.Tensor]:
    """Everything in one batch, from dense codes."""
    reader = LatentReader(lens.classifier, lens.dictionary)
    x = pictures_of(reader.classifier, files, len(files))
    reading = reader.read(x)
    return {
        "x": x,
        "presence": reading.presence,
        "contributions": reading.contributions,
        "predicted": reading.predicted,
    }


def test_statistics_are_those_of_dense_codes(
    conv_lens: Lens, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas_reading, "PART", 16)
    files = pictures[:60]
    atlas = build_atlas(conv_lens, files, shown=3, backbone=None, batch_size=7)
    slow = slow_reference(conv_lens, files)
    presence, part = slow["presence"], slow["contributions"]
    assert len(atlas) == LATENTS
    assert atlas.meta["pictures_used"] == 60
    for k, latent in enumerate(atlas.latents):
        active = presence[:, k] > 0
        assert latent.active == pytest.approx(float(active.float().mean()))
        assert latent.contribution == pytest.approx(float(part[:, k].abs().mean()), rel=1e-4, abs=1e-9)
        if not active.any():
            assert (latent.state, latent.top, latent.classes, latent.spread) == ("dead", (), (), 0)
            continue
        assert latent.mean == pytest.approx(float(presence[active, k].mean()), rel=1e-4)
        assert latent.max == pytest.approx(float(presence[:, k].max()), rel=1e-4)
        assert [t.activation for t in latent.top] == pytest.approx(
            presence[:, k].sort(descending=True).values[: len(latent.top)].tolist(), rel=1e-4
        )
        for served in latent.classes:
            own = slow["predicted"] == served.index
            assert served.pictures == int(own.sum())
            assert served.contribution == pytest.approx(float(part[own, k].mean()), rel=1e-3, abs=1e-7)
            assert served.active == pytest.approx(float(active[own].float().mean()))
        mass = torch.stack([presence[slow["predicted"] == c, k].sum() for c in range(6)])
        share = mass / mass.sum()
        assert latent.spread == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=1e-3)
    assert atlas.latents[DEAD].state == "dead"
    assert atlas.latents[DEAD].name.name is None


def test_maps_and_thumbnails_are_those_of_the_top_pictures(conv_lens: Lens, pictures: list[Path]) -> None:
    files = pictures[:30]
    atlas = build_atlas(conv_lens, files, shown=3, backbone=None)
    slow = slow_reference(conv_lens, files)
    names = [p.name for p in files]
    reader = LatentReader(conv_lens.classifier, conv_lens.dictionary)
    for latent in [latent for latent in atlas.latents if latent.top][:6]:
        for rank, top in enumerate(latent.top):
            x = slow["x"][names.index(top.source)]
            expected = reader.maps(x[None], torch.tensor([latent.index])).maps[0].numpy()
            np.testing.assert_allclose(atlas.heat(latent.index, rank), expected, atol=expected.max() / 100)
            shown = atlas.thumbnail(latent.index, rank).astype(float) / 255
            assert np.abs(shown - x.permute(1, 2, 0).numpy()).mean() < 0.05
    with pytest.raises(InputError, match="top pictures"):
        atlas.thumbnail(DEAD, 0)
    with pytest.raises(InputError, match="from 0 to 19"):
        atlas[LATENTS]


def test_c2_is_that_of_explicit_pairs(conv_lens: Lens, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas_mapping, "PART", 11)
    files = pictures[:40]
    atlas = build_atlas(conv_lens, files, shown=2, scored=50, backbone=eyes, batch_size=5, seed=3)
    slow = slow_reference(conv_lens, files)
    reader = LatentReader(conv_lens.classifier, conv_lens.dictionary)
    cells = eyes(slow["x"]).double()
    centre = cells.mean((2, 3)).mean(0)
    from whylens.randomness import picture_hash

    noise = random_maps(40, (16, 16), seed=3, keys=[picture_hash(x) for x in slow["x"]])
    random, _ = attribution_embeddings(noise, cells, centre=centre)
    floor = consistency_over_pairs(random, noise.double().sum((1, 2)))
    assert atlas.meta["c2"]["baseline"] == pytest.approx(floor, abs=1e-4)
    scored = 0
    for latent in atlas.latents:
        chosen = top_pictures(slow["presence"][:, latent.index])
        maps = reader.maps(slow["x"][chosen], torch.full((len(chosen),), latent.index)).maps
        vectors, some = attribution_embeddings(maps, cells[chosen], size=(16, 16), centre=centre)
        if int(some.sum()) < 2:
            assert latent.c2 is None
            continue
        expected = consistency_over_pairs(vectors[some], slow["presence"][chosen, latent.index][some])
        assert latent.c2 == pytest.approx(expected - floor, abs=2e-3)
        assert latent.c2_pictures == int(some.sum())
        scored += 1
    assert scored > 3
    assert atlas.meta["c2"]["protocol"] == "c2/code-top5%-min10-max50-bilinear/v1"


def same(a: Atlas, b: Atlas) -> None:
    assert [latent.to_dict() for latent in a.latents] == [latent.to_dict() for latent in b.latents]
    assert sorted(a.tensors) == sorted(b.tensors)
    for name, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[name]), name


def test_an_interrupted_build_goes_on_and_ends_the_same(
    conv_lens: Lens, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atlas_reading, "PART", 16)
    monkeypatch.setattr(atlas_mapping, "PART", 16)
    files = pictures[:50]
    options = {"shown": 2, "backbone": eyes, "batch_size": 8}
    whole = build_atlas(conv_lens, files, **options)
    reads, maps = [], []
    real_read, real_maps = LatentReader.read, LatentReader.maps
    monkeypatch.setattr(LatentReader, "read", lambda self, x: (reads.append(len(x)), real_read(self, x))[1])
    monkeypatch.setattr(LatentReader, "maps", lambda self, x, k: (maps.append(len(x)), real_maps(self, x, k))[1])

    class Stop(BaseException):
        pass

    def stop_at(stage: str, least: int):
        def progress(what: str, done: int, total: int) -> None:
            if what == stage and done >= least:
                raise Stop

        return progress

    work = tmp_path / "work"
    with pytest.raises(Stop):
        build_atlas(conv_lens, files, **options, workspace=work, progress=stop_at("Reading pictures", 40))
    assert sum(reads) == 40
    with pytest.raises(Stop):
        build_atlas(conv_lens, files, **options, workspace=work, progress=stop_at("Drawing maps", 20))
    # The two finished parts of 16 pictures were not read again.
    assert sum(reads) == 40 + 50 - 32
    before = sum(maps)
    again = build_atlas(conv_lens, files, **options, workspace=work)
    assert sum(reads) == 40 + 50 - 32
    assert sum(maps) - before < before + len(files)
    same(again, whole)
    with pytest.raises(InputError, match="another configuration"):
        build_atlas(conv_lens, files[:-1], **options, workspace=work)
    (work / "map-00000.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="damaged"):
        build_atlas(conv_lens, files, **options, workspace=work)
    (work / "map-00000.safetensors").unlink()
    same(build_atlas(conv_lens, files, **options, workspace=work), whole)


def test_no_batch_changes_the_atlas(conv_lens: Lens, pictures: list[Path]) -> None:
    one = build_atlas(conv_lens, pictures[:20], shown=2, backbone=None, batch_size=1)
    many = build_atlas(conv_lens, pictures[:20], shown=2, backbone=None, batch_size=20)
    for a, b in zip(one.latents, many.latents, strict=True):
        assert a.active == pytest.approx(b.active, abs=0.05 + 1e-9)
        assert a.mean == pytest.approx(b.mean, rel=1e-2, abs=1e-6)


def test_pictures_that_cannot_be_read_are_passed_over_and_listed(
    conv_lens: Lens, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in pictures[:12]:
        shutil.copy(path, folder)
    (folder / "0005a.png").write_bytes(b"no picture")
    atlas = build_atlas(conv_lens, folder, shown=2, backbone=None)
    assert atlas.meta["pictures_used"] == 12
    assert [Path(name).name for name, _ in atlas.meta["pictures_failed"]] == ["0005a.png"]
    same(
        Atlas(atlas.latents, {}, atlas.tensors),
        Atlas(
            build_atlas(
                conv_lens, [p for p in sorted(folder.iterdir()) if p.name != "0005a.png"], shown=2, backbone=None
            ).latents,
            {},
            atlas.tensors,
        ),
    )
    for path in pictures[:12]:
        (folder / path.name).write_bytes(b"")
    with pytest.raises(FitError, match="could not be read"):
        build_atlas(conv_lens, folder)


def test_a_picture_that_disappears_between_the_passes_is_named(
    conv_lens: Lens, pictures: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "going"
    folder.mkdir()
    for path in pictures[:6]:
        shutil.copy(path, folder)

    def remove(what: str, done: int, total: int) -> None:
        if done == total and what == "Reading pictures":
            for path in folder.iterdir():
                path.unlink()

    with pytest.raises((InputError, PictureError), match="not any more"):
        build_atlas(conv_lens, folder, progress=remove)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shown": 0}, "shown"), ({"limit": 0}, "limit"), ({"backbone": "dino"}, "dinov2"), ({"scored": 1}, "scored")],
)
def test_bad_settings_are_refused(
    conv_lens: Lens, pictures: list[Path], options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_atlas(conv_lens, pictures[:3], **options)  # type: ignore[arg-type]


def test_a_lens_without_a_dictionary_is_refused(lens: Lens, pictures: list[Path]) -> None:
    with pytest.raises(InputError, match="has no dictionary"):
        build_atlas(lens, pictures[:3])


# -- files, order and search ------------------------------------------------------------------------------------------


@pytest.fixture
def atlas(lens: Lens, pictures: list[Path]) -> Atlas:
    return build_atlas(with_dictionary(lens), pictures[:40], shown=3, backbone=eyes)


def test_saved_and_loaded_it_is_the_same(atlas: Atlas, tmp_path: Path) -> None:
    atlas.save(tmp_path / "a")
    loaded = Atlas.load(tmp_path / "a")
    same(loaded, atlas)
    assert loaded.meta["summary"] == summary(atlas.latents) == atlas.meta["summary"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["atlas.json", "atlas.safetensors"]
    with pytest.raises(StoreError, match="exists already"):
        atlas.save(tmp_path / "a")


def test_damaged_atlases_are_refused(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Atlas.load(tmp_path / "none")
    target = atlas.save(tmp_path / "a")
    meta = json.loads((target / "atlas.json").read_text())
    meta["latents"].pop()
    (target / "atlas.json").write_text(json.dumps(meta))
    with pytest.raises(StoreError, match="19 latents but 20 directions"):
        Atlas.load(target)
    (target / "atlas.json").write_text(json.dumps({**meta, "schema_version": "9.0"}))
    with pytest.raises(StoreError, match=r"9\.0"):
        Atlas.load(target)
    (target / "atlas.safetensors").write_bytes(b"xx")
    with pytest.raises(StoreError, match="cannot be read"):
        Atlas.load(target)


def test_orders(atlas: Atlas) -> None:
    activities = [latent.active for latent in atlas.sorted()]
    assert activities == sorted(activities, reverse=True)
    scores = [latent.c2 for latent in atlas.sorted("c2")]
    known = [score for score in scores if score is not None]
    assert known == sorted(known, reverse=True)
    assert scores[: len(known)] == known
    assert [latent.index for latent in atlas.sorted("number")] == list(range(LATENTS))
    served = next(latent for latent in atlas.latents if latent.classes).classes[0].name
    chosen = atlas.sorted("contribution", class_name=served)
    assert chosen
    parts = [next(c.contribution for c in latent.classes if c.name == served) for latent in chosen]
    assert parts == sorted(parts, reverse=True)
    with pytest.raises(InputError, match="'activity'"):
        atlas.sorted("activty")
    with pytest.raises(InputError, match="class"):
        atlas.sorted(class_name="unicorn")


def named(atlas: Atlas, index: int, name: str) -> Atlas:
    latents = list(atlas.latents)
    latents[index] = replace(latents[index], name=replace(latents[index].name, name=name, q_value=0.01))
    return Atlas(tuple(latents), atlas.meta, atlas.tensors)


def test_search_by_words(atlas: Atlas) -> None:
    changed = named(atlas, 4, "striped fur")
    assert changed.search("FUR")[0].index == 4
    assert changed.search("fur striped")[0].index == 4
    assert [latent.index for latent in changed.search("fur") if latent.name.name == "striped fur"] == [4]
    assert changed.search("zebra crossing") == []
    with pytest.raises(InputError, match="at least one word"):
        changed.search("  ")


def test_search_by_any_phrase_finds_the_latent_that_points_at_it(atlas: Atlas, encoder) -> None:
    phrase = "grey plant"
    embedding = encoder.encode_phrases([phrase])[0] - atlas.tensors["text_mean"]
    tensors = dict(atlas.tensors)
    tensors["directions"] = tensors["directions"].clone()
    tensors["directions"][6] = normalize(embedding, dim=0).half()
    tensors["directions"][DEAD] = normalize(embedding, dim=0).half()
    found = Atlas(atlas.latents, atlas.meta, tensors).search_phrase(phrase, encoder, limit=5)
    assert len(found) == 5
    assert found[0][0].index == 6
    assert DEAD not in [latent.index for latent, _ in found]
    assert found[0][1] >= found[1][1]
    with pytest.raises(InputError, match="unheard"):
        atlas.search_phrase("unheard", encoder)
    with pytest.raises(InputError, match="was fitted with"):
        atlas.search_phrase(phrase, load_encoder("builtin:tiny"))


def test_packed_bytes_and_small_maps() -> None:
    items = [b"a", b"", b"xyz"]
    tensors = pack("t", items)
    assert [unpack(tensors, "t", i) for i in range(3)] == items
    maps = torch.randn(3, 128, 64, generator=torch.Generator().manual_seed(0))
    maps[2] = 0
    small, scales = small_maps(maps)
    assert small.shape == (3, 64, 64)
    expected = maps.view(3, 64, 2, 64).mean(2)
    torch.testing.assert_close(
        small.float() * scales[:, None, None] / 127, expected, atol=float(scales.max()) / 200, rtol=0
    )


def test_what_a_latent_does_not_see_is_darkened() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[:2] = 1
    shown = np.asarray(draw_pair(np.full((8, 8, 3), 200, np.uint8), heat)).astype(int)
    assert shown[0, 0, 0] == 200
    assert shown[-1, -1, 0] < 50
    assert np.asarray(draw_pair(np.full((8, 8, 3), 200, np.uint8), -heat)).max() < 50
