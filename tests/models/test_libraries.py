"""Models of torchvision and timm through the same door as registered ones."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision import models

from captum_fam import LayerFAM, LayerSimilarityCAM, TokenGrid
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.models import EmbeddingModel, WeightsError, create_model, list_models
from captum_fam.pooling import GAP


def test_each_library_lists_its_models_under_its_name():
    assert "torchvision/resnet50" in list_models("torchvision")
    with pytest.raises(ValueError, match=r"source .* 'torchvision', 'timm', 'hf', 'open_clip', got 'hub'"):
        list_models("hub")


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
        ("nothing_like_it", r"list_models\(\) lists them; those of libraries are timm/NAME"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=f"model '{name}' is unknown; {message}"):
        create_model(name)


def test_an_unknown_model_or_layer_of_timm_is_answered_with_the_nearest(timm):
    with pytest.raises(ValueError, match="model 'resnet5' is no model of timm; did you mean resnet50"):
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


def test_a_network_of_timm_for_one_size_is_made_for_another(timm):
    net = create_model("timm/test_vit", size=(160, 96))
    with torch.no_grad():
        embeddings = net.model(torch.rand(5, 3, 160, 96))
    assert (net.size, net.token_grid.size) == ((160, 96), (10, 6))
    details = LayerSimilarityCAM(net.model, net.layer, token_grid=net.token_grid).details(
        torch.rand(2, 3, 160, 96), support=embeddings
    )
    assert details.attributions.shape == (2, 1, 10, 6)
    with pytest.raises(ValueError, match=r"size=\(161, 96\): .* fails on images of 3 channels and this size"):
        create_model("timm/test_vit", size=(161, 96))


def test_a_network_of_torchvision_for_one_size_refuses_another(monkeypatch):
    small = models.VisionTransformer(64, 16, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=48)
    monkeypatch.setattr(models, "get_model", lambda *_, **__: small)
    with pytest.raises(ValueError, match="size=96: torchvision/vit_b_32 takes images of 64 pixels only"):
        create_model("vit_b_32", size=96)
    assert create_model("vit_b_32", size=(64, 64)).size == 64


def test_an_oblong_size_and_a_way_to_resize_go_through_every_door():
    net = create_model("squeezenet", size=(96, 64), resize="pad")
    assert net.preprocess(Image.new("RGB", (50, 40))).shape == (3, 96, 64)
    assert create_model("conv4", size=(64, 96)).preprocess(Image.new("RGB", (50, 40))).shape == (3, 64, 96)
    assert create_model("squeezenet", resize="crop").geometry == ResizeCrop(256, 224)
    assert create_model("squeezenet", resize="crop", size=112).geometry == ResizeCrop(128, 112)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "cait_xxs24_224"])
def test_a_class_token_that_comes_late_is_in_no_grid(timm, name):
    net = create_model(f"timm/{name}", size=64)
    assert net.token_grid.prefix_tokens == 0
    fam = LayerFAM(net.model, net.layer, token_grid=net.token_grid, normalization="none")
    assert fam.attribute(torch.rand(1, 3, 64, 64), support=torch.rand(2, 3, 64, 64)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda timm: timm.create_model("resnet10t", features_only=True),
            r"got a list of .*; wrap it .* or say which element it is with output=INDEX",
        ),
        (
            lambda timm: timm.create_model("resnet10t", num_classes=0, global_pool=""),
            r"shape \(B, J\), got \(1, 512, 6, 6\); pool or flatten its output",
        ),
    ],
)
def test_a_network_of_timm_without_an_embedding_is_refused(timm, make, message):
    with pytest.raises(ValueError, match=message):
        create_model(make(timm))
