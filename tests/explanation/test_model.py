"""A model in every form that people have it, and what is said of what had to be assumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import VisionTransformer

from captum_fam import SimilarityToSupport, TokenGrid, create_model, explain, explain_pairs
from captum_fam.preprocessing import Preprocessing
from tests.explanation.by_hand import (
    HEIGHT,
    MEAN,
    STD,
    WIDTH,
    cosines,
    embeddings,
    picture,
    small_model,
    small_net,
)

QUERIES, BIRDS = [picture(1), picture(2)], [picture(40), picture(41), picture(42)]
SIZE = Preprocessing((HEIGHT, WIDTH), mean=MEAN, std=STD)


def expected() -> Tensor:
    return cosines(embeddings(QUERIES), embeddings(BIRDS)).mean(1, keepdim=True)


class Output:
    """An output object as transformers gives it."""

    def __init__(self, **fields: Tensor) -> None:
        self.__dict__.update(fields)


class WithOutput(nn.Module):
    def __init__(self, field: str) -> None:
        super().__init__()
        self.net = small_net()
        self.field = field

    def forward(self, images: Tensor) -> Output:
        embedding = self.net(images)
        return Output(last_hidden_state=embedding[:, None, :3], **{self.field: embedding})


class InferenceLike:
    """As pytorch-metric-learning has it: no module, but trunk, embedder and a switch."""

    def __init__(self) -> None:
        net = small_net()
        self.trunk = nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.embedder = net.head
        self.normalize_embeddings = True

    def __call__(self, images: Tensor) -> Tensor:
        raise AssertionError


def _pair() -> tuple[nn.Module, nn.Module]:
    like = InferenceLike()
    return like.trunk.eval(), like.embedder.eval()


def _inference() -> InferenceLike:
    like = InferenceLike()
    like.trunk.eval(), like.embedder.eval()
    return like


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small_model, {}),
        (small_net, {"preprocess": SIZE}),
        (_pair, {"preprocess": SIZE}),
        (lambda: list(_pair()), {"preprocess": SIZE}),
        (_inference, {"preprocess": SIZE}),
        (lambda: WithOutput("pooler_output").eval(), {"preprocess": SIZE}),
        (lambda: WithOutput("image_embeds").eval(), {"preprocess": SIZE}),
        (lambda: WithOutput("projection").eval(), {"preprocess": SIZE, "output": "projection"}),
        (lambda: WithOutput("projection").eval(), {"preprocess": SIZE, "output": lambda made: made.projection}),
        (lambda: "tests.explanation.by_hand:small_model", {}),
        (small_net, {"preprocess": SIZE, "layer": "features"}),
        (lambda: small_net().forward, {"preprocess": SIZE}),
    ],
    ids="card module pair list inference pooler embeds field function name layer bound".split(),
)
@pytest.mark.filterwarnings("ignore:more than half", "ignore:the map explains")
def test_every_form_of_a_model(make: Callable[[], Any], options: dict[str, Any]) -> None:
    model = make()
    if getattr(model, "__name__", "") == "forward":  # a function has no layers to look up by name
        options = {**options, "layer": model.__self__.features}
    why = explain(model, QUERIES, BIRDS, **options)
    torch.testing.assert_close(why.scores.double(), expected(), rtol=0, atol=1e-5)
    assert why.attributions.shape == (2, 1, 9, 5)


def test_a_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "net_of_a_user.py").write_text("from tests.explanation.by_hand import small_model as build\n")
    monkeypatch.chdir(tmp_path)
    why = explain("net_of_a_user.py:build", QUERIES, BIRDS)
    torch.testing.assert_close(why.scores.double(), expected(), rtol=0, atol=1e-5)
    assert why.about["model"] == "small"


def test_the_network_of_the_demo() -> None:
    why = explain("demo", QUERIES, BIRDS)
    net = create_model("demo").model.double()

    def inputs(images: list[Image.Image]) -> Tensor:
        pixels = [np.asarray(image.resize((84, 84), Image.Resampling.BILINEAR), np.float64) / 255 for image in images]
        return torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy())

    with torch.no_grad():
        cosine = cosines(net(inputs(QUERIES)), net(inputs(BIRDS))).mean(1, keepdim=True)
    torch.testing.assert_close(why.scores.double(), cosine, rtol=0, atol=1e-5)


def test_a_transform_of_torchvision_prepares_pictures() -> None:
    transform = transforms.Compose(
        [
            transforms.CenterCrop(30),
            transforms.Resize((HEIGHT, WIDTH)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    why = explain(small_net(), QUERIES, BIRDS, preprocess=transform)

    def cropped(images: list[Image.Image]) -> list[Image.Image]:
        # Pictures are 47 pixels wide and 33 high; torchvision rounds the half pixel of the corner down to even.
        corners = [(round((image.width - 30) / 2), round((image.height - 30) / 2)) for image in images]
        return [image.crop((x, y, x + 30, y + 30)) for image, (x, y) in zip(images, corners, strict=True)]

    cosine = cosines(embeddings(cropped(QUERIES)), embeddings(cropped(BIRDS))).mean(1, keepdim=True)
    torch.testing.assert_close(why.scores.double(), cosine, rtol=0, atol=1e-5)
    # Only the result of the transform is known, so that this is what is drawn.
    shown = why.images[0]
    assert isinstance(shown, Image.Image)
    assert shown.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: np.asarray(image), r"preprocess must give a tensor \(C, H, W\) .*got ndarray"),
        (lambda image: transforms.ToTensor()(image)[None], r"preprocess .*\(1, 3, 33, 47\)"),
    ],
)
def test_a_transform_that_gives_no_input_is_named(transform: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        explain(small_net(), QUERIES, BIRDS, preprocess=transform)


def test_an_assumed_preprocessing_is_said_once() -> None:
    with pytest.warns(UserWarning, match="the preprocessing of the model is not known") as caught:
        why = explain(small_net(), QUERIES, BIRDS, batch_size=1)
    assert len([one for one in caught if "preprocessing" in str(one.message)]) == 1
    assert "224 x 224" in " ".join(why.notes)
    assert "preprocess=" in " ".join(why.notes)
    for model, options in ((small_model(), {}), (small_net(), {"preprocess": SIZE})):
        assert not [note for note in explain(model, QUERIES, BIRDS, **options).notes if "preprocessing" in note]
    tensors = torch.stack([SIZE(image) for image in QUERIES])
    assert not [note for note in explain(small_net(), tensors, tensors[:1] + 1).notes if "preprocessing" in note]


def test_a_classifier_that_is_still_on_is_said() -> None:
    net = nn.Sequential(small_net(), nn.Linear(5, 1000)).eval()
    with pytest.warns(UserWarning, match="classifier still on"):
        why = explain(net, QUERIES, BIRDS, preprocess=SIZE, layer="0.features")
    assert [note for note in why.notes if "classifier still on" in note]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*classifier still on")
        explain(small_net(), QUERIES, BIRDS, preprocess=SIZE)


def test_random_weights_of_a_name_are_said() -> None:
    images = torch.rand(3, 3, 84, 84)
    with pytest.warns(UserWarning, match="conv4net: no trained weights are known"):
        why = explain("conv4net", images[:1], images[1:])
    assert [note for note in why.notes if "create_model('conv4net', weights=FILE)" in note]
    assert explain("demo", images[:1], images[1:]).notes == ()


class WithoutItsClassifier(nn.Module):
    """A network that has a classifier, and does not run it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.fc = small_net(), nn.Linear(5, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)


def test_a_classifier_that_does_not_run_is_no_classifier() -> None:
    net = WithoutItsClassifier().eval()
    images = torch.stack([SIZE(image) for image in QUERIES])
    for why in (
        explain(net, QUERIES, BIRDS, preprocess=SIZE, layer="trunk.features"),
        explain_pairs(net, images, images.flip(0), layer="trunk.features"),
    ):
        assert not [note for note in why.notes if "classifier" in note]
    net.forward = lambda images: net.fc(net.trunk(images))  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"classifier still on, layer 'fc' \(1000 outputs\)"):
        explain_pairs(net, images, images.flip(0), layer="trunk.features")


@pytest.mark.filterwarnings("ignore")
def test_the_tokens_of_a_named_layer_are_measured() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    net.heads = nn.Identity()
    inputs, support = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32)
    layer = "encoder.layers.encoder_layer_1.ln_1"
    found, given = (
        explain(net, inputs, support, layer=layer, method="similarity-cam", **options)
        for options in ({}, {"token_grid": TokenGrid((4, 4))})
    )
    torch.testing.assert_close(found.attributions, given.attributions)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("resnet5O", {}, ValueError, "resnet5O.*did you mean"),
        ("nowhere.py:build", {}, ImportError, "nowhere.py"),
        (3, {}, TypeError, "model must be .*got int"),
        ((small_net(), 3), {}, TypeError, "model must be .*tuple of SmallNet, int"),
        (WithOutput("projection").eval(), {"layer": "net.features"}, TypeError, "projection.*output="),
        (WithOutput("projection").eval(), {"output": "nothing"}, ValueError, "output='nothing'.*projection"),
        (small_net(), {"layer": "nowhere"}, ValueError, "nowhere"),
        (lambda images: images.mean((2, 3)), {}, TypeError, "name the layer"),
    ],
    ids=["name", "file", "number", "pair", "fields", "field", "layer", "function"],
)
def test_what_is_no_model_is_refused_by_name(
    model: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explain(model, QUERIES, BIRDS, preprocess=SIZE, **options)


def test_a_model_with_its_support_is_no_embedding_model() -> None:
    scores = SimilarityToSupport(small_net(), torch.rand(3, 5))
    with pytest.raises(TypeError, match="SimilarityToSupport, whose outputs are no embeddings"):
        explain(scores, QUERIES, BIRDS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["similarity-cam", "correspondence"])
def test_pictures_get_the_type_of_the_weights(dtype: torch.dtype, method: str) -> None:
    """The second query is a support too: it is found there in any precision."""
    card = small_model()
    queries, support, foil = [picture(0), picture(1)], [picture(1), picture(2), picture(3)], [picture(4), picture(5)]
    net, options = small_net().to(dtype), {"layer": "features", "method": method, "foil": foil}
    with pytest.warns(UserWarning, match="1 of 2 queries are among their own supports"):
        why = explain(net, queries, support, preprocess=card.preprocessing, **options)
    expected = explain(card, queries, support, **options)
    torch.testing.assert_close(why.scores.float(), expected.scores, rtol=0, atol=2e-2)
    assert why.target_scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_transform_that_gives_whole_numbers_is_not_converted() -> None:
    seen: list[torch.dtype] = []

    class Bytes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(pixels.dtype)
            return self.net(pixels.float() / 255)

    def transform(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    explain(Bytes().eval(), [picture(0)], [picture(1)], preprocess=transform, layer="net.features")
    assert set(seen) == {torch.uint8}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small_model(), {"preprocess": 3}, r"preprocess must be .*tensor \(C, H, W\), got int"),
        (small_model(), {"preprocess": {"size": 3}}, "preprocess must be .*got dict"),
        (type(small_net()), {}, "model must be .*got the class SmallNet; make an object of it"),
    ],
    ids=["number", "mapping", "class"],
)
def test_what_is_no_model_or_preprocessing_is_named(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        explain(model, [picture(0)], [picture(1)], **options)
