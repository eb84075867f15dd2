"""Wrong input: one error that names the argument, what came, what was expected and what to do. Never a wrong map."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.similarity import Euclidean, EuclideanDifference, Mahalanobis, MahalanobisDifference, Similarity

pytestmark = pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")

Method = Callable[..., Any]
ADDITIVE = [LayerFAM, LayerSimilarityCAM]
ALL = [*ADDITIVE, LayerCorrespondence]


def refused(made: Any, message: str, *arguments: Any, error: type[Exception] = ValueError, **named: Any) -> None:
    with pytest.raises(error, match=message):
        made.attribute(*arguments, **named)


# The support


@pytest.mark.parametrize("method", ALL)
def test_a_missing_support_is_refused(method: Method, net: nn.Module, x: Tensor) -> None:
    refused(method(net, net.features), "support is missing: .*SupportSet", x)
    refused(method(net, net.features), "support is missing", x, target=1)


@pytest.mark.parametrize("method", ALL)
def test_a_support_given_twice_is_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = method(SimilarityToSupport(net, support), net.features)
    refused(made, "support is set by the SimilarityToSupport", x, support)


@pytest.mark.parametrize("method", ADDITIVE)
@pytest.mark.parametrize(
    ("support", "error", "message"),
    [
        (torch.zeros(0, 3, 7, 5), ValueError, r"support is empty: got shape \(0, 3, 7, 5\)"),
        (torch.zeros(0, 4), ValueError, r"support is empty: got shape \(0, 4\)"),
        (torch.zeros(3, 0, 4), ValueError, r"support is empty: got shape \(3, 0, 4\)"),
        (torch.full((2, 3, 7, 5), torch.nan), ValueError, "support contains NaN or inf"),
        (torch.tensor([[1.0, 2, 3, torch.inf]]), ValueError, "support contains NaN or inf"),
        (torch.zeros(4), ValueError, r"support must be images .* or embeddings .*, got shape \(4,\)"),
        (torch.ones(2, 3, 1, 1, 7, 5), ValueError, r"support has shape \(2, 3, 1, 1, 7, 5\); for inputs of shape"),
        ("birds/", TypeError, "support must be a tensor or a Support .*, got str"),
        ([torch.zeros(3, 7, 5)], TypeError, "got list"),
        (np.zeros((2, 4)), TypeError, "got ndarray"),
        (1, TypeError, "got int"),
    ],
)
def test_a_support_that_is_none_is_refused(
    support: Any, error: type[Exception], message: str, method: Method, net: nn.Module, x: Tensor
) -> None:
    refused(method(net, net.features), message, x, support, error=error)


@pytest.mark.parametrize("method", ADDITIVE)
def test_supports_of_other_channels_are_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = method(net, net.features)
    message = r"support has images of shape \(1, 7, 5\) but inputs of \(3, 7, 5\)"
    refused(made, message, x, support[:, :1])
    refused(made, message, x, SupportSet(support[:, :1]))
    refused(made, message, x, support[None, :, :1].expand(3, -1, -1, -1, -1))
    refused(
        made,
        r"support has images of shape \(3, 2, 7, 5\) but inputs",
        x,
        SupportSet(support.unflatten(0, (2, 2)).movedim(1, 2)),
    )


@pytest.mark.parametrize("method", ADDITIVE)
def test_embeddings_of_another_length_are_refused(method: Method, net: nn.Module, x: Tensor) -> None:
    made, message = method(net, net.features), "support embeds to 7 features but the query to 4"
    for shape in ((2, 7), (3, 2, 7)):
        refused(made, message, x, torch.ones(shape))
    refused(made, message, x, SupportSet(torch.ones(2, 7)))


@pytest.mark.parametrize("method", ADDITIVE)
def test_one_image_without_its_batch_dimension_is_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    fam = method(net, net.features)
    message = r"support has shape \(3, 7, 5\).*support\[None\]"
    refused(fam, message, x, support[0])
    message = r"inputs has shape \(3, 7, 5\).*inputs\[None\]"
    refused(fam, message, x[0], support)
    refused(fam, message, x[0], SupportSet(support))


@pytest.mark.parametrize("method", ADDITIVE)
def test_supports_per_query_of_another_batch_size_are_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    message = "support holds .* 2 queries but inputs is a batch of 3; .*NoiseTunnel"
    refused(method(net, net.features), message, x, support.unflatten(0, (2, 2)))
    refused(method(net, net.features), message, x, torch.ones(2, 5, 4))


@pytest.mark.parametrize("method", ADDITIVE)
def test_images_for_a_model_of_several_tensors_are_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    made = method(lambda x, other: net(x) + other.mean(), net.features)
    message = "support: images .*several tensors; pass their embeddings"
    refused(made, message, (x, x), support)
    refused(made, message, x, support, additional_forward_args=x)
    refused(made, message, x, SupportSet(support), additional_forward_args=(x,))


@pytest.mark.parametrize("method", ALL)
def test_supports_whose_embeddings_are_not_finite_are_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    support[1] = 1e200

    def forward(x: Tensor) -> Tensor:
        return net(x).square()

    refused(method(forward, net.features), "support: its embeddings contain NaN or inf", x, support)


@pytest.mark.parametrize("method", ADDITIVE)
def test_supports_per_query_whose_embeddings_are_not_finite_are_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    def forward(x: Tensor) -> Tensor:
        return net(x).square()

    pairs = torch.stack([support, support * 1e200, support])
    refused(method(forward, net.features), "support: its embeddings contain NaN or inf", x, pairs)


@pytest.mark.parametrize("method", ALL)
def test_supports_on_another_device_are_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    elsewhere = torch.zeros(2, 3, 7, 5, dtype=torch.uint8, device="meta")
    message = "support is on meta but inputs on cpu"
    refused(method(net, net.features), message, x, elsewhere)
    refused(method(net, net.features), message, x, SupportSet(elsewhere))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ALL)
def test_supports_on_the_gpu_for_queries_on_the_cpu_are_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    refused(method(net, net.features), "support is on cuda:0 but inputs on cpu", x, support.cuda())
    embeddings = net(support).detach().cuda()
    if method is not LayerCorrespondence:
        refused(method(net, net.features), "support is on cuda:0 but the query's embedding on cpu", x, embeddings)


@pytest.mark.parametrize("given", ["embeddings", "pairs"])
def test_correspondence_refuses_what_has_no_positions(given: str, net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = LayerCorrespondence(net, net.features)
    if given == "embeddings":
        for one in (net(support).detach(), SupportSet(net(support))):
            refused(made, "support holds embeddings.*pass its images", x, one)
    else:
        refused(made, "support must be images .*shared by the batch", x, support[:3, None])


# The queries


@pytest.mark.parametrize("method", ALL)
def test_an_empty_batch_is_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    refused(method(net, net.features), r"inputs is an empty batch, shape \(0, 3, 7, 5\)", x[:0], support)


@pytest.mark.parametrize("method", ALL)
def test_inputs_that_are_no_tensors_get_captums_assertion(method: Method, net: nn.Module, support: Tensor) -> None:
    for wrong in (np.zeros((2, 3, 7, 5)), [torch.zeros(2, 3, 7, 5)], "query.jpg"):
        refused(method(net, net.features), "(?i)inputs", wrong, support, error=AssertionError)


@pytest.mark.parametrize("method", ALL)
def test_queries_that_are_not_finite_are_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    for value in (torch.nan, torch.inf):
        x[1, 0, 2, 2] = value
        refused(method(net, net.features), "inputs: .*NaN or inf", x, support)


# The forward function


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda z, a: (z, a), TypeError, r"embeddings \(B, J\), got a tuple"),
        (lambda z, a: {"z": z}, TypeError, r"embeddings \(B, J\), got dict"),
        (lambda z, a: a, ValueError, r"embeddings of shape \(B, J\), got \(\d, 6, 7, 5\)"),
        (lambda z, a: z[:, 0], ValueError, r"embeddings of shape \(B, J\), got \(\d,\)"),
        (lambda z, a: z.sum(), ValueError, r"embeddings of shape \(B, J\), got \(\)"),
    ],
)
@pytest.mark.parametrize("as_images", [True, False])
@pytest.mark.parametrize("method", ADDITIVE)
def test_a_forward_function_that_gives_no_embedding_is_refused(
    method: Method,
    as_images: bool,
    output: Callable[..., Any],
    error: type[Exception],
    message: str,
    net: nn.Module,
    x: Tensor,
    support: Tensor,
) -> None:
    def forward(x: Tensor) -> Any:
        activation = net.features(x)
        return output(net.head(net.pooling(activation)), activation)

    given = support if as_images else torch.ones(2, 4, dtype=torch.float64)
    refused(method(forward, net.features), message, x, given, error=error)


@pytest.mark.parametrize("method", ALL)
def test_the_similarity_of_a_similarity_to_support_is_not_overruled(
    method: Method, net: nn.Module, support: Tensor
) -> None:
    with pytest.raises(ValueError, match="similarity is set by the SimilarityToSupport"):
        method(SimilarityToSupport(net, support), net.features, similarity="dot")


# The layer


@pytest.mark.parametrize("method", ALL)
def test_an_unknown_layer_name_is_refused(method: Method, net: nn.Module) -> None:
    message = "layer 'layer4' .*EmbeddingNet.*features, pooling, head"
    with pytest.raises(ValueError, match=message):
        method(net, "layer4")
    with pytest.raises(ValueError, match=r"layer 'features\.7'"):
        method(net, "features.7")
    with pytest.raises(TypeError, match="layer 'features' is a name, but forward_func is no module"):
        method(lambda x: net(x), "features")
    with pytest.raises(TypeError, match=r"layer must be .*got int"):
        method(net, [4])


@pytest.mark.parametrize("method", ALL)
def test_a_layer_that_does_not_run_is_refused(method: Method, net: nn.Module, x: Tensor, support: Tensor) -> None:
    refused(method(net, nn.Conv2d(3, 6, 3)), "layer Conv2d did not run in forward_func", x, support)


@pytest.mark.parametrize("method", ADDITIVE)
def test_a_list_with_a_layer_that_does_not_run_is_refused(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    refused(method(net, [net.features, nn.ReLU()]), "layer ReLU did not run in forward_func", x, support)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("layer", ["pooling", "head"])
def test_a_layer_without_positions_is_refused(
    layer: str, method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    message = r"layer \w+ gives \(3, [46]\), .*before the pooling"
    refused(method(net, layer), message, x, support)


class Giving(nn.Module):
    """A layer with an odd output, of which the model uses what it needs."""

    def __init__(self, give: Callable[[Tensor], Any], use: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layer = type("Odd", (nn.Module,), {"forward": lambda _, a: give(a)})()
        self.use = use
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("give", "use", "message"),
    [
        (
            lambda a: (a, None),
            lambda o: o[0],
            "layer Odd gives a NoneType",
        ),
        (lambda a: (a, 3), lambda o: o[0], "layer Odd gives a int"),
        (lambda a: [a, "x"], lambda o: o[0], "layer Odd gives a str"),
        (lambda a: OrderedDict(out=a), lambda o: o["out"], "layer Odd gives a OrderedDict"),
        (lambda a: (a, a.argmax(1)), lambda o: o[0], r"layer Odd gives torch.int64; .*floating-point numbers"),
    ],
)
@pytest.mark.parametrize("method", ALL)
def test_layers_that_give_something_else_than_activations_are_refused(
    method: Method, give: Callable[..., Any], use: Callable[..., Any], message: str, x: Tensor, support: Tensor
) -> None:
    net = Giving(give, use)
    refused(method(net, net.layer), message, x, support)


@pytest.mark.parametrize("method", ADDITIVE)
def test_a_tensor_of_the_layer_that_decides_nothing_is_refused(method: Method, x: Tensor, support: Tensor) -> None:
    net = Giving(lambda a: (a, 2 * a), lambda o: o[0])
    refused(method(net, net.layer), "layer: the embedding does not depend on it", x, support)


@pytest.mark.parametrize("method", ADDITIVE)
@pytest.mark.parametrize("cut", [lambda a: a.detach(), lambda a: torch.zeros_like(a)])
def test_a_layer_that_does_not_reach_the_embedding_is_refused(
    method: Method, cut: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor, support: Tensor
) -> None:
    def forward(x: Tensor) -> Tensor:
        return net(x) + cut(side(x)).mean()

    side = nn.Conv2d(3, 5, 3).double()
    refused(method(forward, side), "layer: the embedding does not depend on it", x, support)


def test_a_layer_whose_influence_is_zero_is_refused_where_its_map_would_not_be(
    net: nn.Module, x: Tensor, support: Tensor
) -> None:
    def forward(x: Tensor) -> Tensor:
        return net(x) + (side(x) * 0).mean()

    side = nn.Conv2d(3, 5, 3).double()
    refused(LayerFAM(forward, side), "layer: the embedding does not depend on it", x, support)
    assert LayerSimilarityCAM(forward, side).attribute(x, support).count_nonzero() == 0


@pytest.mark.parametrize("method", ALL)
def test_an_activation_that_is_not_finite_is_refused(method: Method, x: Tensor, support: Tensor) -> None:
    net = Giving(lambda a: torch.where(a == a.amax((1, 2, 3), keepdim=True), torch.nan, a), lambda o: o.nan_to_num())
    refused(method(net, net.layer), "layer: .*NaN or inf", x, support)


@pytest.mark.parametrize("method", ALL)
def test_a_layer_called_with_keywords_alone_has_no_input_to_explain(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    def forward(x: Tensor) -> Tensor:
        return net.head(net.pooling(activation=net.features(x)))

    message = "layer GAP takes no positional input"
    refused(method(forward, net.pooling), message, x, support, attribute_to_layer_input=True)


def test_correspondence_takes_one_layer_of_one_tensor(net: nn.Module, x: Tensor, support: Tensor) -> None:
    with pytest.raises(TypeError, match="layer must be one module"):
        LayerCorrespondence(net, [net.features[0], net.features[1]])
    two = Giving(lambda a: (a, 2 * a), lambda o: o[0] + o[1])
    refused(LayerCorrespondence(two, two.layer), "layer gives 2 tensors", x, support)
    for window in (0, 2, -1):
        with pytest.raises(ValueError, match=f"window must be .*got {window}"):
            LayerCorrespondence(net, net.features, window=window)
    with pytest.raises(ValueError, match=r"sharpness must be .*got 0"):
        LayerCorrespondence(net, net.features, sharpness=0)


# The switches of LayerFAM


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"similarity": "cosin"}, ValueError, "similarity must be one of cosine, dot, .*, got 'cosin'"),
        ({"similarity": 1}, TypeError, "similarity must be .*got int"),
        ({"weighting": "cam"}, ValueError, "weighting must be one of 'paper', 'weights', 'contributions', got 'cam'"),
        ({"normalization": "softmax"}, ValueError, "normalization must be one of 'minmax', .*, got 'softmax'"),
        ({"normalization": None}, ValueError, "normalization must be one of 'minmax', .*, got None"),
        ({"support_scale": "mean"}, ValueError, "support_scale must be one of 'paper', 'none', got 'mean'"),
        ({"transform": "linear"}, TypeError, "transform must be \"auto\", a module, .* or None, got 'linear'"),
        (
            {"transform": torch.ones(4, 6), "weighting": "contributions"},
            ValueError,
            'weighting="contributions" .*transform',
        ),
    ],
)
def test_unknown_choices_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, net: nn.Module
) -> None:
    with pytest.raises(error, match=message):
        LayerFAM(net, net.features, **options)


@pytest.mark.parametrize(
    ("with_weights", "without"),
    [
        (Euclidean(), EuclideanDifference()),
        (Mahalanobis(torch.eye(4)), MahalanobisDifference(torch.eye(4))),
    ],
)
@pytest.mark.parametrize(
    "method", [LayerSimilarityCAM, partial(LayerFAM, weighting="weights"), partial(LayerFAM, weighting="contributions")]
)
def test_a_similarity_without_weights_is_refused_when_a_method_that_needs_them_is_made(
    method: Any, with_weights: Similarity, without: Similarity, net: nn.Module, support: Tensor
) -> None:
    message = f"similarity {type(without).__name__} has .*no linear weights"
    with pytest.raises(ValueError, match=message):
        method(net, net.features, similarity=without)
    with pytest.raises(ValueError, match=message):
        method(SimilarityToSupport(net, support, without), net.features)
    method(net, net.features, similarity=with_weights)


def test_a_measure_of_ones_own_without_weights_is_refused_where_they_are_needed(net: nn.Module) -> None:
    class Overlap(Similarity):
        def score(self, query: Tensor, support: Tensor) -> Tensor:
            return query @ support.T

        def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
            return query * (support_weights @ support)

    LayerFAM(net, net.features, similarity=Overlap())
    with pytest.raises(ValueError, match=r"similarity Overlap has .*no linear weights"):
        LayerSimilarityCAM(net, net.features, similarity=Overlap())


def test_without_a_transform_the_channels_must_be_the_features(net: nn.Module, x: Tensor, support: Tensor) -> None:
    message = 'transform gives contributions to 4 channels but the layer has 6; .*transform="auto"'
    refused(LayerFAM(net, net.features, transform=None), message, x, support)


@pytest.mark.parametrize("shape", [(5, 6), (6, 4), (4,), (4, 6, 1)])
def test_the_weight_of_a_head_must_fit_the_embedding(
    shape: tuple[int, ...], net: nn.Module, x: Tensor, support: Tensor
) -> None:
    made = LayerFAM(net, net.features, transform=torch.ones(shape))
    wrong = r"\(" + ", ".join(map(str, shape)) + r",?\)"
    refused(made, rf"transform has a weight of shape {wrong}, expected \(J, N\) with J = 4", x, support)


def test_the_weight_of_a_head_must_fit_the_layer(net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = LayerFAM(net, net.features, transform=torch.ones(4, 9))
    refused(made, "transform gives contributions to 9 channels but the layer has 6", x, support)


def test_a_head_that_does_not_run_is_refused(net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = LayerFAM(net, net.features, transform=nn.Sequential(nn.Linear(6, 4)))
    refused(made, "transform did not run in forward_func", x, support)


def test_unknown_keywords_are_refused_by_python(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(TypeError, match="baselines"):
        LayerFAM(net, net.features).attribute(x, baselines=x)  # type: ignore[call-arg]


# Under `python -O` asserts are gone, and errors must not be


def test_without_asserts_user_errors_are_still_raised() -> None:
    code = """
import torch
from torch import nn
from captum_fam import LayerFAM, LayerSimilarityCAM, SupportSet
assert False, "asserts are off"
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
x, images = torch.rand(3, 3, 7, 5), torch.rand(5, 3, 7, 5)
support = SupportSet(images, [0, 1, 2, 1, 0])
for method in (LayerFAM, LayerSimilarityCAM):
    made = method(net, net[1])
    for target in (9, (9999,) * 20, [0, 1], [0, 1, 2, 0], [(0,), (1,), (2,), (0,)], [0, 1, 9], [], (), 1.0, "wren",
                   torch.tensor([0, 1]), torch.tensor([0, 1, 9]), torch.tensor([[0], [1], [2]]), [0.0, 1.0, 2.0]):
        try:
            made.attribute(x, support, target=target)
        except AssertionError as error:
            if "arget" not in str(error):
                raise SystemExit(f"{target} is not named: {error}")
        else:
            raise SystemExit(f"{target} was taken")
    for wrong in (None, "birds/", images[:, :1], torch.ones(2, 7), images[:4].unflatten(0, (2, 2)), images[:0]):
        try:
            made.attribute(x, wrong)
        except (TypeError, ValueError) as error:
            if "support" not in str(error):
                raise SystemExit(f"the support is not named: {error}")
        else:
            raise SystemExit("a wrong support was taken")
"""
    done = subprocess.run(
        [sys.executable, "-O", "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_errors_survive_a_token_grid(net: nn.Module, x: Tensor, support: Tensor) -> None:
    made = LayerFAM(net, net.pooling, token_grid=TokenGrid())
    refused(made, r"token_grid: .*got \(3, 6\)", x, support)


# A layer of one position


@pytest.mark.parametrize("method", ALL)
def test_a_layer_of_one_position_is_said_to_say_nothing_of_places(
    method: Method, net: nn.Module, x: Tensor, support: Tensor
) -> None:
    model = nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.warns(UserWarning, match=r"layer: it has one position for inputs of \(7, 5\)"):
        map_ = method(model, model[1]).attribute(x, support)
    assert map_.shape[2:] == (1, 1)
