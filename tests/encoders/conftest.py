import pytest
import torch

from whylens.encoders import ImageTower, TextTower, Vocabulary, save_builtin_encoder

PHRASES = ["red fur", "long tail", "grey stone", "four green legs", "no wheel", "photo of animal"]


@pytest.fixture
def towers():
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_phrases(PHRASES)
    image = ImageTower((4, 8, 12), (0, 1), 6).eval()
    # Enough passes for running statistics that are not those of a fresh norm.
    image.train()
    for _ in range(5):
        image(torch.randn(8, 3, 20, 20) * 2 + 1)
    image.eval()
    text = TextTower(len(vocabulary), width=8, layers=1, heads=2, length=5, output=6).eval()
    return image, text, vocabulary


@pytest.fixture
def encoder_root(towers, tmp_path):
    image, text, vocabulary = towers
    save_builtin_encoder(
        tmp_path / "encoders" / "tiny",
        image,
        text,
        vocabulary,
        widths=(4, 8, 12),
        blocks=(0, 1),
        layers=1,
        heads=2,
        size=20,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
    )
    return tmp_path / "encoders"
