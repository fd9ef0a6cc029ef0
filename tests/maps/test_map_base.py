"""What every map method inherits: validation, restoring the network, batches, counting."""

import numpy as np
import pytest
import torch
from map_networks import SIZE, Cnn, Linear, classifier, pictures, seeded
from torch import nn
from torch.utils.checkpoint import checkpoint

from whylens import Classifier
from whylens.classifiers.execution import as_written
from whylens.classifiers.precision import has_bf16
from whylens.errors import InputError, ModelError
from whylens.maps import FEI, MapMethod
from whylens.maps.batching import in_batches, out_of_memory
from whylens.registry import get_method


class Plain(MapMethod):
    """The gradient, signed and summed over channels."""

    name = "plain"

    def __init__(self, *, factor=1.0):
        self.factor = factor

    def attribute(self, view):
        x = view.images.clone().requires_grad_()
        return self.factor * view.gradient(view.score(x), x).sum(1)


class Made(Plain):
    """Returns whatever it was given."""

    def __init__(self, *, make):
        self.make = make

    def attribute(self, view):
        return self.make(view)


@pytest.fixture
def model():
    return classifier(seeded(Cnn))


def arrays(maps):
    return torch.stack([torch.from_numpy(m.array) for m in maps])


def test_targets_contrasts_and_passes():
    net = Linear()
    model, x = classifier(net), pictures(3)
    targets, contrasts = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    found = Plain()(model, x, targets)
    assert torch.allclose(arrays(found), net.weight[targets].sum(1), atol=1e-6)
    assert [(m.target, m.contrast, m.passes) for m in found] == [(0, None, 1.0), (1, None, 1.0), (2, None, 1.0)]
    found = Plain()(model, x, targets, contrasts=contrasts)
    assert torch.allclose(arrays(found), (net.weight[targets] - net.weight[contrasts]).sum(1), atol=1e-6)
    assert [m.contrast for m in found] == [1, 2, 0]
    found = Plain()(model, x)
    assert [m.target for m in found] == model.logits(x).argmax(1).tolist()
    assert found[0].passes == 1.5, "a forward alone, for the default target, is half a pass"
    assert found[0].method == "plain"
    assert found[0].protocol == "plain@1"
    assert Plain()(model, x[:0]) == []


@pytest.mark.parametrize(
    ("images", "targets", "contrasts", "message"),
    [
        (torch.zeros(3, *SIZE), None, None, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 4, *SIZE), None, None, r"\(1, 4, 12, 16\)"),
        (torch.zeros(1, 3, *SIZE, dtype=torch.uint8), None, None, "uint8"),
        ([1, 2], None, None, "list"),
        (torch.full((1, 3, *SIZE), 3.0), None, None, "3 to 3"),
        (torch.full((1, 3, *SIZE), torch.nan), None, None, "nan"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([3]), None, "no class 3 .* 0 to 2"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([-1]), None, "no class -1"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([0, 1]), None, "each of the 1 pictures"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([0.5]), None, "float32"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([1]), torch.tensor([1]), "same class, 1"),
        (torch.zeros(1, 3, *SIZE), torch.tensor([1]), torch.tensor([9]), "to be the contrast"),
    ],
)
def test_bad_input_is_refused(model, images, targets, contrasts, message):
    with pytest.raises(InputError, match=message):
        Plain()(model, images, targets, contrasts=contrasts)


def test_pictures_of_another_size():
    free = classifier(seeded(Cnn))
    assert Plain()(free, pictures(2, (9, 25)))[1].array.shape == (9, 25)
    with pytest.raises(InputError, match="9 x 25 pixels; it was wrapped for 12 x 16"):
        Plain()(classifier(Linear()), pictures(2, (9, 25)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda view: torch.zeros(len(view), 3), r"shape \(2, 3\); they must be \(2, 12, 16\)"),
        (lambda view: "map", "str"),
        (lambda view: view.images[:, 0] / 0, "NaN or infinite"),
        (lambda view: view.gradient(view.score(view.images), view.images), "does not depend on the picture"),
        (
            lambda view: view.gradient(
                view.score(view.images.clone().requires_grad_()),
                torch.zeros(2, 3).requires_grad_(),
                what="the layer 'x'",
            ),
            "does not depend on the layer 'x'",
        ),
    ],
)
def test_bad_maps_are_refused(model, make, message):
    with pytest.raises(ModelError, match=message):
        Made(make=make)(model, pictures())


class Steep(nn.Module):
    """Its gradient is infinite where a picture is black."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.sqrt().mean((2, 3)))


def test_infinite_gradients_are_refused():
    x = pictures()
    x[1, 0, 0, 0] = 0
    with pytest.raises(ModelError, match="infinite for 1 of 2 pictures"):
        Plain()(classifier(Steep()), x)


def test_a_map_that_says_nothing_says_so(model):
    found = Made(make=lambda view: torch.ones(len(view), *view.size))(model, pictures())
    assert "same everywhere" in found[0].notes[0]
    assert not Plain()(model, pictures())[0].notes


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    net = seeded(lambda: nn.Sequential(Cnn(), nn.Dropout(0.9)))
    model = classifier(net)
    net.train()
    net[0].conv2.eval()
    net[0].fc.weight.requires_grad_(False)
    net(pictures()).sum().backward()
    gradient = net[0].conv1.weight.grad.clone()

    def work(view):
        assert not any(m.training for m in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
        if fails:
            raise KeyError("planned")
        return Plain().attribute(view)

    x = pictures().requires_grad_()
    try:
        first = Made(make=work)(model, x)
    except KeyError:
        assert fails
    else:
        assert np.array_equal(first[0].array, Made(make=work)(model, x)[0].array), "dropout must be off"
    assert net.training
    assert net[0].conv1.training
    assert not net[0].conv2.training
    assert [p.requires_grad for p in net[0].fc.parameters()] == [False, True]
    assert net[0].conv1.weight.requires_grad
    assert torch.equal(net[0].conv1.weight.grad, gradient)
    assert x.grad is None


def test_callers_may_have_gradients_off(model):
    x = pictures()
    expected = arrays(Plain()(model, x))
    with torch.no_grad():
        assert torch.equal(arrays(Plain()(model, x)), expected)
    with torch.inference_mode():
        assert torch.equal(arrays(Plain()(model, x * 1.0)), expected)


def _with_a_compiled_layer(net):
    net.act1 = torch.compile(net.act1, backend="eager")
    return net


def _with_a_layer_compiled_in_place(net):
    net.conv2.compile(backend="eager")
    return net


class Checkpointed(nn.Module):
    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(nn.DataParallel, id="data-parallel"),
        pytest.param(lambda net: torch.compile(net, backend="eager"), id="compiled", marks=pytest.mark.slow),
        pytest.param(
            lambda net: nn.Sequential(torch.compile(net, backend="eager")),
            id="partly-compiled",
            marks=pytest.mark.slow,
        ),
        pytest.param(_with_a_compiled_layer, id="a-layer-compiled", marks=pytest.mark.slow),
        pytest.param(_with_a_layer_compiled_in_place, id="a-layer-compiled-in-place", marks=pytest.mark.slow),
        pytest.param(lambda net: Checkpointed(net, False), id="checkpointed"),
        pytest.param(lambda net: Checkpointed(net, True), id="reentrant"),
        pytest.param(lambda net: net.double(), id="double"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "fei", "guided_backprop", "deeplift", "grad_cam"])
def test_wrapped_networks_give_the_same_maps(wrap, name):
    method = {"plain": Plain(), "fei": FEI(iterations=3)}.get(name) or get_method(name).factory()
    x, targets = pictures(), torch.tensor([0, 1])
    expected = arrays(method(classifier(seeded(Cnn)), x, targets))
    wrapped = Classifier(wrap(seeded(Cnn).eval()), size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(arrays(method(wrapped, x, targets)), expected, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_run_once_inside_the_block(reentrant):
    """Whatever PyTorch calls the inside of its checkpoint: a second run would mean that it was not switched off."""
    runs = []

    def part(x):
        runs.append(x)
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    with as_written(nn.Identity()):
        checkpoint(part, x, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 1
    checkpoint(part, x, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 3


@pytest.mark.parametrize("name", ["fei", "legrad", "attention_rollout"])
def test_checkpointed_transformers_give_the_same_maps(name):
    timm = pytest.importorskip("timm")
    method = FEI(iterations=2) if name == "fei" else get_method(name).factory()
    made = []
    for recomputed in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=2, img_size=48)
        net.set_grad_checkpointing(recomputed)
        model = classifier(net, size=(48, 48))
        made.append(arrays(method(model, pictures(2, (48, 48)), torch.tensor([0, 1]))))
    assert torch.allclose(*made, atol=1e-6)


def test_memory_that_runs_out_halves_the_batch_and_is_remembered():
    model = classifier(seeded(Cnn))
    sizes = []

    def work(view):
        sizes.append(len(view))
        if len(view) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Plain().attribute(view)

    method, x, targets = Made(make=work), pictures(5), torch.zeros(5, dtype=torch.long)
    found = method(model, x, targets)
    assert sizes == [5, 2, 2, 1]
    sizes.clear()
    again = method(model, x, targets)
    assert sizes == [2, 2, 1]
    assert torch.equal(arrays(found), arrays(again))
    assert [m.passes for m in found] == [1.0] * 5, "a try that failed does not count"
    assert torch.allclose(arrays(found), arrays(Plain()(model, x, targets)), atol=1e-6)
    sizes.clear()
    method(model, x, targets, batch_size=1)
    assert sizes == [1] * 5
    for wrong in (0, -1, True):
        with pytest.raises(InputError, match="batch_size"):
            method(model, x, targets, batch_size=wrong)

    def never(view):
        raise MemoryError

    with pytest.raises(MemoryError):
        Made(make=never)(model, x, targets)


def test_what_counts_as_running_out_of_memory():
    assert out_of_memory(torch.cuda.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(
            in_batches(
                lambda a, b: (_ for _ in ()).throw(RuntimeError("shapes")),
                4,
                module=nn.ReLU(),
                key="k",
                pixels=1,
                device=torch.device("cpu"),
            )
        )


def test_scores_know_their_pictures(model):
    seen = {}

    def work(view):
        variants = view.images.repeat_interleave(3, 0)
        seen["score"] = view.score(variants).detach()
        rows = torch.tensor([1, 0])
        with torch.no_grad():
            seen["rows"] = view.score(view.images.flip(0), rows)
        seen["draw"] = view.draw("rand", (4,), "test")
        seen["passes"] = list(view.ledger.passes)
        with pytest.raises(InputError, match="rows="):
            view.score(view.images[:1])
        return view.images[:, 0]

    x, targets = pictures(), torch.tensor([2, 1])
    Made(make=work)(model, x, targets)
    expected = model.logits(x)[torch.arange(2), targets]
    assert torch.allclose(seen["score"], expected.repeat_interleave(3), atol=1e-6)
    assert torch.allclose(seen["rows"], expected.flip(0), atol=1e-6)
    assert seen["passes"] == [3.5, 3.5]
    together = seen["draw"]
    Made(make=work)(model, x.flip(0), targets.flip(0))
    assert torch.equal(seen["draw"], together.flip(0))


def test_an_id_names_one_procedure():
    """Two settings that give different maps never share an id, and the default's id stays what it was."""
    ids = {
        "fei/fast/preservation/IBM/5x19@4": FEI(quantiles=list(FEI().quantiles)),
        "fei/fast/preservation/IBM/5x19{precision=bfloat16}@4": FEI(precision="bfloat16"),
        "fei/fast/preservation/IBM/5x19{scope=all,attention=False}@4": FEI(scope="all", attention=False),
        "fei/fast/preservation/IBM/2x19{quantiles=0.2+0.4}@4": FEI(quantiles=(0.2, 0.4)),
        "fei/paper/deletion/VM/5x3@1": FEI(preset="paper", game="deletion", clipping="VM", iterations=3),
        "rise@1": get_method("rise").factory(),
        "rise{masks=10,precision=bfloat16}@1": get_method("rise").factory(masks=10, precision="bfloat16"),
        "grad_cam{layer=conv1}@1": get_method("grad_cam").factory(layer="conv1"),
        "plain{factor=2.0}@1": Plain(factor=2.0),
    }
    assert [method.protocol for method in ids.values()] == list(ids)
    assert FEI().protocol == next(iter(ids))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("integrated_gradients", {"steps": 8}),
        ("smoothgrad", {"samples": 8}),
        ("occlusion", {}),
        ("rise", {"masks": 200}),
        ("extremal_perturbation", {"iterations": 10}),
        ("igos_pp", {"iterations": 2, "points": 4, "output": "logit", "size_weight": 0.0}),
        ("fei", {"iterations": 6}),
    ],
)
def test_a_lower_precision_is_taken_and_the_map_stays(name, settings):
    """Every method of many passes: the network's products are bf16, the class is not chosen by them, maps agree."""
    seen = []

    class Watched(Cnn):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    net = seeded(Watched)
    with torch.no_grad():
        # Beside penalties on a mask's size a faint network would not be heard.
        net.fc.weight *= 50
    model, x = classifier(net), pictures()
    exact = get_method(name).factory(**settings)(model, x)
    assert not any(seen)
    seen.clear()
    low = get_method(name).factory(**settings, precision="bfloat16")(model, x)
    assert seen[0] is False, "the class that is asked about is that of the network's own precision"
    assert all(seen[1:])
    for a, b in zip(exact, low, strict=True):
        assert a.target == b.target
        assert np.corrcoef(a.array.ravel(), b.array.ravel())[0, 1] > 0.9
        assert not np.array_equal(a.array, b.array)
    seen.clear()
    chosen = get_method(name).factory(**settings, precision="auto")(model, x)
    assert any(seen) == has_bf16(torch.device("cpu"))
    expected = low if any(seen) else exact
    assert all(np.array_equal(a.array, b.array) for a, b in zip(chosen, expected, strict=True))
    assert all(any("bfloat16" in note for note in m.notes) == any(seen) for m in chosen)
    with pytest.raises(InputError, match="precision"):
        get_method(name).factory(**settings, precision="half")(model, x)
