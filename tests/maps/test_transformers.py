import pytest
import timm
import torch
import torchvision
import transformers
from map_networks import classifier, pictures, seeded, shaken
from torch import nn
from torch.nn import functional

from whylens.checks import check_map_method
from whylens.classifiers.calls import patched
from whylens.errors import InputError, ModelError
from whylens.maps import AttentionRollout, LeGrad
from whylens.maps.tokens import Tape, find_grid
from whylens.maps.transformers import encoder_layers

TARGETS = torch.tensor([1, 0])
SIZE = (64, 64)


def vit(name="vit_tiny_patch16_224", depth=2, **settings):
    settings = {"img_size": 64, "embed_dim": 24, "num_heads": 2, "num_classes": 3} | settings
    return timm.create_model(name, depth=depth, **settings)


def _hf(kind, config, **settings):
    shared = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    return getattr(transformers, kind)(getattr(transformers, config)(**shared, **settings))


def _hf_vit(**settings):
    return _hf("ViTForImageClassification", "ViTConfig", intermediate_size=48, image_size=64, **settings)


# Network, size of the pictures, extra tokens and grid.
ZOO = {
    "timm vit": (vit, SIZE, (1, 4, 4)),
    "timm, not square": (lambda: vit(img_size=(48, 80)), (48, 80), (1, 3, 5)),
    "timm, registers and mean": (lambda: vit("vit_medium_patch16_reg4_gap_256"), SIZE, (4, 4, 4)),
    "timm, mean of patches": (lambda: vit(global_pool="avg"), SIZE, (1, 4, 4)),
    "timm deit, distilled": (lambda: vit("deit_tiny_distilled_patch16_224"), SIZE, (2, 4, 4)),
    "timm siglip": (lambda: vit("vit_base_patch16_siglip_224"), SIZE, (0, 4, 4)),
    "timm beit": (lambda: vit("beit_base_patch16_224"), SIZE, (1, 4, 4)),
    "timm eva02": (lambda: vit("eva02_tiny_patch14_224", img_size=56), (56, 56), (1, 4, 4)),
    "torchvision": (lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 24, 48, num_classes=3), SIZE, (1, 4, 4)),
    "hf vit": (_hf_vit, SIZE, (1, 4, 4)),
    "hf vit, open attention": (lambda: _hf_vit(attn_implementation="eager"), SIZE, (1, 4, 4)),
    "hf dinov2, registers": (
        lambda: _hf(
            "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", image_size=56, patch_size=14
        ),
        (56, 56),
        (5, 4, 4),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_attention_and_grid_are_found_in_every_family(name: str) -> None:
    make, size, grid = ZOO[name]
    model = classifier(shaken(make), size=size)
    x = pictures(2, size=size)
    tape = Tape(2)
    with torch.no_grad():
        expected = model.logits(x)
        with patched(tape.wrappers(model.module)), tape:
            logits = model.logits(x)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    layers, found = encoder_layers("test", tape, size)
    assert (found.extra, found.rows, found.columns) == grid
    assert len(layers) == 2
    for layer in layers:
        tokens = grid[0] + grid[1] * grid[2]
        assert layer.probabilities.shape == (2, 2, tokens, tokens)
        assert torch.allclose(layer.probabilities.sum(-1), torch.ones(2, 2, tokens), atol=1e-5)
    for method in (AttentionRollout(), LeGrad(), LeGrad(scores="final"), LeGrad(layers=1)):
        for one in method(model, x, TARGETS):
            assert one.array.shape == size
            assert one.array.std() > 0


def open_timm(**settings):
    """A timm network in double precision whose attention passes through modules that can be hooked."""
    model = shaken(lambda: vit(**settings)).double()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def read_attention(model, x):
    """Attention of each block by hooks on the dropout after its softmax."""
    seen = []
    handles = [
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in model.blocks
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_equals_a_slow_product(heads: str, pool: str) -> None:
    model = open_timm(depth=3, global_pool=pool)
    x = pictures(2, size=SIZE)
    product = torch.eye(17, dtype=torch.float64).expand(2, -1, -1)
    for attention in read_attention(model, x.double()):
        joined = {"mean": attention.mean(1), "max": attention.max(1)[0], "min": attention.min(1)[0]}[heads]
        mixed = 0.4 * torch.eye(17, dtype=torch.float64) + 0.6 * joined
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    read = product[:, 0] if pool == "token" else product[:, 1:].mean(1)
    expected = functional.interpolate(read[:, 1:].reshape(2, 1, 4, 4), size=SIZE, mode="bilinear")[:, 0]
    found = AttentionRollout(heads=heads, residual=0.4)(classifier(model, size=SIZE), x, TARGETS)
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(one.array).double(), wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("heads", ["mean", "max"])
def test_rollout_begins_at_an_attention_that_pools(heads: str) -> None:
    model = shaken(lambda: vit("vit_base_patch16_siglip_224", depth=3)).double()
    pool = model.attn_pool
    pool.fused_attn = False
    for block in model.blocks:
        block.attn.fused_attn = False
    x, seen = pictures(2, size=SIZE), []
    handle = pool.k_norm.register_forward_hook(lambda *call: seen.append(call[2]))
    product = torch.eye(16, dtype=torch.float64).expand(2, -1, -1)
    for attention in read_attention(model, x.double()):
        joined = attention.mean(1) if heads == "mean" else attention.amax(1)
        mixed = 0.5 * torch.eye(16, dtype=torch.float64) + 0.5 * joined
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    handle.remove()
    with torch.no_grad():
        query = pool.q(pool.latent.expand(2, -1, -1)).reshape(2, 1, 2, -1).transpose(1, 2)
        pooled = (query @ seen[0].mT * query.shape[-1] ** -0.5).softmax(-1)
    read = pooled.mean(1) if heads == "mean" else pooled.amax(1)
    small = ((read / read.sum(-1, keepdim=True)) @ product).reshape(2, 1, 4, 4)
    expected = functional.interpolate(small, size=SIZE, mode="bilinear")[:, 0]
    found = AttentionRollout(heads=heads)(classifier(model, size=SIZE), x, TARGETS)
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(one.array).double(), wanted, rtol=1e-4, atol=1e-8)


class _Counted(torch.autograd.Function):
    backwards = 0

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, slope):
        _Counted.backwards += 1
        return slope


class Counting(nn.Module):
    """Counts how often a gradient goes back from the logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return _Counted.apply(self.network(x))


@pytest.mark.parametrize("method", [AttentionRollout(), LeGrad(), LeGrad(scores="final")], ids=repr)
def test_a_pass_that_is_counted_goes_back_once(method) -> None:
    model = classifier(Counting(shaken(lambda: vit(depth=4))), size=SIZE)
    method(model, pictures(2, size=SIZE), TARGETS)
    _Counted.backwards = 0
    found = method(model, pictures(2, size=SIZE), TARGETS)
    assert _Counted.backwards == found[0].passes == 1


def test_legrad_of_final_scores_equals_gradients_taken_one_by_one() -> None:
    model = open_timm(depth=3)
    x = pictures(2, size=SIZE)
    kept = []
    handles = [b.attn.attn_drop.register_forward_pre_hook(lambda _, args: kept.append(args[0])) for b in model.blocks]
    logits = model(x.double())
    for handle in handles:
        handle.remove()
    total = torch.zeros(2, 17, dtype=torch.float64)
    for attention in kept:
        (slope,) = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), attention, retain_graph=True)
        total += slope.clamp(min=0).mean((1, 2)) / 3
    expected = functional.interpolate(total[:, 1:].reshape(2, 1, 4, 4), size=SIZE, mode="bilinear")[:, 0]
    found = LeGrad(scores="final")(classifier(model, size=SIZE), x, TARGETS)
    for one, wanted in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(one.array).double(), wanted, rtol=1e-4, atol=1e-9)


def test_legrad_equals_gradients_taken_block_by_block() -> None:
    model = open_timm(depth=3)
    x = pictures(2, size=SIZE)
    kept = {}

    def keep(index):
        def hook(_, args):
            kept[index] = args[0]

        return hook

    handles = [b.attn.attn_drop.register_forward_pre_hook(keep(i)) for i, b in enumerate(model.blocks)]
    total = torch.zeros(2, 16, dtype=torch.float64)
    tokens = model._pos_embed(model.patch_embed(x.double()))
    for index, block in enumerate(model.blocks):
        tokens = block(tokens)
        logits = model.head(model.norm(tokens)[:, 0])
        (slope,) = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), kept[index], retain_graph=True)
        total += slope.clamp(min=0).mean((1, 2))[:, 1:] / 3
    for handle in handles:
        handle.remove()
    expected = functional.interpolate(total.reshape(2, 1, 4, 4), size=SIZE, mode="bilinear")[:, 0]
    found = LeGrad()(classifier(model, size=SIZE), x, TARGETS)
    for one, wanted in zip(found, expected.detach(), strict=True):
        assert one.passes == 1
        assert torch.allclose(torch.from_numpy(one.array).double(), wanted, rtol=1e-4, atol=1e-9)


class OneBlock(nn.Module):
    """One attention between six patches and a class token, then a head that is not linear."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block1 = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def tokens(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)

    def forward(self, x):
        tokens = self.tokens(x)
        return self.head((tokens + self.block1(tokens, tokens, tokens, need_weights=False)[0])[:, 0])


def test_legrad_of_one_block_equals_finite_differences() -> None:
    model = seeded(OneBlock).double().eval()
    x = pictures(1, size=(8, 12))
    with torch.no_grad():
        tokens = model.tokens(x.double())
        _, attention = model.block1(tokens, tokens, tokens, average_attn_weights=False)
        weight, bias = model.block1.in_proj_weight[16:], model.block1.in_proj_bias[16:]
        values = (tokens @ weight.T + bias).reshape(1, 7, 2, 4).transpose(1, 2)

        def score(probabilities):
            mixed = (probabilities @ values).transpose(1, 2).reshape(1, 7, 8)
            return float(model.head((tokens + model.block1.out_proj(mixed))[:, 0])[0, 2])

        total = torch.zeros(7, dtype=torch.float64)
        for head in range(2):
            for query in range(7):
                for key in range(7):
                    step = torch.zeros_like(attention)
                    step[0, head, query, key] = 1e-5
                    slope = (score(attention + step) - score(attention - step)) / 2e-5
                    total[key] += max(slope, 0.0) / 14
    expected = functional.interpolate(total[1:].reshape(1, 1, 2, 3), size=(8, 12), mode="bilinear")[0, 0]
    for scores in ("layers", "final"):
        found = LeGrad(scores=scores)(classifier(model, size=(8, 12)), x, torch.tensor([2]))[0]
        assert torch.allclose(torch.from_numpy(found.array).double(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", ["none", "mean", "heads"])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "heads"])
def test_opened_multihead_attention_computes_the_same(batch_first: bool, weights: str, mask: str) -> None:
    module = seeded(lambda: nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=6, vdim=5)).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn((3, n, d), generator=generator) for n, d in ((4, 8), (7, 6), (7, 5))]
    if not batch_first:
        inputs = [t.transpose(0, 1) for t in inputs]
    options = {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
    hidden = torch.rand((6, 4, 7), generator=generator) < 0.3
    options["attn_mask"] = {
        "none": None,
        "bool": hidden[0],
        "float": torch.randn((4, 7), generator=generator),
        "heads": hidden,
    }[mask]
    network = nn.ModuleList([module])
    tape = Tape(3)
    with torch.no_grad():
        expected = module(*inputs, **options)
        with patched(tape.wrappers(network)), tape:
            found = module(*inputs, **options)
    assert len(tape.attention) == 1
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert (found[1] is None) == (expected[1] is None)
    if weights != "none":
        assert torch.allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}])
def test_opened_fused_attention_computes_the_same(options) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn((2, 4, 5, 6), generator=generator)
    k, v = (torch.randn((2, 2 if "enable_gqa" in options else 4, 5, 6), generator=generator) for _ in "kv")
    expected = functional.scaled_dot_product_attention(q, k, v, **options)
    with Tape(2) as tape:
        found = functional.scaled_dot_product_attention(q, k, v, **options)
    assert torch.allclose(found, expected, atol=1e-6)
    assert tape.attention[0].probabilities.shape == (2, 4, 5, 5)


def test_grids() -> None:
    assert find_grid(197, [(14, 14)], (224, 224)).extra == 1
    assert find_grid(16, [(4, 4)], SIZE).extra == 0
    # The last convolution that fits counts; where none made tokens the picture's aspect decides.
    assert find_grid(20, [(8, 8), (4, 4)], SIZE).extra == 4
    assert find_grid(12, [(16, 16)], SIZE) is None
    # Merged neighbours leave grids that no convolution has; tokens without extra ones count before all others.
    assert (find_grid(49, [(56, 56)], (224, 224)).extra, find_grid(49, [(56, 56)], (224, 224)).rows) == (0, 7)
    assert (find_grid(16, [(16, 16), (3, 3)], SIZE).extra, find_grid(16, [(16, 16), (3, 3)], SIZE).rows) == (0, 4)
    assert (find_grid(197, [(56, 56)], (224, 224)).extra, find_grid(197, [(56, 56)], (224, 224)).rows) == (1, 14)
    assert find_grid(11, [(7, 9)], (56, 72)) is None
    found = find_grid(16, [], (32, 128))
    assert (found.extra, found.rows, found.columns) == (0, 2, 8)


def _swin():
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=3)


def _pvt():
    return timm.create_model("pvt_v2_b0", num_classes=3, depths=(1, 1, 1, 2))


def _twins():
    widths = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "depths": (2, 2, 2, 2)}
    return timm.models.Twins(64, 4, num_classes=3, wss=(4, 4, 4, 4), **widths)


class BetweenChannels(nn.Module):
    """XCiT's attention with as many channels to a head as there are tokens, and the mean of tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.blocks = nn.ModuleList([timm.models.xcit.XCA(32, 2) for _ in range(2)])
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("method", [AttentionRollout(), LeGrad(), LeGrad(scores="final")], ids=repr)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torchvision.models.squeezenet1_1(num_classes=3), "computes none that can be read"),
        (_swin, "within windows or at several resolutions"),
        (lambda: vit("xcit_nano_12_p16_224"), "needs tokens on a grid"),
        (lambda: timm.create_model("xcit_nano_12_p16_224", depth=2), "between channels"),
        (BetweenChannels, "between channels"),
        (_pvt, "3 of 5 layers of this network .'stages.0.blocks.0.attn' is the first. have other queries than keys"),
        (lambda: vit("cait_xxs24_224"), "2 of 4 layers .*'blocks_token_only.0.attn'"),
        (_twins, "within windows or at several resolutions"),
    ],
    ids=["cnn", "swin", "xcit, thin", "xcit", "channels as tokens", "pvt", "cait", "twins"],
)
def test_other_networks_are_refused_with_what_applies_instead(method, make, message: str) -> None:
    with pytest.raises(ModelError, match=f"{message}.*Methods that apply: grad_cam") as raised:
        method(classifier(seeded(make), size=SIZE), pictures(1, size=SIZE), torch.tensor([0]))
    assert "scores=" not in str(raised.value)


def test_settings_that_cannot_be_used_are_refused() -> None:
    model, x = classifier(shaken(vit), size=SIZE), pictures(2, size=SIZE)
    for method, message in [
        (AttentionRollout(heads="sum"), "heads"),
        (AttentionRollout(residual=1.5), "residual must be a number of at least 0 and at most 1; it is 1.5"),
        (LeGrad(layers=0), "layers must be a whole number of at least 1"),
        (LeGrad(layers=3), "layers is 3, but the network has 2"),
        (LeGrad(scores="all"), "scores"),
    ]:
        with pytest.raises(InputError, match=message):
            method(model, x, TARGETS)


@pytest.mark.parametrize("method", [AttentionRollout(), LeGrad(), LeGrad(scores="final")], ids=repr)
def test_the_contract_is_kept(method) -> None:
    check_map_method(method, classifier(shaken(vit), size=SIZE), images=pictures(3, size=SIZE))
