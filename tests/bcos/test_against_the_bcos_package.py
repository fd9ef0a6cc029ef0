"""Against the authors' own package, which the development extra installs."""

import pytest
import torch
from bcos_zoo import encoded, pictures

from whylens.bcos import build_network, pixel_contributions

# Not `bcos` alone, which the name of this folder makes an empty package of.
published = pytest.importorskip("bcos.models.pretrained", exc_type=ImportError)
pytest.importorskip("einops")

NAMES = [
    "resnet18",
    "resnet50_long",
    "resnext50_32x4d",
    "densenet121",
    "vitc_ti_patch1_14",
    "simple_vit_ti_patch16_224",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights_give_the_same_logits_and_maps(name):
    torch.manual_seed(0)
    theirs = getattr(published, name)(pretrained=False)
    side = 224 if name.startswith("simple") else 64
    x = pictures(1, side)
    six = encoded(x)
    # A few batches in training mode, so that the running variances are of the size of the signals.
    theirs.double().train()
    with torch.no_grad():
        for seed in range(3):
            batch = encoded(pictures(2, side, seed=seed + 1))
            for m in theirs.modules():
                if hasattr(m, "momentum"):
                    m.momentum = 1 / (seed + 1)
            theirs(batch)
    theirs.eval()
    ours = build_network(name).double().eval()
    assert not any(ours.load_state_dict(theirs.state_dict()))

    # Their position embedding is computed in single precision whatever the network's.
    close = 1e-6 if "vit" in name else 1e-9
    with torch.no_grad():
        a, b = theirs(six), ours(x)
    spread = float((a - a.mean()).abs().max())
    assert float((a - b).abs().max()) <= close * spread
    chosen = int(a.argmax())
    explained = theirs.explain(six.clone().requires_grad_(True))
    found = pixel_contributions(ours, x)
    assert explained["explained_class_idx"] == chosen
    weights = explained["dynamic_linear_weights"]
    assert float((weights - found.weights).abs().max()) <= 10 * close * float(weights.abs().max())
    maps = explained["contribution_map"]
    assert float((maps - found.map).abs().max().detach()) <= 10 * close * float(maps.abs().max().detach())
    assert float(maps.abs().max()) > 0
    # Our own functions explain their network too.
    foreign = pixel_contributions(theirs, six)
    assert float((foreign.map - maps).abs().max()) <= 10 * close * float(maps.abs().max())
    assert float(foreign.gap.max()) < 1e-9
