import hashlib
import subprocess
import sys

import numpy as np
import pytest

from whylens.errors import InputError
from whylens.planted.rendering import MASKS, render, render_batch
from whylens.planted.scene import ATTRIBUTES, CARRIERS, Scene, sample_scene
from whylens.planted.shapes import DISTANCES, REACH

SCENES = [sample_scene(np.random.default_rng(11 + i)) for i in range(24)]
COMMON = {"texture": "plain", "size": "large", "position": "centre", "background": "sky"}


def _grow(mask, steps=1):
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = sum(
            padded[1 + a : 1 + a + mask.shape[0], 1 + b : 1 + b + mask.shape[1]] for a in (-1, 0, 1) for b in (-1, 0, 1)
        )
        mask = mask > 0
    return mask


def _digest():
    digest = hashlib.sha256()
    for i, size in enumerate((64, 64, 48, 128, 33)):
        image, masks = render(sample_scene(np.random.default_rng(i), {"second": "present", "mark": "present"}), size)
        digest.update(image.tobytes())
        for name in MASKS:
            digest.update(masks[name].tobytes())
    # Every background, shape and texture once.
    for i in range(8):
        values = {a: ATTRIBUTES[a][i % len(ATTRIBUTES[a])] for a in ("background", "shape", "texture", "second_shape")}
        digest.update(render(sample_scene(np.random.default_rng(50 + i), {**values, "second": "present"}))[0].tobytes())
    return digest.hexdigest()


def test_pixels_are_pinned():
    assert _digest() == "57dd743882b7c4396348d18c4495746627d5d38d539a3cd99ef86f772dbb6a3a"


def test_another_process_renders_the_same():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_rendering as t; print(t._digest())"
    folder = __file__.rsplit("/", 1)[0]
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _digest()


def test_batches_do_not_matter():
    together = render_batch(SCENES)
    backwards = render_batch(SCENES[::-1])
    np.testing.assert_array_equal(together.images, backwards.images[::-1])
    for i, scene in enumerate(SCENES):
        image, masks = render(scene)
        np.testing.assert_array_equal(image, together.images[i])
        for name in MASKS:
            np.testing.assert_array_equal(masks[name], together.masks[name][i])


def test_masks_partition_the_picture():
    masks = render_batch(SCENES).masks
    assert (sum(masks[name].astype(int) for name in MASKS) == 1).all()
    for i, scene in enumerate(SCENES):
        assert masks["object"][i].sum() > 60
        assert masks["second"][i].any() == (scene.second == "present")
        assert masks["mark"][i].any() == (scene.mark == "present")


@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_a_changed_attribute_changes_its_carrier_only(attribute):
    carrier = CARRIERS[attribute]
    for scene in SCENES[:12]:
        values = [scene.value(attribute), *ATTRIBUTES[attribute]]
        batch = render_batch([scene.with_value(attribute, value) for value in values])
        old, old_mask = batch.images[0], batch.masks[carrier][0]
        for value, new, new_mask in zip(values, batch.images, batch.masks[carrier], strict=True):
            different = (old != new).any(axis=2)
            # Two pixels: the sharp tips of stars and crescents cover less than half of their last pixels.
            assert not (different & ~_grow(old_mask | new_mask, 2)).any()
            shows = attribute in scene.active() and value != scene.value(attribute)
            assert different.any() == shows, (attribute, scene.value(attribute), value)


@pytest.mark.parametrize("name", list(DISTANCES))
def test_distances_against_a_traced_outline(name):
    """The signed distance agrees with the distance to a finely sampled zero line, and its sign with a point inside."""
    axis = np.linspace(-1.6, 1.6, 801, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    d = DISTANCES[name](x, y)
    inside = d < 0
    rim = np.argwhere(
        inside & (~np.roll(inside, 1, 0) | ~np.roll(inside, -1, 0) | ~np.roll(inside, 1, 1) | ~np.roll(inside, -1, 1))
    )
    outline = axis[rim[:, ::-1]]
    assert np.sqrt((outline**2).sum(1)).max() < REACH
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (400, 2)).astype(np.float32)
    own = DISTANCES[name](points[:, 0], points[:, 1])
    traced = np.sqrt(((points[:, None] - outline[None]) ** 2).sum(2)).min(1)
    near = traced < 0.15
    # A crescent's and heart's distance is a bound near corners where two discs meet.
    loose = name in ("crescent", "heart")
    worst = np.quantile(np.abs(np.abs(own) - traced)[near], 0.9 if loose else 1.0)
    assert worst < 0.009
    assert near.sum() > 40


@pytest.mark.parametrize(
    ("name", "area"), [("circle", np.pi), ("square", 1.66**2), ("ring", np.pi * (1.04**2 - 0.36**2))]
)
def test_mask_areas_follow_the_formula(name, area):
    scene = Scene(shape=name, colour="red", **COMMON)
    mask = render(scene, 256)[1]["object"]
    assert mask.sum() / 256**2 == pytest.approx(area * 0.262**2, rel=0.015)


def test_edges_are_anti_aliased():
    """Mean of the picture at 64 px equals that of an 8 times finer rendering reduced to 64 px, edges included."""
    for shape in DISTANCES:
        scene = Scene(shape=shape, colour="white", rotation=0.7, **{**COMMON, "background": "night"})
        coarse = render(scene, 64)[0].astype(float)
        fine = render(scene, 512)[0].reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
        mask = _grow(render(scene, 64)[1]["object"])
        gap = np.abs(coarse - fine)[mask].mean()
        aliased = np.abs(render(scene, 512)[0][4::8, 4::8].astype(float) - fine)[mask].mean()
        assert gap < 9
        assert gap < 0.75 * aliased


def test_sizes_show_the_same_scene():
    for scene in SCENES[:8]:
        small = render(scene, 64)
        large = render(scene, 128)
        halved = large[0].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small[0]).mean() < 9
        for name in MASKS:
            halved_mask = large[1][name].reshape(64, 2, 64, 2).mean(axis=(1, 3)) > 0.5
            assert (halved_mask != small[1][name]).mean() < 0.02


def test_nuisances_change_the_picture():
    scene = SCENES[0].with_values({"second": "present"})
    plain = scene.to_dict()
    image = render(scene)[0]
    for name, value in plain.items():
        if isinstance(value, str):
            continue
        other = Scene.from_dict({**plain, name: value + 1 if isinstance(value, int) else -0.9 if value > 0 else 0.9})
        if name.endswith(("phase_x", "phase_y")):
            other = other.with_values({"texture": "dotted", "second_texture": "dotted"})
            base = render(scene.with_values({"texture": "dotted", "second_texture": "dotted"}))[0]
        else:
            base = image
        assert (render(other)[0] != base).any(), name


def test_colours_are_told_apart_by_their_pixels():
    """The mean colour inside the mask names the colour among all eight: nearest mean of other draws."""
    generator = np.random.default_rng(5)
    means = {}
    for colour in ATTRIBUTES["colour"]:
        scenes = [sample_scene(generator, {"colour": colour, "texture": "plain", "second": "none"}) for _ in range(24)]
        batch = render_batch(scenes)
        means[colour] = np.array([im[m].mean(0) for im, m in zip(batch.images, batch.masks["object"], strict=True)])
    centres = np.array([m[:12].mean(0) for m in means.values()])
    for k, values in enumerate(means.values()):
        nearest = ((values[12:, None] - centres) ** 2).sum(2).argmin(1)
        assert (nearest == k).mean() > 0.9


@pytest.mark.parametrize("size", [8, 4000, 64.0, True, "64"])
def test_bad_size(size):
    with pytest.raises(InputError, match="whole number"):
        render(SCENES[0], size)


def test_bad_scenes():
    with pytest.raises(InputError, match="dict"):
        render_batch([SCENES[0], {}])
    assert render_batch([]).images.shape == (0, 64, 64, 3)
