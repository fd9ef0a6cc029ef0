"""Feature visualisation: the parameterisation, the optimiser, what it reaches, randomness, the cache, silent units."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from whylens.classifiers import Classifier
from whylens.dictionaries import Dictionary, DictionarySettings, Origin
from whylens.errors import InputError, ModelError
from whylens.networks import SmallResNet, initialise
from whylens.words import ConceptImage, MacoSettings, concept_images, maco_preset
from whylens.words.maco import CHECK_CROPS, PAPER, Units, maco_settings
from whylens.words.maco_cache import MacoCache, image_key
from whylens.words.maco_canvas import crop, on_white, random_boxes, synthesise
from whylens.words.nadam import NAdam
from whylens.words.spectrum import power_law_spectrum

QUICK = maco_preset("fast", steps=6, crops=2, canvas=1.5, precision="float32")


@pytest.fixture(scope="module")
def network() -> Classifier:
    module = SmallResNet(5, (4, 8, 12), (0, 1))
    initialise(module, 3)
    return Classifier(module, size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), name="tiny")


def latents(network: Classifier, *, bias: float = 0.0, count: int = 20, k: int = 4) -> Dictionary:
    rows = torch.nn.functional.normalize(
        torch.randn(count, network.width, generator=torch.Generator().manual_seed(5)), dim=1
    )
    return Dictionary(
        rows,
        rows,
        DictionarySettings(latents=count, k=k),
        bias=torch.full((count,), bias),
        origin=Origin.of(network),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- parameterisation


def test_only_phases_shape_the_picture() -> None:
    """Against numpy: with the standardised phases and the magnitude of its spectrum, before the sigmoid."""
    side = 10
    phase, magnitude = torch.randn(1, 3, side, side // 2 + 1, generator=generator()), power_law_spectrum((side, side))
    image = synthesise(phase, magnitude, side)
    assert image.shape == (1, 3, side, side)
    assert 0 < float(image.min()) < float(image.max()) < 1
    p = phase[0].double().numpy()
    p = (p - p.mean()) / (p.std(ddof=1) + 1e-4)
    channels = np.fft.irfft2(magnitude.double().numpy() * np.exp(1j * p), s=(side, side))
    channels = (channels - channels.mean()) / (channels.std(ddof=1) + 1e-4)
    matrix = np.array(
        [
            [0.56282854, 0.58447580, 0.58447580],
            [0.19482528, 0, -0.19482528],
            [0.04329450, -0.10823626, 0.06494176],
        ]
    )
    expected = 1 / (1 + np.exp(-np.einsum("dhw,dc->chw", channels, matrix)))
    np.testing.assert_allclose(image[0].double().numpy(), expected, atol=2e-5)
    # Magnitudes stay those of the spectrum up to one factor, but where a real signal allows no phase.
    found = np.abs(np.fft.rfft2(channels))[:, :, 1:-1]
    ratio = found / magnitude.double().numpy()[:, :, 1:-1]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)


def test_crops_of_the_paper_have_its_sizes_and_may_leave_the_canvas() -> None:
    boxes = random_boxes(PAPER, 2000, generator())
    sides = boxes[:, 2] - boxes[:, 0]
    torch.testing.assert_close(sides, boxes[:, 3] - boxes[:, 1])
    assert float(sides.min()) >= 0.25 - 1e-5
    assert float(sides.max()) <= 0.30 + 1e-5
    assert float(sides.mean()) == pytest.approx(0.275, abs=0.005)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert float(centres.std()) == pytest.approx(0.15, abs=0.01)
    outside = ((boxes < 0) | (boxes > 1)).any(1).float().mean()
    assert 0.005 < float(outside) < 0.1
    inside = random_boxes(PAPER, 2000, generator(), inside=True)
    assert float(inside.min()) >= -1e-6
    assert float(inside.max()) <= 1 + 1e-6


def test_the_paper_preset_has_the_published_settings() -> None:
    paper = maco_preset("paper")
    assert (paper.steps, paper.crops, paper.rate, paper.noise, paper.final_crops) == (512, 6, 1.0, 0.05, 6)
    assert round(paper.canvas * 224) == 1280
    assert (paper.smallest, paper.largest, paper.spread, paper.oversampling) == (0.25, 0.30, 0.15, 2.0)
    assert (paper.decay, paper.precision) == ("none", "float32")


def test_crops_are_the_picture_seen_through_the_box() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40).contiguous()
    found = crop(ramp, torch.tensor([[[0.25, 0.25, 0.75, 0.75]]]), (10, 10), 1.0)
    middle = (torch.arange(10) + 0.5) / 10 * 20 + 10 - 0.5
    torch.testing.assert_close(found[0, 0, 5], middle / 39, atol=0.01, rtol=0)
    beyond = crop(torch.ones(1, 3, 40, 40), torch.tensor([[[-0.5, 0.2, 0.0, 0.7]]]), (10, 10), 1.0)
    assert float(beyond[..., :8].abs().max()) == 0
    assert crop(ramp, torch.tensor([[[0.25, 0.25, 0.75, 0.75]]]), (10, 10), 2.0).shape == (1, 3, 10, 10)


def test_transparency_is_finite_whatever_was_looked_at() -> None:
    images = torch.rand(4, 3, 20, 20, generator=generator())
    nowhere, spot, tiny, everywhere = torch.zeros(4, 20, 20).unbind()
    spot[3, 4], tiny[:], everywhere[:] = 2.0, 1e-30, 3.0
    shown = on_white(images, torch.stack([nowhere, spot, tiny, everywhere]))
    assert bool(torch.isfinite(shown).all())
    assert float(shown.min()) >= 0
    assert float(shown.max()) <= 1
    # Only one pixel was ever looked at: the rest is white.
    assert float(shown[1].mean(0).masked_fill(spot > 0, 1.0).min()) == 1
    # Alike everywhere: the stretched picture itself.
    low, high = torch.quantile(images[3].flatten(), torch.tensor([0.01, 0.99]))
    torch.testing.assert_close(shown[3], (images[3].clamp(low, high) - low) / (high - low), atol=1e-5, rtol=1e-5)


# --- optimisation


def test_nadam_equals_that_of_torch() -> None:
    start = torch.randn(4, 5, generator=generator())
    ours, theirs = NAdam(start), torch.nn.Parameter(start.clone())
    reference = torch.optim.NAdam([theirs], lr=0.3)
    values = start
    for _ in range(20):
        theirs.grad = (theirs.detach() - 1).pow(3)
        values = ours.step((values - 1).pow(3), 0.3)
        reference.step()
        torch.testing.assert_close(values, theirs.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_dictionary", [False, True])
def test_the_objective_rises_and_nothing_stays_on_the_model(network: Classifier, with_dictionary: bool) -> None:
    dictionary = latents(network) if with_dictionary else None
    parameters = list(network.module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    mode = network.module.training
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    settings = dataclasses.replace(QUICK, steps=40, crops=4)
    (image,) = concept_images(network, [[1, 3]], dictionary=dictionary, settings=settings, seed=0, strict=False)
    assert image.history.shape == (40,)
    assert float(image.history[-8:].mean()) > float(image.history[:4].mean())
    assert image.objective > float(image.history[:4].mean())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert network.module.training == mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert image.picture.dtype == torch.uint8
    assert image.picture.shape == (24, 24, 3)
    assert image.features.shape == (QUICK.final_crops, network.width)
    assert image.passes == 40 * 4 + (CHECK_CROPS + 6) / 2


def test_values_are_those_of_the_dictionary(network: Classifier) -> None:
    dictionary = latents(network, bias=0.1)
    z = torch.rand(2 * 3, network.width, generator=generator())
    units = Units.of([(0, 4, 7), (2,)], dictionary, torch.device("cpu"))
    pre = dictionary.encode(z, pre=True).view(2, 3, -1).mean(1)
    codes = dictionary.encode(z).view(2, 3, -1)
    expected = torch.stack([pre[0, [0, 4, 7]], torch.stack([pre[1, 2], *torch.zeros(2)])])
    torch.testing.assert_close(units.values(z, 3), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(units.values(z, 3, codes=True)[0], codes[0].mean(0)[[0, 4, 7]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(units.peaks(z, 3)[1, 0], codes[1, :, 2].amax(), atol=1e-5, rtol=1e-5)
    plain = Units.of([(5,)], None, torch.device("cpu"))
    torch.testing.assert_close(plain.values(z, 6)[0, 0], z[:, 5].mean())


def test_a_silent_latent_still_has_a_gradient(network: Classifier) -> None:
    """With a bias that keeps every latent silent, codes have no gradient and stop; pre-codes move."""
    dictionary = latents(network, bias=-1e3)
    settings = dataclasses.replace(QUICK, steps=12, crops=4)
    (image,) = concept_images(network, [[2]], dictionary=dictionary, settings=settings, strict=False)
    assert float(image.history[-3:].mean()) > float(image.history[0])
    assert image.silent == (2,)
    with pytest.raises(ModelError, match=r"latents 2 respond.*12 steps"):
        concept_images(network, [[2]], dictionary=dictionary, settings=settings)
    codes = dataclasses.replace(settings, objective="codes")
    (still,) = concept_images(network, [[2]], dictionary=dictionary, settings=codes, strict=False)
    assert float(still.history.abs().max()) == 0
    assert bool(torch.isfinite(still.features).all())


# --- randomness


def test_a_set_gives_the_same_whatever_its_neighbours(network: Classifier) -> None:
    alone = concept_images(network, [[1, 2]], settings=QUICK, seed=4)[0]
    first, second, again = concept_images(network, [[5], [2, 1, 2], [1, 2]], settings=QUICK, seed=4)
    assert second is again
    assert torch.equal(alone.features, second.features)
    assert torch.equal(alone.history, second.history)
    assert not torch.equal(first.history, second.history)
    other = concept_images(network, [[1, 2]], settings=QUICK, seed=5)[0]
    assert not torch.equal(other.history, alone.history)
    together = concept_images(network, [[5], [1, 2]], settings=dataclasses.replace(QUICK, steps=2), seed=4, batch=2)
    single = concept_images(network, [[1, 2]], settings=dataclasses.replace(QUICK, steps=2), seed=4)[0]
    torch.testing.assert_close(together[1].history, single.history, atol=1e-3, rtol=1e-3)


# --- cache


def test_a_cached_picture_costs_nothing_and_is_the_same(network: Classifier, tmp_path: Path) -> None:
    options = {"settings": QUICK, "seed": 1, "cache": tmp_path, "strict": False}
    (made,) = concept_images(network, [[3]], **options)
    (read,) = concept_images(network, [[3]], **options)
    assert made.passes > 0
    assert read.passes == 0
    for field in ("picture", "features", "values", "peaks", "history"):
        assert torch.equal(getattr(made, field), getattr(read, field))
    for changed in (
        concept_images(network, [[3]], **{**options, "seed": 2}),
        concept_images(network, [[3, 4]], **options),
        concept_images(network, [[3]], **{**options, "settings": dataclasses.replace(QUICK, rate=0.9)}),
        concept_images(network, [[3]], dictionary=latents(network), **options),
        concept_images(network, [[3]], spectrum=torch.ones(3, 4, 3), **options),
    ):
        assert changed[0].passes > 0


@pytest.mark.parametrize("damage", ["cut", "value", "other", "nonsense"])
def test_damaged_files_are_found_and_made_again(network: Classifier, tmp_path: Path, damage: str) -> None:
    options = {"settings": QUICK, "cache": tmp_path}
    (made,) = concept_images(network, [[3]], **options)
    (file,) = tmp_path.rglob("*.safetensors")
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "nonsense":
        file.write_bytes(b"no tensors")
    elif damage == "value":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        # The file of another configuration under this one's name.
        key = image_key(network, None, None, QUICK, (4,), 0)
        MacoCache(tmp_path).write(key, made)
        file.write_bytes(MacoCache(tmp_path).path(key).read_bytes())
    (again,) = concept_images(network, [[3]], **options)
    assert again.passes > 0
    assert torch.equal(again.features, made.features)
    assert concept_images(network, [[3]], **options)[0].passes == 0


def test_a_file_without_a_checksum_is_not_believed(network: Classifier, tmp_path: Path) -> None:
    (made,) = concept_images(network, [[3]], settings=QUICK, cache=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    save_file({**load_file(file), "features": made.features + 1}, file)
    assert concept_images(network, [[3]], settings=QUICK, cache=tmp_path)[0].passes > 0


def test_a_folder_that_cannot_be_written_costs_the_caching_only(network: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be kept"):
        (made,) = concept_images(network, [[3]], settings=QUICK, cache=tmp_path / "file")
    assert isinstance(made, ConceptImage)


# --- what cannot be used


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"canvas": 0.0}, "canvas must be over 0"),
        ({"noise": -1.0}, "noise must not be negative"),
        ({"smallest": 0.4}, "smallest <= largest"),
        ({"decay": "linear"}, "decay"),
        ({"objective": "logits"}, "objective"),
        ({"precision": "half"}, "precision"),
        ({"stepps": 3}, "Did you mean 'steps'"),
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        maco_preset("paper", **changes)


def test_settings_come_back_from_a_record() -> None:
    given = maco_preset("paper", steps=7, noise=0.1)
    assert maco_settings(dataclasses.asdict(given)) == given
    assert maco_settings(given) is given
    assert maco_settings("paper") == PAPER
    with pytest.raises(InputError, match="these are 3"):
        maco_settings(3)


def test_units_and_dictionaries_that_cannot_be_used(network: Classifier) -> None:
    with pytest.raises(InputError, match="no unit 12; accepted are 0 to 11"):
        concept_images(network, [[12]], settings=QUICK)
    with pytest.raises(InputError, match="empty"):
        concept_images(network, [[]], settings=QUICK)
    with pytest.raises(InputError, match="preset"):
        maco_preset("papr")
    with pytest.raises(InputError, match="encodes the"):
        concept_images(network.at("stages.0"), [[1]], dictionary=latents(network), settings=QUICK)
    other = SmallResNet(5, (4, 8, 12), (0, 1))
    initialise(other, 9)
    with pytest.raises(InputError, match="other weights"):
        concept_images(Classifier(other, size=16, name="other"), [[1]], dictionary=latents(network), settings=QUICK)
    assert isinstance(QUICK, MacoSettings)


def test_features_with_positions_are_averaged(network: Classifier) -> None:
    (image,) = concept_images(network.at("stages"), [[0, 2]], settings=QUICK)
    assert image.features.shape == (QUICK.final_crops, network.width)
