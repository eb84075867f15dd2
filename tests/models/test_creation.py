"""One way to name a model: objects, and factories in modules and files."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, TokenGrid, explain
from captum_fam.demo.network import load_demo_network
from captum_fam.models import EmbeddingModel, create_model, default_weights, has_factory_weights
from captum_fam.models.outputs import EmbeddingOutput, TrunkAndEmbedder
from captum_fam.pooling import GAP, GMP

pytestmark = pytest.mark.filterwarnings("ignore:the preprocessing of:UserWarning")


def trunk(channels: int = 3, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Fields(nn.Module):
    """A network whose output is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.project = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {"features": features, "projection": self.project(features)}


class Blocks(nn.Module):
    """Tokens of patches, and a class token that attends to them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))
        embedding: Tensor = tokens[:, 1:].mean(1)
        return embedding


def images(count: int, height: int = 64, width: int = 48, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def check_account(net: EmbeddingModel, x: Tensor) -> None:
    with torch.no_grad():
        embeddings = net.model(x)
    details = LayerSimilarityCAM(net.model, net.layer, token_grid=net.token_grid).details(x[:2], support=embeddings[2:])
    score = torch.nn.functional.cosine_similarity(embeddings[:2, None], embeddings[None, 2:], dim=2).mean(1)
    assert isinstance(details.shares, dict)
    torch.testing.assert_close(sum(details.shares.values(), torch.zeros(2)), score, rtol=1e-4, atol=1e-5)


def test_of_a_module_layer_and_pooling_are_found() -> None:
    module = nn.Sequential(trunk()[0], trunk()[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.train()
    net = create_model(module, size=(64, 48))
    assert net.model is module
    assert not module.training
    assert (net.name, net.layer, net.size) == ("Sequential", "1", (64, 48))
    assert isinstance(net.pooling, GAP)
    check_account(net, images(5))


def test_settings_are_taken() -> None:
    pooling = GMP()
    net = create_model(
        trunk(),
        layer="0",
        pooling=pooling,
        size=32,
        resize="pad",
        mean=[0.1, 0.2, 0.3],  # type: ignore[arg-type]
        std=(0.4, 0.5, 0.6),
        interpolation="bicubic",
        similarity="dot",
    )
    assert (net.layer, net.pooling, net.similarity) == ("0", pooling, "dot")
    assert net.preprocessing.describe() == {
        "size": 32,
        "resize": "pad",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
        "crop_from": None,
    }
    assert net.notes == ()


def test_the_token_grid_of_an_oblong_image_is_measured_and_can_be_set() -> None:
    torch.manual_seed(0)
    net = create_model(Blocks(), size=(64, 48))
    assert net.token_grid == TokenGrid((8, 6))
    check_account(net, images(5))
    given = TokenGrid((8, 6), registers=0)
    assert create_model(Blocks(), size=(64, 48), layer="block", token_grid=given).token_grid is given


def test_the_token_grid_follows_another_size() -> None:
    net = create_model(Blocks(), size=64)
    assert net.token_grid == TokenGrid()
    assert create_model(net, size=(64, 48)).token_grid == TokenGrid((8, 6))


def test_an_embedding_model_is_taken_as_it_is_and_changed() -> None:
    own = EmbeddingModel("mine", trunk().eval(), "1", size=40, similarity="euclidean")
    assert create_model(own) is own
    changed = create_model(own, size=(40, 20), layer="0", resize="keep")
    assert (changed.name, changed.layer, changed.size, changed.similarity) == ("mine", "0", (40, 20), "euclidean")
    assert changed.pooling is None


def test_an_embedding_model_of_one_size_refuses_others() -> None:
    own = EmbeddingModel("mine", trunk().eval(), "1", size=40, any_size=False)
    assert create_model(own, size=(40, 40)).size == 40
    with pytest.raises(ValueError, match="size=41: mine takes images of 40 pixels only"):
        create_model(own, size=41)
    with pytest.raises(ValueError, match="resize='keep': mine takes"):
        create_model(own, resize="keep")


def test_a_pair_of_trunk_and_embedder() -> None:
    parts = trunk(), nn.Linear(8, 4)
    net = create_model(parts, size=32)
    x = images(5, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.model(x), parts[1](parts[0](x)))
    assert net.layer == "trunk.1"
    check_account(net, x)


@pytest.mark.parametrize("is_normalized", [True, False])
def test_an_inference_model_of_pytorch_metric_learning(is_normalized: bool) -> None:
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    parts = trunk(), nn.Linear(8, 4)
    made = inference.InferenceModel(*parts, normalize_embeddings=is_normalized)
    net = create_model(made, size=32)
    x = images(3, 32, 32)
    torch.testing.assert_close(net.model(x), made.get_embeddings(x))


def test_an_object_with_a_trunk_and_an_embedder_needs_no_library() -> None:
    net = create_model(SimpleNamespace(trunk=trunk(), embedder=nn.Identity(), normalize_embeddings=True), size=32)
    assert isinstance(net.model, TrunkAndEmbedder)
    torch.testing.assert_close(net.model(images(3, 32, 32)).norm(dim=1), torch.ones(3))


def test_an_output_of_four_dimensions_is_flattened() -> None:
    net = create_model(trunk()[:3], size=32)
    assert net.model(images(2, 32, 32)).shape == (2, 8)
    assert (net.layer, isinstance(net.pooling, GAP)) == ("model.1", True)


@pytest.mark.parametrize(
    ("output", "length"), [("features", 8), ("projection", 4), (1, 4), (-2, 8), (lambda made: made["projection"], 4)]
)
def test_a_part_of_the_output_is_the_embedding(output: Any, length: int) -> None:
    net = create_model(Fields(), output=output, size=32)
    assert net.model(images(2, 32, 32)).shape == (2, length)
    assert isinstance(net.model, EmbeddingOutput)
    assert not any(module.training for module in net.model.modules())
    assert create_model(Fields(), output=output, size=32, layer="trunk.0").layer == "model.trunk.0"


class Two(NamedTuple):
    features: Tensor
    logits: Tensor


class NamedFields(Fields):
    """A network whose output is a named tuple."""

    def forward(self, x: Tensor) -> Any:
        return Two(*super().forward(x).values())


@pytest.mark.parametrize(("output", "length"), [("features", 8), ("logits", 4), (np.int64(1), 4)])
def test_a_field_of_a_named_tuple_is_the_embedding(output: Any, length: int) -> None:
    net = create_model(NamedFields(), output=output, size=32)
    assert net.model(images(2, 32, 32)).shape == (2, length)


def test_an_output_of_another_kind_is_refused_before_any_pass() -> None:
    for output in (1.0, True, b"features", ["features"], torch.tensor(1)):
        with pytest.raises(TypeError, match="output must be the name of a field, an index or a function, got"):
            create_model(Fields(), output=output, size=32)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="output must be the name of a field"):
            EmbeddingOutput(Fields(), output)  # type: ignore[arg-type]


def test_a_network_that_needs_more_than_images_is_told_so() -> None:
    class WithMask(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, *, shape: Any, scale: float = 1.0) -> Tensor:
            return (scale * x * mask).mean((2, 3))

    with pytest.raises(ValueError, match="model WithMask needs mask, shape beside images; wrap it"):
        create_model(WithMask(), size=32)


def test_a_network_of_text_and_images_is_told_to_come_as_its_vision_tower() -> None:
    class TextAndImages(nn.Module):
        def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Any:
            return pixel_values.mean((2, 3))

    class ImagesOnly(TextAndImages):
        def forward(self, pixel_values: Any = None) -> Any:  # type: ignore[override]
            return super().forward(None, nn.functional.avg_pool2d(pixel_values, 2))

    message = "model TextAndImages takes input_ids first, and images as pixel_values: pass its vision tower"
    with pytest.raises(TypeError, match=message):
        create_model(TextAndImages(), size=32)
    with pytest.raises(TypeError, match=message):
        explain(TextAndImages(), images(1), images(2))
    with pytest.raises(ValueError, match="ImagesOnly has no module with positions"):
        create_model(ImagesOnly(), size=32)


def test_a_crop_is_that_of_the_network_of_timm_by_name() -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model("resnet18", num_classes=0)
    config = timm.data.resolve_model_data_config(module)
    theirs = timm.data.create_transform(**config).transforms[0].size
    by_name, by_module = create_model("timm/resnet18", resize="crop"), create_model(module, resize="crop")
    assert by_name.preprocessing == by_module.preprocessing
    assert by_name.preprocessing.crop_from == by_module.preprocessing.crop_from == theirs == 235
    assert create_model(module, resize="crop", size=96).preprocessing.crop_from == 101  # 96 / 0.95 is 101.05


def test_of_a_chosen_output_no_classifier_is_noted() -> None:
    class Logits(Fields):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.trunk(x)
            return {"features": features, "logits": self.logits(features)}

    net = Logits()
    net.logits = nn.Linear(8, 1000)
    assert not any("classifier" in note for note in create_model(net, output="features", size=32).notes)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Fields, {}, r"dict with the fields features \(1, 8\), projection \(1, 4\); say which .* output=FIELD"),
        (Fields, {"output": "embedding"}, "output='embedding': the model gives the fields features, projection"),
        (Fields, {"output": 2}, "output=2: the model gives 2 outputs"),
        (trunk, {"output": 0}, "output=0 is an index of a tuple, but the model gives a Tensor"),
        (lambda: trunk()[:2], {}, r"shape \(B, J\), got \(1, 8, 7, 7\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 84 * 84, 8)), {}, r"fails on an image of 3 channels and 32"),
        (lambda: trunk(), {"layer": "nowhere"}, "layer 'nowhere'"),
        (lambda: nn.Conv1d(1, 2, 3), {}, "takes signals"),
        (lambda: nn.Conv3d(1, 2, 3), {}, "takes volumes or videos"),
        (lambda: trunk(), {"similarity": "kosinus"}, "kosinus"),
        (lambda: trunk(), {"size": 5000}, "from 1 to 4096"),
        (lambda: trunk(), {"mean": (0.5,)}, "one number per channel"),
    ],
)
def test_what_cannot_be_explained_is_refused(make: Callable[[], Any], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(make(), **{"size": 32, **arguments})


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (3, "int"),
        (None, "NoneType"),
        (lambda x: x, "function"),
        (nn.Identity, "the class Identity; make an object of it"),
        ((nn.Identity(), 3), "tuple of Identity, int"),
        ((), "tuple of nothing"),
    ],
)
def test_what_is_no_model_is_refused_with_what_is_accepted(model: Any, kind: str) -> None:
    with pytest.raises(
        TypeError, match=rf"model must be a name, a torch.nn.Module .*pair .* InferenceModel .*; got {kind}"
    ):
        create_model(model)


def test_the_arguments_of_registered_networks_are_refused_elsewhere() -> None:
    with pytest.raises(TypeError, match="weights, width: only for models by name, not for an object of class Seq"):
        create_model(trunk(), "weights.pth", width=3)
    with pytest.raises(TypeError, match="width: only for registered networks and factories, not for 'resnet18'"):
        create_model("resnet18", width=3)
    with pytest.raises(ValueError, match="output='features': the output of torchvision/resnet18 is the embedding"):
        create_model("resnet18", output="features")


def test_settings_and_weights_of_other_types_are_refused_by_their_names() -> None:
    for mean in (0.5, ["a", "b", "c"]):
        with pytest.raises(ValueError, match=r"mean must be one number per channel, .*, got (0\.5|\['a')"):
            create_model(trunk(), mean=mean)  # type: ignore[arg-type]
    for weights in (trunk().state_dict(), 3):
        with pytest.raises(TypeError, match=r"weights must be the path of a file .*, got (OrderedDict|int)"):
            create_model("resnet18", weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_other_numbers_of_channels_are_not_normalized_and_that_is_said(channels: int) -> None:
    with pytest.warns(UserWarning, match=r"assumed are images of 32 x 32 pixels, mean \(0.* and std \(1") as caught:
        net = create_model(trunk(channels), size=32)
    assert (net.mean, net.std) == ((0.0,) * channels, (1.0,) * channels)
    assert net.notes == (str(caught[0].message),)
    assert net.model(images(2, 32, 32, channels)).shape == (2, 8)


def test_a_note_of_an_assumed_preprocessing_is_given_until_it_is_said() -> None:
    assert "224 x 224" in create_model(trunk()).notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = create_model(trunk(), size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert net.notes == ()


def test_a_classifier_that_is_still_on_is_said() -> None:
    network = nn.Sequential(trunk(), nn.Linear(8, 1000))
    with pytest.warns(UserWarning, match=r"classifier still on, layer '1' \(1000 outputs\)"):
        net = create_model(network, size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert "torch.nn.Identity()" in net.notes[0]


def test_a_classifier_that_does_not_run_is_no_classifier() -> None:
    network = trunk()
    network.fc = nn.Linear(8, 1000)
    network.forward = lambda images: nn.Sequential.forward(network[:4], images)  # type: ignore[method-assign]
    assert create_model(network, size=32, mean=(0.0,) * 3, std=(1.0,) * 3).notes == ()


def test_a_double_network_is_measured_in_double() -> None:
    net = create_model(trunk().double(), size=32)
    assert isinstance(net.pooling, GAP)


FACTORY = """
from torch import nn
from helpers_of_{name} import WIDTH
from captum_fam.models import EmbeddingModel

class Network(nn.Sequential):
    def __init__(self, width=WIDTH):
        super().__init__(nn.Conv2d(3, width, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def build(width=WIDTH):
    return Network(width)

def described():
    return EmbeddingModel("theirs", Network().eval(), "1", size=48, mean=(0, 0, 0), std=(1, 1, 1))

def pair():
    return Network(), nn.Linear(WIDTH, 2)

def late():
    from late_helpers_of_{name} import HEIGHT
    return Network(HEIGHT)

def number():
    return 3

def fails():
    raise KeyError("lost")

def leaves():
    raise SystemExit(3)

ready = Network()
text = "no function"
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module of networks in the current folder, which is not on the path of Python."""
    name = f"networks_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(FACTORY.format(name=name))
    (tmp_path / f"helpers_of_{name}.py").write_text("WIDTH = 6\n")
    (tmp_path / f"late_helpers_of_{name}.py").write_text("HEIGHT = 7\n")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("form", ["{}:{}", "{}.py:{}", "./{}.py:{}"])
def test_a_factory_of_the_current_folder_is_found_and_the_path_stays(form: str, code: str) -> None:
    before = list(sys.path)
    name = form.format(code, "build")
    net = create_model(name, size=32)
    assert sys.path == before
    assert (net.name, net.model(images(2, 32, 32)).shape) == (name, (2, 6))
    assert create_model(name, size=32, width=5).model(images(2, 32, 32)).shape == (2, 5)


def test_a_factory_may_import_a_file_beside_it_when_it_is_called(code: str, monkeypatch: Any) -> None:
    path = Path(f"{code}.py").resolve()
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert create_model(f"{path}:late", size=32).model(images(2, 32, 32)).shape == (2, 7)
    assert sys.path == before


def test_a_file_elsewhere_is_found_and_its_classes_go_to_other_processes(code: str, monkeypatch: Any) -> None:
    path = Path(f"{code}.py").resolve()
    monkeypatch.chdir("/")
    net = create_model(f"{path}:build", size=32)
    again = pickle.loads(pickle.dumps(net.model))
    assert type(again) is type(net.model)


@pytest.mark.parametrize(("factory", "length"), [("Network", 6), ("described", 6), ("pair", 2), ("ready", 6)])
def test_a_factory_may_give_any_form_of_model(factory: str, length: int, code: str) -> None:
    net = create_model(f"{code}:{factory}", size=32)
    assert net.model(images(2, 32, 32)).shape == (2, length)
    assert net.size == 32


def test_weights_are_loaded_into_what_a_factory_gives(code: str) -> None:
    trained = create_model(f"{code}:build", size=32).model
    torch.save(trained.state_dict(), "weights.pth")
    net = create_model(f"{code}:described", "weights.pth")
    torch.testing.assert_close(net.model.state_dict(), trained.state_dict())
    assert net.size == 48
    assert (default_weights(f"{code}:build"), has_factory_weights(f"{code}:build")) == ("DEFAULT", True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("{}:biuld", ValueError, "has no biuld; it has Network, build, described"),
        ("{}:", ValueError, "has no name behind the colon; it has Network"),
        ("{}:number", ValueError, "its factory must give a torch.nn.Module .*; got int"),
        ("{}:fails", ValueError, "fails raised KeyError: 'lost'"),
        ("{}:leaves", ValueError, "leaves raised SystemExit: 3"),
        ("{}:text", ValueError, "text is a str, expected a function or a class"),
        ("{}s.py:build", ImportError, r"there is no file .*; did you mean {}\.py"),
        ("no_such_module:build", ImportError, "No module named 'no_such_module'; it is neither installed nor in "),
        ("{}.py", ValueError, r"a file needs its factory: {}\.py:FACTORY"),
    ],
)
def test_a_factory_that_fails_says_why(name: str, error: type[Exception], message: str, code: str) -> None:
    with pytest.raises(error, match=message.replace("{}", code)):
        create_model(name.replace("{}", code), size=32)


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (3, 5):
        folder = tmp_path / str(width)
        folder.mkdir()
        # "json" is a module of Python, too.
        for name in ("twice_there", "json"):
            (folder / f"{name}.py").write_text(FACTORY.format(name=name).replace(f"helpers_of_{name}", "the_helpers"))
        (folder / "the_helpers.py").write_text(f"WIDTH = {width}\n")
        monkeypatch.delitem(sys.modules, "the_helpers", raising=False)
        monkeypatch.chdir(folder)
        for name in ("twice_there:build", "twice_there.py:build", "json.py:build", "json:build"):
            made = create_model(name, size=32).model
            assert made(images(2, 32, 32)).shape == (2, width)
            assert type(pickle.loads(pickle.dumps(made))) is type(made)

    assert json.loads("[1]") == [1]


def test_code_that_imports_what_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("incomplete_networks.py").write_text("import no_such_library\n")
    for name in ("incomplete_networks:build", "incomplete_networks.py:build"):
        with pytest.raises(ImportError, match=r"No module named 'no_such_library'; .* imports it: install it"):
            create_model(name)
    assert "incomplete_networks" not in sys.modules


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hgf/dinov2", "did you mean hf/dinov2"),
        ("facebook/dinov2-base", "did you mean hf/facebook/dinov2-base"),
        ("resnet51", "did you mean resnet50"),
        ("demi", "did you mean demo"),
    ],
)
def test_a_typing_error_is_answered_with_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"model '{name}' is unknown; {hint}"):
        create_model(name)


def test_the_network_of_the_demo_has_a_name() -> None:
    net = create_model("demo", size=(84, 64))
    assert (net.layer, net.mean, net.std, default_weights("demo")) == ("features", (0,) * 3, (1,) * 3, "DEFAULT")
    assert has_factory_weights("demo")
    assert not has_factory_weights("resnet50")
    assert not has_factory_weights("conv4")
    torch.testing.assert_close(net.model.state_dict(), load_demo_network().state_dict())
