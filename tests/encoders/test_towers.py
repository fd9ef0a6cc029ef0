import pytest
import torch

from whylens.encoders.towers import ImageTower, TextTower
from whylens.errors import InputError


def slow_text_tower(tower: TextTower, ids: list[int], heads: int) -> torch.Tensor:
    """One unpadded phrase in float64, word by word and head by head."""
    weights = {name: value.double() for name, value in tower.state_dict().items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = torch.stack([weights["words.weight"][i] + weights["positions"][p] for p, i in enumerate(ids)])
    size = x.shape[1] // heads
    for layer in range(len(tower.layers)):
        name = f"layers.{layer}"
        query, key, value = linear(norm(x, f"{name}.norm1"), f"{name}.attention.inputs").chunk(3, dim=1)
        mixed = torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for q in range(len(ids)):
                scores = torch.stack([query[q, part] @ key[k, part] / size**0.5 for k in range(len(ids))])
                shares = scores.exp() / scores.exp().sum()
                mixed[q, part] = sum(shares[k] * value[k, part] for k in range(len(ids)))
        x = x + linear(mixed, f"{name}.attention.output")
        inner = linear(norm(x, f"{name}.norm2"), f"{name}.expand")
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + linear(inner, f"{name}.contract")
    return linear(norm(x.mean(0), "norm"), "fc")


def tower(**settings) -> TextTower:
    made = TextTower(20, width=16, layers=2, heads=4, length=6, output=5, **settings).eval()
    made.initialise(3)
    with torch.no_grad():
        # Biases and norm gains away from 0 and 1, so that each of them counts.
        generator = torch.Generator().manual_seed(4)
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        made.positions *= 30
    return made


def test_text_tower_equals_a_slow_reference():
    made = tower()
    phrases = [[3, 7, 1], [20], [5, 5, 2, 9, 11, 14]]
    padded = torch.tensor([p + [0] * (6 - len(p)) for p in phrases])
    with torch.no_grad():
        fast = made(padded)
    slow = torch.stack([slow_text_tower(made, p, 4) for p in phrases])
    assert slow.std() > 0.1
    torch.testing.assert_close(fast.double(), slow, atol=2e-5, rtol=1e-5)


def test_padding_neighbours_and_repetition_change_nothing():
    made = tower()
    with torch.no_grad():
        alone = made(torch.tensor([[3, 7, 1]]))
        batch = made(torch.tensor([[9] * 6, [3, 7, 1, 0, 0, 0], [0] * 6]))
        again = made(torch.tensor([[9] * 6, [3, 7, 1, 0, 0, 0], [0] * 6]))
    torch.testing.assert_close(batch[1], alone[0], atol=1e-5, rtol=0)
    assert torch.equal(batch, again)
    assert torch.isfinite(batch).all()


def test_word_order_counts_and_gradients_reach_every_weight():
    made = tower()
    out = made(torch.tensor([[3, 7, 1, 2, 8, 4], [1, 7, 3, 2, 8, 4]]))
    assert (out[0] - out[1]).abs().max() > 1e-3
    out.pow(2).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0 or name.endswith("attention.inputs.bias"), name
    assert made.words.weight.grad[0].abs().max() == 0


def test_seeded_and_heads_must_divide():
    first, second, third = TextTower(5, 8, 1, 2, 4, 4), TextTower(5, 8, 1, 2, 4, 4), TextTower(5, 8, 1, 2, 4, 4)
    third.initialise(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, third.fc.weight)
    with pytest.raises(InputError, match="multiple of its heads"):
        TextTower(5, width=10, heads=4)


def test_image_tower_is_the_trunk_and_a_projection():
    torch.manual_seed(0)
    image = ImageTower((4, 8, 12), (0, 1), 5).eval()
    x = torch.rand(3, 3, 20, 20)
    with torch.no_grad():
        trunk = image.stages(image.stem(x)).mean((2, 3))
        expected = trunk @ image.fc.weight.T + image.fc.bias
        torch.testing.assert_close(image(x), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(image(x[:1])[0], image(x)[0], atol=1e-5, rtol=0)
