import pytest
import torch
from map_networks import SIZE, Cnn, Linear, Quadratic, classifier, pictures, seeded
from torch import nn

from whylens.checks import check_map_method
from whylens.errors import InputError, ModelError
from whylens.maps import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from whylens.randomness import picture_hash, torch_generator

FIRST = torch.tensor([0, 0])


def arrays(method, model, x, targets=FIRST, **options):
    return torch.stack([torch.from_numpy(m.array) for m in method(model, x, targets, **options)])


@pytest.fixture(scope="module")
def smooth():
    """A network without kinks, in double precision."""
    return classifier(seeded(lambda: Cnn(nn.Softplus)).double())


def test_gradient_equals_finite_differences(smooth) -> None:
    x = pictures()
    found = arrays(Gradient(channels="signed"), smooth, x)
    step = 1e-5
    with torch.no_grad():
        for i, row, column in [(0, 0, 0), (0, 5, 9), (1, 11, 15), (1, 3, 2)]:
            slope = 0.0
            for channel in range(3):
                shift = torch.zeros_like(x[:1], dtype=torch.float64)
                shift[0, channel, row, column] = step
                up, down = (smooth.module(x[i : i + 1].double() + sign * shift)[0, 0] for sign in (1, -1))
                slope += float((up - down) / (2 * step))
            assert float(found[i, row, column]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_channels_become_one_number_as_stated() -> None:
    model = classifier(Linear())
    weight = model.module.weight[0]
    x = pictures()
    assert torch.allclose(arrays(Gradient(channels="signed"), model, x)[0], weight.sum(0), atol=1e-6)
    assert torch.allclose(arrays(Gradient(channels="absolute"), model, x)[0], weight.abs().sum(0), atol=1e-6)
    assert torch.allclose(arrays(Gradient(channels="maximum"), model, x)[0], weight.abs().amax(0), atol=1e-6)


def test_a_contrast_explains_the_difference_of_two_logits() -> None:
    model = classifier(Linear())
    weight = model.module.weight
    found = arrays(Gradient(channels="signed"), model, pictures(), contrasts=torch.tensor([2, 1]))
    assert torch.allclose(found[0], (weight[0] - weight[2]).sum(0), atol=1e-6)
    assert torch.allclose(found[1], (weight[0] - weight[1]).sum(0), atol=1e-6)


@pytest.mark.parametrize(("reference", "value"), [("mean", 0.0), ("black", 0.0), ("grey", 0.5), ("white", 1.0)])
def test_input_x_gradient_of_a_linear_model(reference: str, value: float) -> None:
    model = classifier(Linear())
    x = pictures()
    found = arrays(InputXGradient(reference=reference), model, x)
    assert torch.allclose(found, (model.module.weight[0] * (x - value)).sum(1), atol=1e-5)


def test_the_mean_reference_is_the_classifiers_own_mean() -> None:
    from whylens.classifiers import Classifier

    model = Classifier(Linear().eval(), size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    x = pictures()
    expected = model.module.weight[0] / 0.5 * (x - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1))
    assert torch.allclose(arrays(InputXGradient(), model, x), expected.sum(1), atol=1e-4)


@pytest.mark.parametrize("quadrature", ["gausslegendre", "riemann_middle"])
def test_integrated_gradients_of_a_quadratic_model(quadrature: str) -> None:
    model = classifier(Quadratic())
    x = pictures()
    found = arrays(IntegratedGradients(steps=3, reference="grey", quadrature=quadrature), model, x)
    expected = (model.module.weight[0] * (x.square() - 0.25)).sum(1)
    # Both rules are exact for a gradient that is linear on the way.
    assert torch.allclose(found, expected, atol=1e-4)


def test_integrated_gradients_add_up_to_the_difference_of_scores(smooth) -> None:
    x = pictures()
    found = arrays(IntegratedGradients(steps=30, reference="black"), smooth, x)
    with torch.no_grad():
        gap = smooth.module(x.double()) - smooth.module(torch.zeros_like(x, dtype=torch.float64))
    assert torch.allclose(found.double().sum((1, 2)), gap[:, 0], rtol=1e-4, atol=1e-6)


def test_integrated_gradients_equal_a_slow_sum(smooth) -> None:
    x = pictures(1).double()
    total = torch.zeros_like(x)
    for step in range(20):
        point = (x * (step + 0.5) / 20).requires_grad_(True)
        total += torch.autograd.grad(smooth.module(point)[0, 1], point)[0] / 20
    method = IntegratedGradients(steps=20, reference="black", quadrature="riemann_middle")
    found = arrays(method, smooth, x.float(), torch.tensor([1]))
    assert torch.allclose(found.double(), (total * x).sum(1), rtol=1e-4, atol=1e-7)


def test_smoothgrad_without_noise_is_the_gradient(smooth) -> None:
    x = pictures()
    plain = arrays(Gradient(), smooth, x)
    assert torch.allclose(arrays(SmoothGrad(samples=3, noise=0), smooth, x), plain, rtol=1e-5, atol=1e-9)


def test_smoothgrad_averages_over_the_stated_noise() -> None:
    model = classifier(Quadratic())
    x = pictures()
    method = SmoothGrad(samples=7, noise=0.3, channels="signed")
    found = arrays(method, model, x, seed=5)
    for i in range(2):
        generator = torch_generator(5, picture_hash(x[i]), "smoothgrad")
        noise = torch.randn((7, 3, *SIZE), generator=generator) * 0.3 * (x[i].max() - x[i].min())
        expected = 2 * model.module.weight[0] * (x[i] + noise.mean(0))
        assert torch.allclose(found[i], expected.sum(0), atol=1e-4)
    squared = arrays(SmoothGrad(samples=7, noise=0, squared=True, channels="signed"), model, x)
    assert torch.allclose(squared[0], (2 * model.module.weight[0] * x[0]).square().sum(0), rtol=1e-4)


def test_passes_are_counted() -> None:
    model, x = classifier(Linear()), pictures()
    for method, passes in [
        (Gradient(), 1),
        (InputXGradient(), 1),
        (IntegratedGradients(steps=11), 11),
        (SmoothGrad(samples=5), 5),
    ]:
        assert [m.passes for m in method(model, x, FIRST)] == [passes, passes]
        # Finding the predicted class is a forward pass more.
        assert method(model, x)[0].passes == passes + 0.5


class Detached(Linear):
    def forward(self, x):
        return super().forward(x.detach())


class Steep(Linear):
    """An infinite slope where a pixel is 0."""

    def forward(self, x):
        return super().forward(x.sqrt())


@pytest.mark.parametrize("method", [Gradient(), InputXGradient(), IntegratedGradients(steps=2), SmoothGrad(samples=2)])
def test_networks_without_a_usable_gradient_are_refused(method) -> None:
    with pytest.raises(ModelError, match="does not depend on the picture"):
        method(classifier(Detached()), pictures(), FIRST)
    if isinstance(method, Gradient):
        with pytest.raises(ModelError, match="NaN or infinite"):
            method(classifier(Steep()), torch.zeros(1, 3, *SIZE), torch.tensor([0]))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Gradient(channels="absolut"), "Did you mean 'absolute'"),
        (InputXGradient(reference="noise"), "Unknown input_x_gradient setting reference"),
        (IntegratedGradients(steps=0), "steps must be a whole number of at least 1; it is 0"),
        (IntegratedGradients(quadrature="simpson"), "gausslegendre"),
        (SmoothGrad(samples=2.5), "samples must be a whole number"),
        (SmoothGrad(noise=-1), "noise must be a number of at least 0; it is -1"),
        (SmoothGrad(noise=float("nan")), "noise must be a number"),
        (SmoothGrad(squared="yes"), "squared must be True or False"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(method, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(classifier(Linear()), pictures(), FIRST)


@pytest.mark.parametrize(
    "method",
    [Gradient(), InputXGradient(reference="blur"), IntegratedGradients(steps=4), SmoothGrad(samples=3)],
    ids=repr,
)
def test_the_contract_is_kept(method) -> None:
    check_map_method(method, classifier(seeded(Cnn)), images=pictures(3))
