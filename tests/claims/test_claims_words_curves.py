import dataclasses

import numpy as np
import pytest
import torch

from whylens.claims.planted_words import VARIANTS
from whylens.claims.words_curves import BOTH, CURVES, DELETION, INSERTION, list_areas, real_areas
from whylens.claims.world import ClaimPlan, ClaimWorld
from whylens.classifiers import Classifier


class Flat(torch.nn.Module):
    """Four pixels are the features, a linear map the head."""

    def __init__(self):
        super().__init__()
        self.flatten = torch.nn.Flatten()
        self.head = torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.flatten(x))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(Flat(), size=2, mean=(0,) * 3, std=(1,) * 3, class_names=["a", "b", "c"])


def probability(classifier, z, target, contrast):
    with torch.no_grad():
        logits = classifier.head(z[None].float())[0].double()
    chosen = logits if contrast is None else logits[[target, contrast]]
    return float(chosen.softmax(0)[target if contrast is None else 0])


@pytest.mark.parametrize("contrast", [None, 2])
def test_areas_are_those_of_projections(classifier, contrast):
    generator = torch.Generator().manual_seed(1)
    features, directions = torch.rand(3, 12, generator=generator), torch.randn(5, 12, generator=generator)
    mean = torch.rand(12, generator=generator)
    lists = {"whole": np.array([[0, 1], [2, 3], [4, 0]]), "short": np.array([[3, -1], [1, -1], [-1, -1]])}
    contrasts = None if contrast is None else np.full(3, contrast)
    found = list_areas(classifier, features, mean, directions, lists, np.array([1, 1, 1]), contrasts)
    for name, rows in lists.items():
        for n, row in enumerate(rows):
            inserted, deleted = [], []
            for count in range(3):
                spanned = directions[[i for i in row[:count] if i >= 0]].double()
                # Least squares, where the library has an orthonormal basis.
                offset = (features[n] - mean).double()
                part = spanned.T @ torch.linalg.lstsq(spanned.T, offset[:, None]).solution[:, 0] if len(spanned) else 0
                inserted.append(probability(classifier, mean.double() + part, 1, contrast))
                deleted.append(probability(classifier, features[n].double() - part, 1, contrast))
            for curve, values in ((INSERTION, inserted), (DELETION, deleted)):
                area = (values[0] + 2 * values[1] + values[2]) / 4
                assert found[name][curve][n] == pytest.approx(area, abs=1e-5)
            assert found[name][BOTH][n] == pytest.approx(found[name][INSERTION][n] - found[name][DELETION][n])


@pytest.mark.slow
def test_real_pictures_are_measured_once(tmp_path):
    from skimage.data import chelsea, coffee
    from skimage.io import imsave

    folder = tmp_path / "pictures"
    folder.mkdir()
    for n, picture in enumerate((chelsea(), coffee())):
        for part in range(4):
            imsave(folder / f"{n}-{part}.png", picture[part * 40 : part * 40 + 150, part * 40 : part * 40 + 150])
    world = ClaimWorld(ClaimPlan(images=folder, words_limit=8), tmp_path / "work", tmp_path, None)
    names = ("texter, exemplar", "texter, exemplar, dictionary", "text_to_concept, raw")
    chosen = {name: VARIANTS[name] for name in names}
    found = real_areas(world, chosen)
    assert set(found.values) == set(names)
    for own in found.values.values():
        assert set(own) == set(CURVES)
        assert all(len(own[curve]) == 8 and np.isfinite(own[curve]).all() for curve in CURVES)
        assert own[INSERTION].min() >= 0
        assert own[DELETION].max() <= 1
    # Eight pictures are too few for an aligner of their own.
    assert "held-out" in found.notes[0]
    again = real_areas(world, chosen)
    np.testing.assert_array_equal(again.values[names[0]][BOTH], found.values[names[0]][BOTH])
    other = real_areas(world, {"faithtrace": VARIANTS["faithtrace"]})
    assert set(other.values) == {"faithtrace"}
    nothing = real_areas(dataclasses.replace(world, plan=ClaimPlan()), chosen)
    assert "--images" in nothing
