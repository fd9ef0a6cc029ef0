import hashlib

import numpy as np
import pytest
import torch

from whylens.randomness import derive_seed, numpy_generator, picture_hash, torch_generator


def draws(pictures, seed=0):
    """What a method draws for every picture of a batch."""
    return [torch.rand(4, generator=torch_generator(seed, "masks", picture_hash(x))) for x in pictures]


def test_draws_do_not_depend_on_the_neighbours():
    pictures = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alone = [draws(pictures[i : i + 1])[0] for i in range(6)]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 2, 0]):
        for i, drawn in zip(order, draws(pictures[order]), strict=True):
            assert torch.equal(drawn, alone[i])
    assert len({tuple(d.tolist()) for d in alone}) == 6
    assert not torch.equal(draws(pictures[:1], seed=1)[0], alone[0])


def test_the_global_generators_are_neither_read_nor_moved():
    picture = torch.zeros(3, 4, 4)
    torch.manual_seed(0)
    np.random.seed(0)
    first = draws([picture])[0]
    after = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    assert torch.equal(after[0], torch.rand(3))
    assert (after[1] == np.random.rand(3)).all()
    torch.manual_seed(99)
    assert torch.equal(draws([picture])[0], first)


def test_picture_hash_rests_on_8_bit_values():
    levels = torch.arange(3 * 4 * 4).reshape(3, 4, 4) * 5
    picture = levels / 255
    expected = picture_hash(picture)
    noise = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.002
    assert picture_hash(picture + noise) == expected
    assert picture_hash(picture.double()) == expected
    assert picture_hash(picture.requires_grad_()) == expected
    assert picture_hash(picture.detach().permute(1, 2, 0).contiguous().permute(2, 0, 1)) == expected
    changed = picture.detach().clone()
    changed[0, 0, 0] += 1 / 255
    assert picture_hash(changed) != expected


@pytest.mark.parametrize("seed", [0, -1, 2**70, np.int64(3)])
def test_seeds_fit_both_generators(seed):
    derived = derive_seed(seed, "x")
    assert 0 <= derived < 2**63
    assert derived == derive_seed(int(seed), "x")
    torch_generator(seed)
    numpy_generator(seed)


def test_names_are_framed():
    others = [("ab",), ("a", "b"), ("a\x1fb",), ("a", "b", ""), ()]
    assert len({derive_seed(0, *names) for names in others}) == len(others)
    assert derive_seed(1, "2") != derive_seed(12)


def test_numpy_draws_repeat():
    assert (numpy_generator(3, "a").random(5) == numpy_generator(3, "a").random(5)).all()
    assert (numpy_generator(3, "a").random(5) != numpy_generator(3, "b").random(5)).all()


def test_seeds_are_the_same_on_every_machine():
    # A change here changes every published number.
    expected = int.from_bytes(hashlib.sha256(b"text:1;0text:5;masks").digest()[:8], "big") >> 1
    assert derive_seed(0, "masks") == expected
    assert derive_seed(0) == 618395175149249284
