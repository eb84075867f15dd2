"""The messages of docs/troubleshooting.md are those that come: each is provoked, and its words are in the code."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LRP, DeepLift, NoiseTunnel
from PIL import Image
from torch import Tensor, nn

from captum_fam import (
    LayerCorrespondence,
    LayerFAM,
    LayerSimilarityCAM,
    LayerSimilarityShapley,
    MemoryBank,
    Neighbors,
    SimilarityToSupport,
    SupportSet,
    TokenGrid,
    create_model,
    explain,
    explain_pairs,
)
from captum_fam._files import need
from captum_fam._locks import lock_folder
from captum_fam.cli.main import main
from captum_fam.images import read_image
from captum_fam.similarity import EuclideanDifference
from captum_fam.support.checks import check_images

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


class Net(nn.Module):
    """Convolution, pooling and a linear head, whose bias is most of a score if it is large."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 5)
        nn.init.constant_(self.head.bias, bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


class Lambda(nn.Module):
    """A model that is a function of the features of another."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(self.features, images)


def images(count: int, seed: int = 0, side: int = 8) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def model(function: Callable[[nn.Module, Tensor], Any] | None = None, bias: float = 0.0) -> Any:
    torch.manual_seed(0)
    return (Net(bias) if function is None else Lambda(function)).eval()


def pooled(features: nn.Module, inputs: Tensor) -> Tensor:
    return features(inputs).mean((2, 3))


def pictures(*names: str) -> list[str]:
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images(1, number)[0].permute(1, 2, 0) * 255).byte().numpy()).save(name)
    return list(names)


X, SUPPORT = images(2), images(4, seed=1)
TWO_CLASSES = SupportSet(SUPPORT, ["wren", "jay"] * 2)


def tokens(count: int) -> nn.Module:
    """A model whose layer ``rows`` gives tokens ``(B, count, 6)``."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, features: Tensor) -> Tensor:
            return self.norm(features.flatten(2).transpose(1, 2)[:, :count])  # type: ignore[no-any-return]

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rows = nn.Conv2d(3, 6, 3), Rows()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.rows(self.first(inputs)).mean(1)

    torch.manual_seed(0)
    return Tokens().eval()


def in_fam(net: Any, layer: Any = "features", x: Tensor = X, support: Any = SUPPORT, **options: Any) -> Any:
    return LayerFAM(net, layer, **options).attribute(x, support=support)


def of_the_command(*words: str) -> None:
    """Run the command, and raise what it writes to the error stream."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(io.StringIO()):
        main([*words])
    raise RuntimeError(" ".join(written.getvalue().split()))


def layer_without_a_way() -> None:
    LayerSimilarityCAM(model(lambda features, x: pooled(features, x).detach() + x.mean()), "features").attribute(
        X.requires_grad_(False), support=SUPPORT
    )


def layer_that_did_not_run() -> None:
    in_fam(model(lambda features, x: x.mean((2, 3))))


def scripted() -> None:
    in_fam(torch.jit.trace(model(pooled), X))  # type: ignore[no-untyped-call]


def frames() -> None:
    def of_frames(features: nn.Module, clips: Tensor) -> Tensor:
        return pooled(features, torch.cat([clips, clips.flip(3)])).unflatten(0, (2, -1)).mean(0)

    in_fam(model(of_frames))


def tail_that_is_no_module() -> None:
    net = model(lambda features, x: torch.cat([pooled(features, x), x.mean((2, 3))], 1))
    LayerSimilarityShapley(net, "features").attribute(X, support=SUPPORT)


def another_device() -> None:
    check_images(SUPPORT.to("meta"), (X,), None)  # a test has one device


def own_bank() -> None:
    pictures("photos/wren/1.png", "photos/wren/2.png", "photos/jay/3.png", "photos/jay/4.png")
    options: dict[str, Any] = {"preprocess": to_tensor, "progress": False}
    MemoryBank.from_dataset(model(), "photos", "bank.safetensors", **options)
    MemoryBank.from_dataset(model(pooled), "photos", "bank.safetensors", **options)


def to_tensor(picture: Image.Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def bank_with_a_broken_image() -> None:
    pictures("photos/wren/1.png", "photos/jay/3.png")
    Path("photos/jay/4.png").write_bytes(b"no picture")
    MemoryBank.from_dataset(model(), "photos", preprocess=to_tensor, on_error="skip", progress=False)


def bank_in_training() -> None:
    pictures("photos/wren/1.png", "photos/jay/3.png")
    MemoryBank.from_dataset(model().train(), "photos", preprocess=to_tensor, progress=False)


def refused_weights() -> None:
    torch.save(model(), "whole.pth")
    create_model("demo", "whole.pth")


def other_weights() -> None:
    torch.save(model().state_dict(), "other.pth")
    create_model("demo", "other.pth")


def folder_of_somebody() -> None:
    pictures("query.png", "birds/1.png", "out/query.png")
    Path("out/results.csv").write_text("mine")
    of_the_command("explain", "query.png", "--support", "birds", "--model", "demo", "--out", "out")


def folder_in_use() -> None:
    pytest.importorskip("fcntl")  # no locks elsewhere
    pictures("query.png", "birds/1.png")
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_folder("out"):
            is_held.set()
            may_end.wait(60)

    # A thread that holds a folder may ask for it again, so that another one holds it.
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert is_held.wait(60)
        of_the_command("explain", "query.png", "--support", "birds", "--model", "demo", "--out", "out", "--no-figures")
    finally:
        may_end.set()
        holder.join()


def random_weights() -> None:
    pytest.importorskip("torchvision")
    pictures("query.png", "birds/1.png")
    of_the_command(
        *("explain", "query.png", "--support", "birds", "--model", "squeezenet1_0", "--weights", "none"),
        *("--size", "32", "--no-figures", "--out", "out"),
    )


def noisy_target() -> None:
    scores = SimilarityToSupport(model(), TWO_CLASSES)
    NoiseTunnel(LayerFAM(scores, "features")).attribute(X, nt_samples=2, stdevs=0.1)


def noisy_support() -> None:
    made = LayerFAM(model(), "features")
    NoiseTunnel(made).attribute(X, nt_samples=2, stdevs=0.1, support=SUPPORT.unflatten(0, (2, 2)))


def hits_of_another_metric() -> None:
    net = model()
    gallery = net(SUPPORT).detach()
    Neighbors(torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), 7.0), embeddings=gallery).compare(net(X))


def of_layer_norm() -> None:
    LayerCorrespondence(model(), "features").attribute(X, support=SupportSet(model()(SUPPORT).detach()))


def not_a_number() -> None:
    in_fam(model(lambda features, x: pooled(features, x) / 0), support=torch.rand(2, 6))


PROVOKE: dict[str, Callable[[], Any]] = {
    "the map explains": lambda: LayerSimilarityCAM(model(bias=9.0), "features").attribute(X, support=SUPPORT),
    "more than half of a map's energy": lambda: in_fam(model()),
    "contributions of the learned metric": lambda: in_fam(
        model(), similarity=lambda z, t: nn.functional.cosine_similarity(z, t)
    ),
    "the model is in training mode": lambda: explain(model().train(), X, SUPPORT, layer="features"),
    "model is in training mode, where": bank_in_training,
    "the model seems to have its classifier": lambda: create_model(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1000)), size=16
    ),
    "the model gives": lambda: explain(
        model(lambda features, x: pooled(features, x)[:, :2]), X, TWO_CLASSES, layer="features"
    ),
    "the model must give a tensor": lambda: explain(
        model(lambda features, x: {"tokens": pooled(features, x), "mask": x}), X, SUPPORT
    ),
    "the model must give embeddings of shape": lambda: in_fam(model(lambda features, x: features(x))),
    "the preprocessing of the model": lambda: explain(model(), pictures("query.png"), pictures("birds/1.png")),
    "the preprocessing of ...": lambda: create_model(model()),
    "model ... is unknown": lambda: create_model("resnet51"),
    "model is a SimilarityToSupport": lambda: explain(SimilarityToSupport(model(), SUPPORT), X, SUPPORT),
    "layer ... did not run": layer_that_did_not_run,
    "... is a scripted": scripted,
    "layer ... ran ... times": lambda: in_fam(model(lambda net, x: pooled(net, x) + pooled(net, x.flip(3)))),
    "layer: the embedding does not depend": layer_without_a_way,
    "layer ... gives ..., which looks channels-last": lambda: in_fam(tokens(36), "rows"),
    "token_grid: ... tokens minus": lambda: in_fam(tokens(36), "rows", token_grid=TokenGrid()),
    "layer ... gives ..., a batch of": frames,
    "layer ... is no submodule": lambda: in_fam(model(), "layer4"),
    'tail="auto"': tail_that_is_no_module,
    "support is missing": lambda: LayerFAM(model(), "features").attribute(X),
    "support embeds to": lambda: in_fam(model(), support=torch.rand(3, 7)),
    "support is on": another_device,
    "support has images of shape": lambda: in_fam(model(), support=SUPPORT[:, :1]),
    "support has images of ... but inputs of ...; both go through the same model: convert": lambda: in_fam(
        model(), support=SUPPORT.double()
    ),
    "queries are ..., as the same image": lambda: explain(model(), X, torch.cat([X[:1], SUPPORT]), layer="features"),
    "queries are their own only": lambda: explain(model(), X[:1], X[:1], layer="features"),
    "support holds one set for each": noisy_support,
    "target is None": noisy_target,
    "target ... is out of range": lambda: LayerFAM(model(), "features").attribute(X, TWO_CLASSES, target=5),
    "the embedding of the query contains": not_a_number,
    'sides="both"': lambda: explain(model(), X, model()(SUPPORT).detach(), layer="features", sides="both"),
    "... holds embeddings, which have no positions": of_layer_norm,
    "similarity ... has contributions": lambda: LayerSimilarityCAM(
        model(), "features", similarity=EuclideanDifference()
    ).attribute(X, support=SUPPORT),
    "scores: ... of": hits_of_another_metric,
    "needs a support of at least two classes": lambda: SimilarityToSupport(model(), SUPPORT, foil="others"),
    'foil="gallery"': lambda: SimilarityToSupport(model(), SUPPORT, foil="gallery"),
    "no foil: the call has": lambda: explain_pairs(model(), X, SUPPORT[:2], layer="features"),
    "threshold is": lambda: explain(
        model(), X, SUPPORT, layer="features", similarity="euclidean", against="threshold", threshold=3.0
    ),
    "... do not fit": other_weights,
    "refused: it names": refused_weights,
    "was made with another model": own_bank,
    "left out of the bank": bank_with_a_broken_image,
    "cannot be read as an image": lambda: read_image(broken_picture()),
    "needs ...: pip install": lambda: need("no_such_package", extra="models", purpose="this test"),
    "random weights, whose maps": random_weights,
    "which is no result of captum-fam": folder_of_somebody,
    "... is in use by": folder_in_use,
    "DeepLift cannot follow": lambda: DeepLift(SimilarityToSupport(model(), SUPPORT)).attribute(X, target=0),
    "LRP has no rule": lambda: LRP(SimilarityToSupport(model(), SUPPORT)).attribute(X, target=0),
}


def broken_picture() -> Path:
    path = Path("broken.png")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return path


def as_pattern(heading: str) -> str:
    return ".*".join(re.escape(part) for part in heading.split("..."))


def provoked(provoke: Callable[[], Any]) -> Iterator[str]:
    """The texts of all warnings and of the error of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            provoke()
        except (Exception, SystemExit) as error:
            yield str(error)
    yield from (str(one.message) for one in caught)


def texts(source: str) -> Iterator[str]:
    """Every text in a piece of code, with a zero byte for each value that is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_every_heading_is_provoked_once() -> None:
    of_heading = {heading: [key for key in PROVOKE if heading.startswith(key)] for heading in HEADINGS}
    # The longest key is that of the heading: "support has images of" begins two of them.
    assert {max(keys, key=len) for keys in of_heading.values() if keys} == PROVOKE.keys()
    assert not [heading for heading, keys in of_heading.items() if not keys]
    assert len(set(HEADINGS)) == len(HEADINGS) >= 25


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_of_a_heading_comes(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [key for key in PROVOKE if heading.startswith(key)]
    with torch.random.fork_rng(devices=[]):
        messages = list(provoked(PROVOKE[max(keys, key=len)]))
    assert any(re.search(as_pattern(heading), message, re.DOTALL) for message in messages), messages


def test_the_words_of_every_heading_stand_in_the_code() -> None:
    known = {text for file in (ROOT / "captum_fam").rglob("*.py") for text in texts(file.read_text(encoding="utf-8"))}
    for heading in HEADINGS:
        for part in filter(str.strip, heading.split("...")):
            words = part.strip(" ,;:")
            assert len(words) < 3 or any(words in text for text in known), f"{words!r} of {heading!r}"


def test_links_within_the_page_and_to_others_have_their_headings() -> None:
    for page, anchor in re.findall(r"\]\(([\w/.-]+\.md)#([\w-]+)\)", PAGE):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, (page, anchor)
