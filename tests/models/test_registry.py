"""Every model by name, with what an explanation needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models

from captum_fam import LayerFAM, TokenGrid
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.models import BNInception, EmbeddingModel, WeightsError, create_model, list_models
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


def test_the_list_names_all_models_of_the_paper_and_both_libraries():
    assert set(list_models()) == {*FEW_SHOT, *CONTRASTIVE, *RETRIEVAL}
    assert "torchvision/resnet50" in list_models("torchvision")
    with pytest.raises(ValueError, match="source must be"):
        list_models("hub")


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


def test_an_image_is_squashed_by_bicubic_interpolation_and_normalized():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 120, 3), dtype=np.uint8))
    net = create_model("conv4net")
    expected = np.asarray(image.resize((84, 84), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(
        net.preprocess(image).double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-5
    )


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
    with pytest.raises(ValueError, match="layer 'layer3' is no module of few_shot_resnet18"):
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
    with pytest.raises(TypeError, match="drop_rate: only for the networks of the paper, not for 'resnet18'"):
        create_model("resnet18", drop_rate=0.1)


def test_the_card_can_be_changed_in_part():
    net = create_model("conv4net")
    other = dataclasses.replace(net, size=64, interpolation="bilinear")
    assert other.geometry == Squash(64)
    assert other.model is net.model


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_torchvisions_models_go_through_the_same_door(name):
    net = create_model(name)
    assert isinstance(net, EmbeddingModel)
    assert (net.name, net.layer) == ("torchvision/resnet18", "layer4")
    assert (net.geometry, net.evaluation_geometry) == (Squash(224), ResizeCrop(256, 224))
    x = torch.rand(2, 3, 64, 50)
    with torch.no_grad():
        torch.testing.assert_close(net.model(x), net.pooling(net.model.layer4(_before_layer4(net.model, x))))


def test_a_transformer_of_torchvision_brings_its_token_grid_and_no_pooling(monkeypatch):
    small = models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48)
    monkeypatch.setattr(models, "get_model", lambda *_, **__: small)
    net = create_model("vit_b_32")
    assert net.token_grid == TokenGrid()
    assert net.pooling is None


def _before_layer4(model, x):
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer3(model.layer2(model.layer1(x)))


def test_torchvisions_state_dict_loads_through_the_same_door(tmp_path):
    state = create_model("squeezenet1_0").model.state_dict()
    torch.save(state, tmp_path / "a.pth")
    again = create_model("squeezenet1_0", weights=tmp_path / "a.pth").model.state_dict()
    torch.testing.assert_close(again, state)


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def test_a_convolutional_model_of_timm_goes_through_the_same_door(timm, tmp_path):
    net = create_model("timm/resnet18")
    assert (net.name, net.layer, net.token_grid) == ("timm/resnet18", "layer4", None)
    assert isinstance(net.pooling, GAP)
    theirs = timm.create_model("resnet18").eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "a.pth")
    net = create_model("timm/resnet18", weights=tmp_path / "a.pth")
    assert net.layout == "timm"
    x = torch.rand(2, 3, 64, 50)
    with torch.no_grad():
        torch.testing.assert_close(net.model(x), theirs.forward_features(x).mean((2, 3)))
    config = timm.data.resolve_model_data_config(theirs)
    assert (net.mean, net.std) == (config["mean"], config["std"])
    assert net.interpolation == "bicubic"
    with pytest.raises(WeightsError, match=r"do not fit ResNet, read as of timm: .* missing"):
        create_model("timm/resnet34", weights=tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "layer", "map_size"),
    [
        ("vit_tiny_patch16_224", "pos_drop", (14, 14)),
        pytest.param("deit_tiny_distilled_patch16_224", "pos_drop", (14, 14), marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "norm", (7, 7), marks=pytest.mark.slow),
        ("mixer_s32_224", "norm", (7, 7)),
        pytest.param("xcit_nano_12_p16_224", "blocks.11", (14, 14), marks=pytest.mark.slow),
    ],
)
def test_a_transformer_of_timm_is_explained_on_its_grid_of_tokens(timm, name, layer, map_size):
    net = create_model(f"timm/{name}")
    assert net.layer == layer
    fam = LayerFAM(net.model, net.layer, token_grid=net.token_grid, normalization="none")
    attributions = fam.attribute(torch.rand(1, 3, 224, 224), support=torch.rand(2, 3, 224, 224))
    assert attributions.shape == (1, 1, *map_size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npid_resnet51", "did you mean npid_resnet50"),
        ("torchvision/resnet5", "did you mean resnet50"),
        ("nothing_like_it", r"list_models\(\) lists them; timm's are timm/NAME"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=f"model '{name}' is unknown; {message}"):
        create_model(name)


def test_an_unknown_model_or_layer_of_timm_is_answered_with_the_nearest(timm):
    with pytest.raises(ValueError, match="model 'resnet5' is none of timm; did you mean resnet50"):
        create_model("timm/resnet5")
    with pytest.raises(ValueError, match="layer 'layer5' is no submodule of ResNet; its children are conv1, bn1"):
        create_model("timm/resnet18", layer="layer5")


def test_a_layer_of_timm_that_runs_twice_is_refused(timm):
    with pytest.raises(ValueError, match=r"layer 'serial_blocks1\.0\.cpe' of CoaT runs 2 times; name another"):
        create_model("timm/coat_lite_tiny", layer="serial_blocks1.0.cpe")


@pytest.mark.parametrize("name", ["convnext_tiny", "timm/convnext_atto"])
def test_a_convnext_of_either_library_is_pooled_and_then_normalized(name):
    pytest.importorskip("timm")
    net = create_model(name)
    assert (net.layer, net.token_grid) == ({"convnext_tiny": "features"}.get(name, "stages"), None)
    assert isinstance(net.pooling, GAP)
    kept, x = [], torch.rand(2, 3, 64, 96)
    net.layer_module.register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        embedding = net.model(x)
        torch.testing.assert_close(net.head(net.pooling(kept[0])), embedding, rtol=1e-4, atol=1e-5)
    # A layer norm without a shift: the features of an embedding have the mean 0 and the variance 1.
    torch.testing.assert_close(embedding.mean(1), torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("short", "name"), [("conv4", "conv4net"), ("squeezenet", "torchvision/squeezenet1_0")])
def test_a_short_name_is_the_network_of_the_full_one(short, name):
    net = create_model(short)
    assert net.name == name
    full = create_model(name)
    assert net.size == full.size
    assert {key: value.shape for key, value in net.model.state_dict().items()} == {
        key: value.shape for key, value in full.model.state_dict().items()
    }


def test_weights_that_cannot_be_downloaded_are_asked_for():
    with pytest.raises(WeightsError, match="npid_resnet50 has none that can be downloaded here; give the path"):
        create_model("npid_resnet50", weights="DEFAULT")


def test_the_networks_can_be_trained():
    net = BNInception(embedding_size=4).train()
    net(torch.rand(2, 3, 64, 36)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
