import numpy as np
import torch
from map_networks import SIZE, Cnn, classifier, pictures, seeded
from scipy import ndimage

from whylens.checks import check_map_method
from whylens.maps import Edges, RandomMap

TARGETS = torch.tensor([1, 0])


def test_edges_equal_scipys_sobel() -> None:
    x = pictures()
    for found, picture in zip(Edges()(classifier(seeded(Cnn)), x, TARGETS), x.double().numpy(), strict=True):
        grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        expected = np.hypot(ndimage.sobel(grey, 0, mode="nearest"), ndimage.sobel(grey, 1, mode="nearest"))
        assert np.abs(found.array - expected).max() < 1e-5
        assert found.passes == 0


def test_a_random_map_is_uniform_and_belongs_to_picture_and_seed() -> None:
    model, x = classifier(seeded(Cnn)), pictures()
    first, second = (m.array for m in RandomMap()(model, x, TARGETS, seed=3))
    assert first.shape == SIZE
    assert 0 <= first.min() < 0.1
    assert 0.9 < first.max() < 1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5
    assert (RandomMap()(model, x[1:], TARGETS[1:], seed=3)[0].array == second).all()
    assert (RandomMap()(model, x, TARGETS, seed=4)[0].array != first).any()


def test_the_contract_is_kept_and_the_reader_is_told() -> None:
    model = classifier(seeded(Cnn))
    for method in (RandomMap(), Edges()):
        check_map_method(method, model, images=pictures(3))
        assert any("does not depend on the network" in note for note in method(model, pictures(), TARGETS)[0].notes)
