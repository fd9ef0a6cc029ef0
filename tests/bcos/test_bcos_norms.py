import pytest
import torch
from torch import nn

from whylens.bcos import (
    AllNormUncentered2d,
    BatchNormUncentered2d,
    DetachableLayerNorm,
    GroupNorm2d,
    PositionNorm2d,
    explanation_mode,
    instance_norm,
    picture_norm,
)


@pytest.fixture
def x():
    return torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


def randomised(norm):
    generator = torch.Generator().manual_seed(1)
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5, generator=generator)
    return norm.double()


def test_uncentred_batch_norm_divides_by_the_centred_deviation_and_moves_nothing(x):
    norm = randomised(BatchNormUncentered2d(6))
    out = norm(x)
    for c in range(6):
        values = x[:, c].reshape(-1)
        var = ((values - values.mean()) ** 2).mean()
        assert torch.allclose(out[:, c], norm.weight[c] * x[:, c] / (var + 1e-5).sqrt())
        assert norm.running_var[c] == pytest.approx(0.9 + 0.1 * float(var))
    assert int(norm.num_batches_tracked) == 1
    norm.eval()
    factor = norm.weight / (norm.running_var + 1e-5).sqrt()
    assert torch.allclose(norm(x), x * factor.view(-1, 1, 1))
    assert not bool(norm.running_mean.any())


def test_the_gradient_in_training_is_that_of_the_formula(x):
    norm = BatchNormUncentered2d(6).double()
    assert torch.autograd.gradcheck(norm, (x[:2, :, :2, :2].clone().requires_grad_(True),))


def test_all_norm_has_one_variance(x):
    norm = randomised(AllNormUncentered2d(6))
    assert torch.allclose(norm(x), norm.weight * x / (x.var(unbiased=False) + 1e-5).sqrt())
    assert norm.running_var.shape == (1,)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norms(x, groups, centered):
    norm = randomised(GroupNorm2d(groups, 6, centered=centered))
    out = norm(x)
    width = 6 // groups
    for n in range(3):
        for g in range(groups):
            part = x[n, g * width : (g + 1) * width]
            moved = part - part.mean() if centered else part
            expected = moved / (part.var(unbiased=False) + 1e-5).sqrt()
            expected = expected * norm.weight[g * width : (g + 1) * width].view(-1, 1, 1)
            assert torch.allclose(out[n, g * width : (g + 1) * width], expected)
    with explanation_mode(norm):
        assert torch.allclose(norm(x), out)


def test_named_group_norms(x):
    assert torch.allclose(instance_norm(6).double()(x), GroupNorm2d(6, 6).double()(x))
    assert torch.allclose(picture_norm(6, centered=True).double()(x), nn.GroupNorm(1, 6).double()(x))


@pytest.mark.parametrize("centered", [False, True])
def test_position_norm(x, centered):
    norm = randomised(PositionNorm2d(6, centered=centered))
    here = x[1, :, 2, 3]
    moved = here - here.mean() if centered else here
    expected = norm.weight * moved / (here.var(unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(norm(x)[1, :, 2, 3], expected)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_is_the_library_s_held_or_not(x, bias):
    norm = randomised(DetachableLayerNorm(5, bias=bias))
    own = nn.LayerNorm(5).double()
    own.load_state_dict({"weight": norm.weight, "bias": norm.bias if bias else torch.zeros(5)})
    assert torch.allclose(norm(x), own(x))
    with explanation_mode(norm):
        assert torch.allclose(norm(x), own(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupNorm2d(2, 6),
        lambda: GroupNorm2d(2, 6, centered=True),
        lambda: PositionNorm2d(6),
        lambda: PositionNorm2d(6, centered=True),
        lambda: DetachableLayerNorm((4, 5)),
        lambda: BatchNormUncentered2d(6),
        lambda: AllNormUncentered2d(6),
    ],
)
def test_held_norms_are_linear_maps_of_their_input(make, x):
    """Held in training mode too: the gradient's row times the input is the output, and the free one is another row."""
    norm = randomised(make())
    seed = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = []
    for held in (True, False):
        given = x.clone().requires_grad_(True)
        if held:
            with explanation_mode(norm):
                out = norm(given)
        else:
            out = norm(given)
        (row,) = torch.autograd.grad((out * seed).sum(), given)
        rows.append(row)
    assert float((rows[0] * x).sum()) == pytest.approx(float((out.detach() * seed).sum()), rel=1e-9)
    assert not torch.allclose(rows[0], rows[1])


def test_settings_without_weight():
    assert not list(BatchNormUncentered2d(4, affine=False).parameters())
    assert not list(GroupNorm2d(2, 4, affine=False).parameters())
    assert [n for n, _ in DetachableLayerNorm(4).named_parameters()] == ["weight"]
