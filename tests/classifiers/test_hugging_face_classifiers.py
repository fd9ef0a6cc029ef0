"""Image classifiers of transformers, built small, saved, and loaded from their folder."""

import pytest
import torch
from classifier_zoo import fill

from whylens.classifiers import load_classifier

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}

CASES = {
    "ViTForImageClassification": VIT,
    "DeiTForImageClassification": VIT,
    "DeiTForImageClassificationWithTeacher": VIT,
    "BeitForImageClassification": VIT,
    "Data2VecVisionForImageClassification": VIT,
    "Dinov2ForImageClassification": VIT,
    "Dinov2WithRegistersForImageClassification": VIT,
    "ViTMSNForImageClassification": VIT,
    "SwinForImageClassification": SWIN,
    "Swinv2ForImageClassification": SWIN,
    "ConvNextForImageClassification": {**STAGES, "num_stages": 2},
    "ConvNextV2ForImageClassification": {**STAGES, "num_stages": 2},
    "ResNetForImageClassification": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "RegNetForImageClassification": {**STAGES, "embedding_size": 8, "groups_width": 4},
    "BitForImageClassification": {**STAGES, "embedding_size": 8, "num_groups": 4},
    "PoolFormerForImageClassification": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "MobileNetV1ForImageClassification": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"image_size": 32, "depth_multiplier": 0.25},
    "EfficientNetForImageClassification": {
        "image_size": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
    },
    "SiglipForImageClassification": {"vision_config": VIT},
    "CLIPForImageClassification": {"vision_config": {**VIT, "projection_dim": 16}},
    "HieraForImageClassification": {
        "image_size": [64, 64],
        "embed_dim": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 1, 2],
        "num_query_pool": 2,
    },
    "PvtV2ForImageClassification": {
        "image_size": 32,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "SwiftFormerForImageClassification": {"image_size": 32, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "LevitForImageClassificationWithTeacher": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 1, 2],
        "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    },
    "HGNetV2ForImageClassification": None,
    "FocalNetForImageClassification": {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [k for k, v in CASES.items() if v is not None])
def test_split_of_a_saved_model(kind, tmp_path):
    cls = getattr(transformers, kind, None)
    if cls is None:
        pytest.skip(f"this version of transformers has no {kind}")
    torch.manual_seed(0)
    labels = {i: f"thing {i}" for i in range(5)}
    config = cls.config_class(**CASES[kind], id2label=labels, label2id={v: k for k, v in labels.items()})
    config.architectures = [kind]
    model = fill(cls(config)).eval()
    model.save_pretrained(tmp_path)
    size = CASES[kind].get("image_size", CASES[kind].get("vision_config", {}).get("image_size", 64))
    size = size[0] if isinstance(size, list) else size
    c = load_classifier(f"hf:{tmp_path}", size=size)
    assert c.class_names == tuple(labels.values())
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    same = type(c.module).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = same(c.preprocessing.normalise(x)).logits
    spread = float((expected[0] - expected[1]).abs().max())
    assert spread > 1e-4 * float(expected.abs().max())
    z, logits = c.features_and_logits(x)
    bound = 1e-4 * spread + 1e-5 * float(expected.abs().max())
    assert float((logits - expected).abs().max()) <= bound
    assert float((c.head(z) - expected).abs().max()) <= bound
    assert c.affine_head is not None
    again = c.pool(z) @ c.affine_head.weight.T + c.affine_head.bias
    assert float((again - expected).abs().max()) <= 10 * bound
    for name in c.layer_names()[-3:]:
        at = c.at(name)
        assert float((at.head(at.features(x)) - expected).abs().max()) <= bound
