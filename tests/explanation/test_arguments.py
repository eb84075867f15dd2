"""Arguments that do not fit are refused with one error that says what came and what was expected."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam import Explanation, SupportSet, explain, explain_pairs
from captum_fam.explanation import BatchExplainer
from captum_fam.images import UnreadableImageError
from captum_fam.similarity import EuclideanDifference, Mahalanobis, UnitEuclidean
from tests.explanation.by_hand import picture, small_model, small_net

pytestmark = pytest.mark.filterwarnings("ignore:the map", "ignore:more than half of a map", "ignore:no foil")

NET = small_net()
X, Y = torch.rand(4, 3, 20, 12), torch.rand(4, 3, 20, 12)
PHOTOS = [picture(seed) for seed in range(4)]


def bytes_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("similarity", ["euclidean", "squared-euclidean", UnitEuclidean(), Mahalanobis(torch.eye(5))])
def test_a_threshold_of_a_distance_must_be_negative(similarity: Any) -> None:
    options: dict[str, Any] = {"layer": "features", "similarity": similarity, "against": "threshold"}
    for call in (
        lambda threshold: explain(NET, X, Y, threshold=threshold, **options),
        lambda threshold: explain_pairs(NET, X, Y, threshold=threshold, **options),
    ):
        with pytest.raises(ValueError, match=r"threshold is 1\.1, but scores of \w+ are negated distances.*pass -1\.1"):
            call(1.1)
        assert call(-1.1).contrast == "threshold -1.1"
        assert call(0).contrast == "threshold 0"


def test_a_threshold_of_the_cosine_is_a_cosine() -> None:
    options: dict[str, Any] = {"layer": "features", "against": "threshold"}
    for threshold in (1.01, -2, 30):
        for call in (explain, explain_pairs):
            with pytest.raises(ValueError, match=rf"threshold is {threshold}, but scores of Cosine are from -1 to 1"):
                call(NET, X, Y, threshold=threshold, **options)
    assert float(explain_pairs(NET, X, X, threshold=1, **options).target_scores.abs().max()) < 1e-6
    explain(NET, X, Y, threshold=30, similarity="dot", **options)
    with pytest.raises(ValueError, match=r"threshold is -2\.1, but scores of UnitEuclidean are from -2 to 0"):
        explain(NET, X, Y, threshold=-2.1, similarity=UnitEuclidean(), **options)


@pytest.fixture(scope="module")
def why() -> Explanation:
    return explain(NET, X, SupportSet(Y, [0, 0, 1, 1]), layer="features", sides="both", names=list("abcd"))


METHODS: dict[str, Callable[[Explanation, Any], Any]] = {
    "figure": lambda why, index: np.asarray(why.figure(index).as_image()),
    "overlay": lambda why, index: np.asarray(why.overlay(index)),
    "score_text": lambda why, index: why.score_text(index),
    "account_text": lambda why, index: why.account_text(index),
    "supports_of": lambda why, index: why.supports_of(index),
    "show": lambda why, index: why.show(index),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_query_is_named_by_its_position_or_its_name(
    method: str, why: Explanation, capsys: pytest.CaptureFixture[str]
) -> None:
    call = METHODS[method]
    made = []
    for index in (2, -2, "c", torch.tensor(2), np.int64(2)):
        made.append((call(why, index), capsys.readouterr().out))
    for one, printed in made[1:]:
        assert np.array_equal(one, made[0][0])
        assert printed == made[0][1]
    with pytest.raises(IndexError, match="index 4 is out of range for an explanation of 4 queries"):
        call(why, 4)
    with pytest.raises(IndexError, match="index -5 is out of range"):
        call(why, -5)
    with pytest.raises(KeyError, match="no query has the name 'owl'; the names are a, b, c, d"):
        call(why, "owl")
    for index in (True, 1.5, None, slice(2), [0]):
        with pytest.raises(TypeError, match="position"):
            call(why, index)


@pytest.mark.parametrize("call", [explain, explain_pairs])
def test_a_layer_is_a_module_a_name_or_a_list_of_these(call: Any) -> None:
    for layer, got in ((3, "int"), (["features", 3], "a list of str and int")):
        with pytest.raises(TypeError, match=f"layer must be a module, its dotted name, or a list of these, got {got}"):
            call(NET, X, Y, layer=layer)
    with pytest.raises(ValueError, match="layer is an empty list"):
        call(NET, X, Y, layer=[])


def test_the_message_names_the_function_that_was_called() -> None:
    with pytest.raises(TypeError, match=r"neither explain\(\) nor .* has an argument 'bias'"):
        explain(NET, X, Y, bias=1)
    with pytest.raises(TypeError, match=r"neither explain_pairs\(\) nor .* has an argument 'bias'"):
        explain_pairs(NET, X, Y, bias=1)
    with pytest.raises(TypeError, match=r"neither BatchExplainer\(\) nor .* has an argument 'bias'"):
        BatchExplainer(NET, Y, bias=1)


@pytest.mark.parametrize(
    ("left", "right", "error", "words"),
    [
        (X[0], Y[0], ValueError, r"left: image 0, of shape \(20, 12\), is a signal .* image\[None\]"),
        (X.byte(), Y, TypeError, r"left: image 0 has values of torch.uint8 but the model weights of torch.float32"),
        (X, Y.double(), TypeError, r"right: image 0 has values of torch.float64"),
        (X.permute(0, 2, 3, 1), Y, ValueError, r"left: image 0, of shape \(20, 12, 3\), has its channels last; pass"),
        (X, torch.rand(4, 5, 20, 12), ValueError, r"right: image 0, of shape \(5, 20, 12\), has 5 channels"),
        (list(X), Y, TypeError, r"left must be .* got a list of Tensor; join them with torch.stack"),
        (X, list(Y), TypeError, r"right must be .* got a list of Tensor; join them with torch.stack"),
    ],
)
def test_images_of_pairs_that_do_not_fit_are_named(left: Any, right: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        explain_pairs(NET, left, right, layer="features")


def test_queries_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"inputs: image 0, of shape \(20, 12, 3\), has its channels last"):
        explain(NET, X.permute(0, 2, 3, 1), torch.rand(3, 5), layer="features")
    with pytest.raises(TypeError, match=r"inputs: image 0 has values of torch.int64"):
        explain(NET, X.long(), torch.rand(3, 5), layer="features")


def test_an_error_of_the_model_itself_stays() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of paint")

    for call in (explain, explain_pairs):
        with pytest.raises(RuntimeError, match=r"^out of paint$"):
            call(Broken().eval(), X, Y, layer="features")


def test_addresses_of_the_web_are_not_read() -> None:
    url = "https://example.com/a/wren.jpg?size=1"
    words = r"picture 0 is the URL 'https://example.com/a/wren.jpg\?size=1', and URLs are not read; download"
    net = small_model()
    for call, name in (
        (lambda: explain(net, url, PHOTOS), "inputs"),
        (lambda: explain(net, PHOTOS, [url]), "support"),
        (lambda: explain(net, PHOTOS, {"jay": [url], "wren": PHOTOS}), r"support\['jay'\]"),
        (lambda: explain(net, PHOTOS[:2], [[PHOTOS[1]], [url]]), r"support\[1\]"),
        (lambda: explain(net, PHOTOS, PHOTOS, foil="gallery", gallery=[url]), "gallery"),
        (lambda: explain_pairs(net, [url], PHOTOS[:1]), "left"),
        (lambda: explain_pairs(net, PHOTOS[:1], [url]), "right"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {words}"):
            call()


def test_a_picture_of_a_pair_that_cannot_be_read_is_named_by_its_side_and_position(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnreadableImageError, match=r"^right: picture 1: .*text.png: cannot be read as an image"):
        explain_pairs(small_model(), PHOTOS[:3], [PHOTOS[1], tmp_path / "text.png", PHOTOS[0]], batch_size=1)
    with pytest.raises(UnreadableImageError, match=r"^left: picture 0: image: cannot be read"):
        explain_pairs(small_model(), [b"no picture"], [PHOTOS[1]])
    with pytest.raises(UnreadableImageError, match=r"^left: picture 2: .*nowhere.png: no such file"):
        explain_pairs(small_model(), [*PHOTOS[:2], "nowhere.png"], PHOTOS[:3])


def test_a_file_in_memory_is_read_as_its_bytes() -> None:
    net, files = small_model(), [io.BytesIO(bytes_of(one)) for one in PHOTOS]
    expected = explain(net, PHOTOS[:2], PHOTOS[2:])
    for why in (explain(net, files[:2], files[2:]), explain(net, files[:2], files[2:], images=files[:2])):
        torch.testing.assert_close(why.attributions, expected.attributions)
        assert isinstance(why.images[0], Image.Image)
    alone = explain_pairs(net, files[0], files[1], foil=None)
    torch.testing.assert_close(alone.scores, explain_pairs(net, PHOTOS[0], PHOTOS[1], foil=None).scores)


CALLS: dict[str, Callable[[nn.Module], Explanation]] = {
    "explain": lambda net: explain(net, X, SupportSet(Y, [0, 0, 1, 1]), layer="2"),
    "both": lambda net: explain(net, X, SupportSet(Y, [0, 0, 1, 1]), layer="2", sides="both"),
    "pairs": lambda net: explain_pairs(net, X, Y, layer="2"),
}


@pytest.mark.parametrize("call", CALLS)
def test_batch_statistics_of_a_model_in_training_mode_stay_as_they_were(call: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with pytest.warns(UserWarning, match=r"in training mode.*call model.eval\(\)"):
        CALLS[call](net)
    assert net.training
    assert net[1].training
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_pair_is_one_line() -> None:
    pairs = explain_pairs(NET, X, Y, layer="features", foil=None).pairs
    assert pairs is not None
    pair = pairs[1][0]
    text = repr(pair)
    assert text.startswith(f"Pair('right-1', similarity {pair.similarity:.4g}, score {pair.score:.4g}, support score ")
    assert text.endswith("maps 9 x 5 and 9 x 5, 16 matches)")
    assert len(text) < 150
    assert "\n" not in text


def test_a_similarity_without_linear_weights_gets_no_advice_that_needs_them() -> None:
    with pytest.warns(UserWarning, match="has no linear weights") as caught:
        explain(NET, -X, Y, layer="features", similarity=EuclideanDifference(), normalization="minmax")
    assert not [str(one.message) for one in caught if "Use LayerSimilarityCAM" in str(one.message)]
