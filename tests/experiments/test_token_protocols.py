"""Every protocol on a transformer: its records against maps of the whole model, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from captum_fam import LayerSimilarityCAM, SimilarityToSupport, SupportSet, TokenGrid
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.experiments.cut import split_model
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.model_run import run_model
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import get_methods
from captum_fam.metrics import box_mask
from captum_fam.models import EmbeddingModel
from tests.experiments.runs import method_columns, query_columns

HEIGHT, WIDTH = 32, 24  # of the images; tokens of 4 x 8 pixels
GRID = TokenGrid(size=(8, 3))


class Transformer(nn.Module):
    """A class token that gathers 8 x 3 patches; the position embedding fits one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, (4, 8), (4, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(0.1 * torch.randn(1, 25, 8))
        self.join = nn.Identity()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).mT
        tokens = self.join(torch.cat([self.token.expand(len(images), 1, 8), 3 * patches], 1) + self.places)
        embedding: Tensor = self.head(self.block(tokens)[:, 0])
        return embedding


class Whole:
    """The whole model in float64, and the scenes one at a time."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Transformer().eval()
        self.net = EmbeddingModel("tiny", network, "join", size=(HEIGHT, WIDTH), token_grid=GRID)
        self.parts = split_model(self.net)
        self.scenes = ScenesWithBoxes(PlantedScenes("novel", length=100, size=HEIGHT, seed=3), self.parts)
        self.double = Transformer().double().eval()
        self.double.load_state_dict(network.state_dict())

    def images(self, items: Any) -> Tensor:
        return torch.stack([self.scenes[int(item)].image for item in torch.as_tensor(items).flatten()]).double()

    def embeddings(self, items: Any) -> Tensor:
        with torch.no_grad():
            return self.double(self.images(items))

    def map_of(self, image: Tensor, support: Tensor) -> Tensor:
        """The map of an image ``(3, H, W)`` for its mean similarity to supports ``(K, J)``, ``(H, W)``."""
        scores = SimilarityToSupport(self.double, SupportSet(support))
        cam = LayerSimilarityCAM(scores, self.double.join, token_grid=GRID)
        cam.has_warned = True
        maps = cam.attribute(image[None])
        assert isinstance(maps, Tensor)
        return interpolate(maps, image.shape[1:], mode="bilinear")[0, 0]

    def energy(self, image: Tensor, support: Tensor, item: int) -> float:
        full = self.map_of(image, support)
        full = full - full.min()
        inside = box_mask([self.scenes[item].boxes], (HEIGHT, WIDTH))[0]
        return float(full[inside.bool()].sum() / full.sum())


@pytest.fixture(scope="module")
def whole() -> Whole:
    return Whole()


PANEL = Panel(get_methods("similarity-cam,grad-cam,mean-activation,uniform"), ("localization", "swap"))


def run(protocol: Any, folder: Path, unit: int) -> UnitRecord:
    (record,) = protocol.prepare(folder / "features").run([unit])
    return record


def column(record: UnitRecord, name: str) -> Any:
    return (query_columns(record) | method_columns(record.explained))[name]


def test_scenes_are_squashed_with_their_boxes(whole: Whole) -> None:
    item = whole.scenes[4]
    assert item.image.shape == (3, HEIGHT, WIDTH)
    x0, y0, x1, y1 = whole.scenes.scenes.scene(4).box
    assert item.boxes.tolist() == [pytest.approx([x0 * 0.75, y0, x1 * 0.75, y1])]


def test_few_shot_explains_tokens(whole: Whole, tmp_path: Path) -> None:
    panel = Panel(get_methods("similarity-cam,grad-cam"), ("localization", "faithfulness", "perturbation", "swap"))
    protocol = FewShot(whole.parts, whole.scenes, panel, way=3, shot=2, query=2, episodes=4, seed=7)
    record = run(protocol, tmp_path, 1)
    episode = EpisodeSampler(whole.scenes.labels, 3, 2, 2, 4, 7).episode(1)
    supports = [whole.embeddings(row) for row in episode.support]
    assert record.rows
    for place, row in enumerate(record.rows):
        true, item = row // 2, int(episode.query.flatten()[row])
        (image,) = whole.images([item])
        assert column(record, "similarity-cam.energy")[place] == pytest.approx(
            whole.energy(image, supports[true], item), abs=1e-3
        )
        full = whole.map_of(image, supports[true])
        mask = (full - full.min()) / (full.max() - full.min())

        def score(pixels: Tensor, support: Tensor = supports[true]) -> float:
            with torch.no_grad():
                return float(cosine_similarity(whole.double(pixels[None]), support).mean())

        drop = max(0.0, score(image) - score(image * mask)) / score(image)
        assert column(record, "similarity-cam.drop")[place] == pytest.approx(drop, abs=1e-3)
    assert all(value >= 0 for value in column(record, "grad-cam.deletion"))


def test_retrieval_explains_tokens(whole: Whole, tmp_path: Path) -> None:
    record = run(Retrieval(whole.parts, whole.scenes, PANEL, explain="all", batch_size=16), tmp_path, 2)
    gallery = whole.embeddings(range(100))
    for row, item in enumerate(range(32, 48)):
        cosines = cosine_similarity(gallery[item][None], gallery)
        cosines[item] = -2
        nearest = int(cosines.argmax())
        assert column(record, "predicted")[row] == whole.scenes.labels[nearest]
        expected = whole.energy(whole.images([item])[0], gallery[nearest][None], item)
        assert column(record, "similarity-cam.energy")[row] == pytest.approx(expected, abs=1e-3)


def test_a_bank_explains_tokens(whole: Whole, tmp_path: Path) -> None:
    protocol = Contrastive(
        whole.parts, whole.scenes, PANEL, bank=whole.scenes, k=5, neighbors="all", explain="all", batch_size=16
    )
    record = run(protocol, tmp_path, 6)
    gallery = whole.embeddings(range(100))
    for row, item in enumerate(range(96, 100)):
        cosines = cosine_similarity(gallery[item][None], gallery)
        cosines[item] = -2
        expected = whole.energy(whole.images([item])[0], gallery[cosines.topk(5).indices], item)
        assert column(record, "similarity-cam.energy")[row] == pytest.approx(expected, abs=1e-3)


def test_a_mosaic_has_the_only_size_that_the_model_takes(whole: Whole, tmp_path: Path) -> None:
    panel = Panel(get_methods("similarity-cam,grad-cam"), ("swap",))
    protocol = Mosaic(whole.parts, whole.scenes, panel, grid=3, shot=2, mosaics=4, seed=5)
    assert not whole.parts.takes_larger_images
    record = run(protocol, tmp_path, 2)
    episode = EpisodeSampler(whole.scenes.labels, 9, 2, 1, 4, 5).episode(2)
    rows, columns = (0, 10, 21, 32), (0, 8, 16, 24)  # the edges of the cells
    canvas = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.float64)
    for at, image in enumerate(whole.images(episode.query)):
        top, bottom, left, right = rows[at // 3], rows[at // 3 + 1], columns[at % 3], columns[at % 3 + 1]
        size = (bottom - top, right - left)
        canvas[:, top:bottom, left:right] = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    for at in range(9):
        full = whole.map_of(canvas, whole.embeddings(episode.support[at])).clamp_min(0)
        top, bottom, left, right = rows[at // 3], rows[at // 3 + 1], columns[at % 3], columns[at % 3 + 1]
        share = float(full[top:bottom, left:right].sum() / full.sum())
        assert column(record, "similarity-cam.cell-energy")[at] == pytest.approx(share, abs=1e-3)
    with pytest.raises(ValueError, match="cell=16: the model takes images of 32 x 24 pixels only"):
        Mosaic(whole.parts, whole.scenes, panel, grid=2, cell=16)


def test_a_figure_has_maps_of_tokens(whole: Whole, tmp_path: Path) -> None:
    protocol = Retrieval(whole.parts, whole.scenes, Panel((), ()), explain="all", batch_size=16)
    answers = run_model("tiny", protocol, tmp_path / "run")
    (method,) = get_methods("similarity-cam")
    example = answers.prepared.example(answers.records[0], 3, answers.records[0].queries.predicted[3])
    maps = answers.prepared.maps(method, example.scores_for, example.activation, example.target).maps
    assert maps.shape == (1, 1, 8, 3)
    reverse = answers.prepared.reverse_example(answers.records[0], 3, answers.records[0].queries.predicted[3])
    assert reverse is not None
    assert answers.prepared.maps(method, reverse.scores_for, reverse.activation, reverse.target).maps.any()
