import pytest
import torch

from whylens.errors import InputError
from whylens.words import FaithTrace, reverse_directions
from whylens.words.layers import _positions, layer_gradient


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def jacobian_products(lens, x: torch.Tensor, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the predicted logit, and Jacobian of the pooled features, by the layer's output, row by row."""
    classifier = lens.classifier
    kept = []
    handle = classifier.module.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o))
    try:
        z, logits = classifier.features_and_logits(x.clone().requires_grad_())
    finally:
        handle.remove()
    (a,) = kept
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), a, retain_graph=True)
    pooled = classifier.pool(z)
    rows = [torch.autograd.grad(pooled[:, j].sum(), a, retain_graph=True)[0] for j in range(pooled.shape[1])]
    return gradient, torch.stack(rows, 1)


@pytest.mark.parametrize("layer", ["stem", "stages.0", "stages.1"])
def test_scores_and_maps_equal_the_jacobian_written_out(lens, layer: str) -> None:
    x = pictures()
    gradient, jacobian = jacobian_products(lens, x, layer)
    rows = reverse_directions(lens)
    pulled = torch.einsum("td,bdchw->btchw", rows, jacobian)
    maps = (pulled * gradient[:, None]).sum(2)
    expected = maps.sum((2, 3))
    seen = layer_gradient(lens.classifier, x, layer, None, None, "logit")
    torch.testing.assert_close(seen.gradient @ rows.T, expected, rtol=1e-3, atol=1e-5)
    method = FaithTrace(layer=layer, direction="reverse", weighting="none", k=None)
    for i, words in enumerate(method(lens, x)):
        for phrase in words:
            t = lens.bank.phrases.index(phrase.text)
            gate = lens.statistics.carried[t] > 0
            assert phrase.score == pytest.approx(float(expected[i, t]) * float(gate), rel=1e-3, abs=1e-5)
        assert not words.class_level
        assert words.protocol == f"faithtrace/reverse/none/logit/layer={layer}@1"
    got = method.phrase_maps(lens, x, [1, 4])
    torch.testing.assert_close(got, maps[:, [1, 4]], rtol=1e-3, atol=1e-6)


def test_the_network_is_left_alone_and_bad_layers_are_named(lens) -> None:
    x = pictures()
    module = lens.classifier.module
    before = sum(len(m._forward_hooks) for m in module.modules())
    with pytest.raises(InputError, match=r"Unknown layer 'stages\.9'"):
        FaithTrace(layer="stages.9")(lens, x)
    with pytest.raises(InputError, match="do not depend on"):
        FaithTrace(layer="fc")(lens, x)
    with pytest.raises(InputError, match="no map"):
        FaithTrace(layer="flatten").phrase_maps(lens, x, [0])
    with pytest.raises(InputError, match="have no positions"):
        FaithTrace().phrase_maps(lens, x, [0])
    with pytest.raises(InputError, match="indices from 0"):
        FaithTrace(layer="stem").phrase_maps(lens, x, [99])
    assert sum(len(m._forward_hooks) for m in module.modules()) == before
    assert all(p.grad is None for p in module.parameters())


def test_tokens_lose_their_prefix_in_maps() -> None:
    relevance = torch.arange(10.0)[None, :, None].expand(1, 10, 4)
    assert _positions(relevance, "block")[0].flatten().tolist() == [4.0 * i for i in range(1, 10)]
    with pytest.raises(InputError, match="no square"):
        _positions(torch.zeros(1, 23, 4), "block")
