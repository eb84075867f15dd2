"""Each kind of user gets a picture of a model of its kind in at most three statements, or in one command.

The weights are random, so that only the scores can be checked, and that the picture can be drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn

from captum_fam import MemoryBank, Neighbors, SimilarityToSupport, SupportSet, explain
from captum_fam.cli.main import main
from captum_fam.explanation import Explanation
from captum_fam.models import EmbeddingModel
from tests.explanation.by_hand import cosines, small_net, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pictures(tmp_path, [f"birds/{bird}/{i}.png" for bird in ("jay", "wren") for i in range(3)], seed=20)
    write_pictures(tmp_path, ["q.png"], seed=90)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_drawn(why: Explanation, expected: float | Tensor, tolerance: float = 1e-4) -> None:
    assert float(why.target_scores[0]) == pytest.approx(float(expected), abs=tolerance)
    assert why.attributions[0].any()
    why.figure().save("why.png")
    assert np.asarray(Image.open("why.png").convert("RGB")).std() > 1


def imagenet_input(path: str, size: int = 224) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float64)
    normalized = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalized.transpose(2, 0, 1)[None].copy())


def embedded(net: nn.Module, paths: list[str], size: int = 224) -> Tensor:
    with torch.no_grad():
        made: Tensor = net(torch.cat([imagenet_input(path, size).float() for path in paths]))
        return made.flatten(1).double()


JAYS, WRENS = ([f"birds/{bird}/{i}.png" for i in range(3)] for bird in ("jay", "wren"))


def test_few_shot_with_prototypes_and_a_distance(folder: Path) -> None:
    backbone = small_net()

    why = explain(backbone, "q.png", "birds", similarity="euclidean", aggregate="prototype", foil="runner-up")

    query, jays, wrens = (embedded(backbone, paths) for paths in (["q.png"], JAYS, WRENS))
    jay, wren = (float(-(query - birds.mean(0)).norm()) for birds in (jays, wrens))
    assert_drawn(why, abs(jay - wren))
    assert why.class_names[int(why.target[0])] == ("jay" if jay > wren else "wren")


def test_few_shot_with_episodes_as_tensors(folder: Path) -> None:
    backbone = small_net()
    images, labels, queries = torch.rand(6, 3, 20, 28), [0, 0, 1, 1, 2, 2], torch.rand(2, 3, 20, 28)

    why = explain(backbone, queries, SupportSet(images, labels), similarity="euclidean", aggregate="prototype")

    with torch.no_grad():
        prototypes = backbone(images).view(3, 2, -1).mean(1)
        distances = torch.cdist(backbone(queries), prototypes)
    assert_drawn(why, -distances[0].min())


def test_retrieval_in_one_command(folder: Path) -> None:
    pytest.importorskip("safetensors")
    words = ["--gallery", "birds", "--top", "2", "--model", "tests.explanation.by_hand:small_net", "--size", "32"]

    assert main(["explain", "q.png", *words, "--device", "cpu", "--out", "out"]) == 0

    row = cosines(embedded(small_net(), ["q.png"], 32), embedded(small_net(), JAYS + WRENS, 32))[0]
    (query,) = json.loads(Path("out/manifest.json").read_text())["queries"]
    names = ["jay"] * 3 + ["wren"] * 3
    hits = [index for index in row.topk(2).indices.tolist() if names[index] == query["target"]]
    assert [hit["file"] for hit in query["supports"]] == [(JAYS + WRENS)[index] for index in hits]
    assert query["scores"][query["target"]] == pytest.approx(float(row[hits].mean()), abs=1e-4)
    assert Image.open(Path("out", query["figure"])).width > 100


def test_retrieval_with_the_hits_of_a_search_engine(folder: Path) -> None:
    faiss = pytest.importorskip("faiss")
    net = small_net()
    gallery = nn.functional.normalize(embedded(net, JAYS + WRENS).float(), dim=1).numpy()
    index = faiss.IndexFlatIP(5)
    index.add(gallery)

    scores, ids = index.search(nn.functional.normalize(embedded(net, ["q.png"]).float(), dim=1).numpy(), 2)
    why = explain(net, "q.png", Neighbors(ids, scores, gallery))

    assert_drawn(why, cosines(embedded(net, ["q.png"]), torch.from_numpy(gallery).double())[0].topk(2).values.mean())


class LightlyBackbone(nn.Module):
    """As lightly makes its backbones: all but the last layer of a network, (B, 6, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(small_net().features, nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)


def test_self_supervised_with_a_memory_bank(folder: Path) -> None:
    pytest.importorskip("safetensors")
    backbone = LightlyBackbone().eval()

    bank = MemoryBank.from_dataset(backbone, "birds", k=3, progress=False)
    why = explain(backbone, "q.png", bank, method="similarity-cam")

    row = cosines(embedded(backbone, ["q.png"]), embedded(backbone, JAYS + WRENS))[0]
    names = ["jay"] * 3 + ["wren"] * 3
    target = why.class_names[int(why.target[0])]
    assert_drawn(why, row[[i for i in row.topk(3).indices.tolist() if names[i] == target]].mean())


def test_verification_with_a_trunk_and_an_embedder(folder: Path) -> None:
    """Re-identification: 256 x 128 pixels, and a head with a bias."""
    torch.manual_seed(5)
    trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.LeakyReLU(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    embedder = nn.Linear(6, 4).eval()
    person = EmbeddingModel(
        "person", nn.Sequential(trunk, embedder), "0.1", size=(256, 128), mean=(0,) * 3, std=(1,) * 3
    )

    why = explain(
        (trunk, embedder), "q.png", ["birds/jay/0.png"], preprocess=person.preprocessing, foil=["birds/wren/0.png"]
    )

    def by_hand(path: str) -> Tensor:
        pixels = np.asarray(Image.open(path).resize((128, 256), Image.Resampling.BILINEAR), np.float32) / 255
        with torch.no_grad():
            return embedder(trunk(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))).double()

    query, same, other = map(by_hand, ("q.png", "birds/jay/0.png", "birds/wren/0.png"))
    assert_drawn(why, cosines(query, same) - cosines(query, other))
    assert why.maps.shape == (1, 1, 256, 128)


def test_verification_with_an_inference_model(folder: Path) -> None:
    pml = pytest.importorskip("pytorch_metric_learning.utils.inference")
    trunk = nn.Sequential(small_net().features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    embedder = nn.Linear(6, 4).eval()

    why = explain(pml.InferenceModel(trunk, embedder), "q.png", "birds/jay/0.png")

    query, same = (embedder(embedded(trunk, [path]).float()).double() for path in ("q.png", "birds/jay/0.png"))
    assert_drawn(why, cosines(query, same))


def test_captums_own_methods_in_a_notebook() -> None:
    net = small_net()
    queries, support = torch.rand(2, 3, 20, 28), SupportSet(torch.rand(4, 3, 20, 28), ["jay", "jay", "wren", "wren"])

    scores = SimilarityToSupport(net, support)
    maps = LayerGradCam(scores, net.features).attribute(queries, target=scores(queries).argmax(1))

    with torch.no_grad():
        cosine = cosines(net(queries).double(), net(support.inputs).double())
    expected = torch.stack([cosine[:, :2].mean(1), cosine[:, 2:].mean(1)], 1)
    torch.testing.assert_close(scores(queries).double(), expected, rtol=0, atol=1e-5)
    assert maps.shape == (2, 1, 9, 13)
    assert maps.any()


def test_a_model_of_transformers_gives_an_output_object(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(intermediate_size=32, **sizes)).eval()

    why = explain(clip, "q.png", "birds/jay/0.png")

    from captum_fam.models import preprocessing_of

    prepare, _ = preprocessing_of(clip)
    with torch.no_grad():
        query, jay = (
            clip(prepare(Image.open(path))[None]).pooler_output.double() for path in ("q.png", "birds/jay/0.png")
        )
    assert_drawn(why, cosines(query, jay))
    assert why.attributions.shape == (1, 1, 4, 4)


def test_a_model_of_timm(folder: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=2, num_heads=2, num_classes=0
    ).eval()

    why = explain(vit, "q.png", "birds", foil="others")

    assert why.attributions.shape == (1, 1, 4, 4)
    from captum_fam.models import preprocessing_of

    prepare, _ = preprocessing_of(vit)
    with torch.no_grad():
        query, jays, wrens = (
            vit(torch.stack([prepare(Image.open(path)) for path in paths])).double()
            for paths in (["q.png"], JAYS, WRENS)
        )
    jay, wren = cosines(query, jays).mean(), cosines(query, wrens).mean()
    assert_drawn(why, (jay - wren).abs(), tolerance=1e-3)
