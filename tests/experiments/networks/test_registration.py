"""The names of the paper's networks, and what an explanation is told of each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from captum_fam import LayerFAM
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.models import WeightsError, create_model, default_weights, list_models
from captum_fam.pooling import GAP, GMP

FEW_SHOT = {
    "conv4net": (64, 5, 5),
    "conv64f": (64, 19, 19),
    "conv64f_21x21": (64, 21, 21),
    "resnet12": (640, 5, 5),
    "few_shot_resnet18": (512, 3, 3),
    "few_shot_resnet18_3x3_stem": (512, 11, 11),
    "wide_resnet28_10": (640, 21, 21),
}
CONTRASTIVE = {
    "npid_resnet18": (512, 7, 7),
    "npid_resnet50": (2048, 7, 7),
    "moco_v1_resnet50": (2048, 7, 7),
    "moco_v2_resnet50": (2048, 7, 7),
}
RETRIEVAL = {"multi_similarity_bn_inception": (1024, 7, 7), "margin_bn_inception": (1024, 7, 7)}
PARAMETERS = {
    "conv4net": 113_088,
    "conv64f": 113_088,
    "conv64f_21x21": 113_088,
    "resnet12": 12_424_320,
    "few_shot_resnet18": 11_176_512,
    "few_shot_resnet18_3x3_stem": 11_168_832,
    "wide_resnet28_10": 36_472_784,
    "npid_resnet18": 11_242_176,
    "npid_resnet50": 23_770_304,
    "moco_v1_resnet50": 23_770_304,
    "moco_v2_resnet50": 27_966_656,
    "multi_similarity_bn_inception": 10_795_040,
    "margin_bn_inception": 10_795_040,
}


def test_all_networks_of_the_paper_are_listed_without_being_imported():
    assert {*FEW_SHOT, *CONTRASTIVE, *RETRIEVAL} <= set(list_models())


def test_only_a_file_trains_a_network_of_the_paper():
    assert {default_weights(name) for name in (*FEW_SHOT, *CONTRASTIVE, *RETRIEVAL, "conv4")} == {None}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_a_model_of_the_paper_has_the_tabled_size_map_and_embedding(name):
    with torch.device("meta"):
        net = create_model(name)
        x = torch.empty(2, 3, net.size, net.size)
        activation, embedding = net.layer_module(x), net.model(x)
        parts = net.pooling(activation) if net.head is None else net.head(net.pooling(activation))
    assert activation.shape[1:] == {**FEW_SHOT, **CONTRASTIVE, **RETRIEVAL}[name]
    assert sum(p.numel() for p in net.model.parameters()) == PARAMETERS[name]
    assert (
        parts.shape
        == embedding.shape
        == (2, {**dict.fromkeys(CONTRASTIVE, 128), **dict.fromkeys(RETRIEVAL, 512)}.get(name, activation.shape[1]))
    )
    assert not net.model.training
    assert net.name == name
    assert net.similarity == "cosine"
    assert net.layout is None


@pytest.mark.parametrize("name", [*FEW_SHOT, *CONTRASTIVE, *RETRIEVAL])
def test_the_preprocessing_is_that_of_the_papers_experiments(name):
    with torch.device("meta"):
        net = create_model(name)
    if name in FEW_SHOT:
        assert net.geometry == net.evaluation_geometry == Squash(84, "bicubic")
    elif name in CONTRASTIVE:
        assert (net.geometry, net.evaluation_geometry) == (Squash(224), ResizeCrop(256, 224))
    else:
        assert (net.geometry, net.evaluation_geometry) == (Squash(227), ResizeCrop(256, 227))
    assert isinstance(net.pooling, GMP if name in RETRIEVAL else GAP)


def test_pooling_and_head_make_the_embedding_of_the_layer():
    net = create_model("npid_resnet18")
    x = torch.rand(2, 3, 50, 64)
    with torch.no_grad():
        parts = net.head(net.pooling(net.layer_module(x)))
        torch.testing.assert_close(net.model(x), F.normalize(parts, dim=1))


def test_bn_inception_sees_bgr_on_the_scale_of_0_to_255_less_its_means():
    net = create_model("margin_bn_inception")
    seen = []
    net.model.features.conv1_7x7_s2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    net.model(net.preprocess(Image.new("RGB", (40, 30), (200, 150, 10))).unsqueeze(0))
    blue, green, red = seen[0][0].mean((1, 2)).tolist()
    assert (blue, green, red) == pytest.approx((10 - 104, 150 - 117, 200 - 128), abs=1e-3)


def test_a_model_explains_itself_with_what_the_registry_says():
    net = create_model("resnet12")
    fam = LayerFAM(net.model, net.layer, similarity=net.similarity)
    x, support = torch.rand(2, 3, 84, 84), torch.rand(3, 3, 84, 84)
    assert fam.attribute(x, support=support).shape == (2, 1, 5, 5)


def test_another_layer_can_be_named_and_then_no_pooling_is_claimed():
    net = create_model("few_shot_resnet18", layer="features.layer3")
    assert net.layer_module is net.model.features.layer3
    assert net.pooling is None
    with pytest.raises(ValueError, match="layer 'layer3' is no submodule of ResNet18"):
        create_model("few_shot_resnet18", layer="layer3")


def test_options_go_to_the_network():
    net = create_model("resnet12", drop_rate=0.1)
    assert isinstance(net.model.features.layer1[0].drop, nn.Dropout)
    slopes = [
        m.negative_slope
        for m in create_model("conv4net", negative_slope=0.2).model.modules()
        if isinstance(m, nn.LeakyReLU)
    ]
    assert slopes == [0.2] * 4
    with pytest.raises(TypeError, match=r"conv4net: .*drop_rate"):
        create_model("conv4net", drop_rate=0.1)
    with pytest.raises(TypeError, match="negative_slope: margin_bn_inception has no LeakyReLU"):
        create_model("margin_bn_inception", negative_slope=0.1)
    with pytest.raises(TypeError, match=r"drop_rate: .*'resnet18'"):
        create_model("resnet18", drop_rate=0.1)


def test_weights_that_cannot_be_downloaded_are_asked_for():
    with pytest.raises(WeightsError, match="npid_resnet50 has none that can be downloaded; give the path"):
        create_model("npid_resnet50", weights="DEFAULT")
