"""The split of whole libraries, on random weights, against forward passes that whylens has no part in."""

import pytest
import torch
from classifier_zoo import build, check

TIMM = {
    32: """beit_base_patch16_224 botnet26t_256 sebotnet33ts_256 gernet_s repvgg_a0 mobileone_s0 cait_xxs24_224
        coat_lite_tiny coat_tiny convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano cspnext_tiny
        cspdarknet53 cs3darknet_s cspresnet50 davit_tiny deit_tiny_distilled_patch16_224 deit3_small_patch16_224
        densenet121 dla46_c dpn48b edgenext_xx_small efficientformerv2_s0 tf_efficientnet_lite0 mixnet_s mnasnet_small
        mobilenetv2_035 mobilenetv4_conv_small_035 efficientvim_m1 efficientvim_m1_dist efficientvit_b0 efficientvit_m0
        eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a
        hgnetv2_b0 hgnet_tiny hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t iformer_m_distilled
        inception_next_atto lcnetv2_small levit_128s levit_conv_128s lowformer_b0 mambaout_femto coatnet_pico_rw_224
        maxxvit_rmlp_nano_rw_256 maxvit_rmlp_pico_rw_256 poolformer_s12 poolformerv2_s12 convformer_s18 caformer_s18
        mixer_s32_224 gmlp_ti16_224 resmlp_12_224 mobilenetv3_small_050 mobilevit_xxs mobilevitv2_050 mvitv2_tiny
        naflexvit_base_patch16_gap nest_tiny nextvit_small eca_nfnet_l0 nf_regnet_b0 dm_nfnet_f0 pit_ti_224
        pit_ti_distilled_224 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 regnety_002 regnetz_005 repghostnet_050
        repvit_m0_9 res2net50_14w_8s res2next50 resnest14d resnet10t seresnext26t_32x4d ecaresnet26t resnetv2_18
        resnetv2_50d_gn rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 spnasnet_100
        starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
        tiny_vit_5m_224 tinynet_e tnt_s_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small vgg11 visformer_tiny
        vit_tiny_patch16_224 vit_base_patch32_clip_224 vit_base_patch16_siglip_224 vit_small_patch14_reg4_dinov2
        vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
        ese_vovnet19b_slim legacy_xception xception41 xcit_nano_12_p16_224 xcit_tiny_12_p8_224 fbnetc_100 semnasnet_075
        gcresnext26ts resnext50_32x4d nasnetalarge pnasnet5large vit_small_patch16_dinov3 test_vit""",
    64: "csatv2 ghostnetv3_050",
    96: "inception_resnet_v2 inception_v3 inception_v4",
    224: "efficientformer_l1",
    240: "crossvit_tiny_240",
    256: "halonet26t lcnet_035",
}
QUICK_TIMM = [
    *[
        (name, 32)
        for name in ("levit_128s", "resnetv2_18", "volo_d1_224", "convnext_atto", "deit_tiny_distilled_patch16_224")
    ],
    *[(name, 32) for name in ("swiftformer_xs", "test_vit", "efficientvim_m1", "mobilevit_xxs")],
]
# Heads that are more than one affine map: a class token's score plus a maximum over the other tokens.
NOT_AFFINE = {"volo_d1_224", "squeezenet1_0", "squeezenet1_1"}


def torchvision_names():
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name):
    from torchvision import models

    size, arguments = 64, {}
    if name.startswith("vit_"):
        size = 56 if name == "vit_h_14" else 64
        arguments = {"image_size": size}
    elif name.startswith("maxvit"):
        size, arguments = 224, {"input_size": (224, 224)}
    elif name == "inception_v3":
        size = 96
    if name in ("inception_v3", "googlenet"):
        arguments["init_weights"] = False
    return build(lambda: models.get_model(name, num_classes=10, **arguments)), size


def build_timm(name, size):
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")

    def make():
        try:
            return timm.create_model(name, num_classes=10, img_size=size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, num_classes=10)

    return build(make)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "resnet18", "mobilenet_v3_small", "swin_t", "googlenet"],
)
def test_quick_torchvision(name):
    module, size = build_torchvision(name)
    assert (check(module, size).affine_head is None) == (name in NOT_AFFINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "size"), QUICK_TIMM)
def test_quick_timm(name, size):
    assert (check(build_timm(name, size), size).affine_head is None) == (name in NOT_AFFINE)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer3"), ("swin_t", "features.5"), ("squeezenet1_1", "features.7")]
)
def test_named_layers_of_torchvision(name, layer):
    module, size = build_torchvision(name)
    c = check(module, size, features=layer)
    assert c.spatial
    assert c.features_name == f"output of {layer}"
    places = c.position_map(c.features(torch.rand(1, 3, size, size)).sum(1))
    assert places.shape[1] == places.shape[2] > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", torchvision_names())
def test_whole_torchvision_classification_list(name):
    module, size = build_torchvision(name)
    assert (check(module, size).affine_head is None) == (name in NOT_AFFINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "size"), [(n, size) for size, names in TIMM.items() for n in names.split()])
def test_timm_families(name, size):
    assert (check(build_timm(name, size), size).affine_head is None) == (name in NOT_AFFINE)


def test_enough_timm_families_are_listed():
    timm = pytest.importorskip("timm")
    known = [n for names in TIMM.values() for n in names.split() if timm.is_model(n)]
    families = {timm.models._registry._model_to_module[n] for n in known}
    assert len(families) >= 60
