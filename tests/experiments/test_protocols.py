"""The records of the protocols against a plain computation, image by image in float64."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.example_figure import example_row
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.model_loading import load_model
from captum_fam.experiments.protocols import get_protocol, list_protocols, register_protocol
from captum_fam.experiments.protocols.base import PreparedProtocol
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.records import UnitRecord
from captum_fam.experiments.table_methods import get_methods
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.similarity import LinearSimilarity
from tests.experiments.plain import Plain, fam_map, grad_cam_map, mean_cosine
from tests.experiments.runs import make_model, make_panel, method_columns, query_columns

METHODS = "fam,grad-cam,grad-cam-foil,mean-activation"
close = pytest.approx


@pytest.fixture
def plain(model: TwoPartModel, scenes: ScenesWithBoxes) -> Plain:
    return Plain(model, scenes)


def _run(protocol: Any, folder: Any, units: list[int]) -> list[UnitRecord]:
    return list(protocol.prepare(folder / "features").run(units))


def test_few_shot_records_are_those_of_a_plain_computation(
    model: TwoPartModel, scenes: ScenesWithBoxes, plain: Plain, tmp_path: Any
) -> None:
    panel = make_panel(METHODS, "localization", "faithfulness", "swap")
    protocol = FewShot(model, scenes, panel, way=4, shot=2, query=3, episodes=5, seed=7)
    (record,) = _run(protocol, tmp_path, [3])
    episode = EpisodeSampler(scenes.labels, 4, 2, 3, 5, 7).episode(3)
    supports = [torch.stack([plain.embedding(item) for item in row]) for row in episode.support.tolist()]
    row = explained = 0
    for true, items in enumerate(episode.query.tolist()):
        for item in items:
            activation = plain.activation(plain.image(item))
            scores = torch.stack([mean_cosine(activation.mean((1, 2)), one) for one in supports])
            predicted = int(scores.argmax())
            queries = query_columns(record)
            assert queries["item"][row] == item
            assert queries["label"][row] == episode.classes[true]
            assert queries["predicted"][row] == episode.classes[predicted]
            assert queries["correct"][row] == (predicted == true)
            assert queries["confidence"][row] == close(float(scores.max() - scores[true]), abs=1e-5)
            if predicted == true:
                columns = {name: column[explained] for name, column in method_columns(record.explained).items()}
                assert record.rows[explained] == row
                _check_few_shot(columns, plain, item, activation, supports, true)
                explained += 1
            row += 1
    assert row == 12
    assert 0 < explained == len(record.rows)


def _check_few_shot(
    columns: dict[str, Any], plain: Plain, item: int, activation: Tensor, supports: list[Tensor], true: int
) -> None:
    def score(z: Tensor) -> Tensor:
        return mean_cosine(z, supports[true])

    def contrast(z: Tensor) -> Tensor:
        others = [mean_cosine(z, one) for at, one in enumerate(supports) if at != true]
        return score(z) - torch.stack(others).mean()

    fam = fam_map(activation, supports[true])
    assert columns["fam.energy"] == close(plain.energy(fam, item), abs=1e-4)
    assert columns["mean-activation.energy"] == close(plain.energy(activation.mean(0), item), abs=1e-4)
    assert columns["grad-cam.energy"] == close(plain.energy(grad_cam_map(activation, score), item), abs=1e-4)
    foil = grad_cam_map(activation, contrast)
    assert columns["grad-cam-foil.energy"] == close(plain.energy(foil, item), abs=1e-4)
    other = fam_map(activation, supports[(true + 1) % len(supports)])
    correlation = torch.corrcoef(torch.stack([fam.flatten(), other.flatten()]))[0, 1]
    assert columns["fam.swap"] == close(float(correlation), abs=1e-4)
    whole = float(score(activation.mean((1, 2))))
    masked = float(score(plain.activation(plain.image(item) * plain.full(fam)).mean((1, 2))))
    assert columns["fam.drop"] == close(max(0.0, whole - masked) / whole, abs=1e-4)
    assert columns["fam.increase"] == (masked > whole)


@pytest.mark.parametrize("neighbors", ["predicted", "all", "vote"])
def test_contrastive_records_are_those_of_a_plain_computation(
    neighbors: Any, model: TwoPartModel, scenes: ScenesWithBoxes, plain: Plain, tmp_path: Any
) -> None:
    protocol = Contrastive(
        model,
        scenes,
        make_panel(METHODS, "localization"),
        k=9,
        temperature=0.02,
        neighbors=neighbors,
        explain="all",
        batch_size=16,
    )
    (record,) = _run(protocol, tmp_path, [8])
    assert query_columns(record)["item"] == [128, 129]
    bank = plain.embeddings()
    for row, item in enumerate((128, 129)):
        activation = plain.activation(plain.image(item))
        cosines = torch.nn.functional.cosine_similarity(bank[item][None], bank)
        cosines[item] = -2  # leave-one-out
        nearest = cosines.argsort(descending=True)[:9]
        votes: Counter[int] = Counter()
        for at in nearest.tolist():
            votes[int(scenes.labels[at])] += float((cosines[at] / 0.02).exp())
        predicted = votes.most_common(1)[0][0]
        assert query_columns(record)["predicted"][row] == predicted
        assert query_columns(record)["correct"][row] == (predicted == scenes.labels[item])
        assert query_columns(record)["confidence"][row] == close(votes[predicted] / votes.total(), rel=1e-3)
        member = scenes.labels[nearest] == predicted
        inside, outside = bank[nearest[member]], bank[nearest[~member]]
        columns = {name: column[row] for name, column in method_columns(record.explained).items()}
        if neighbors == "all":
            inside = bank[nearest]
        if neighbors == "vote":
            weights = (cosines[nearest[member]] / 0.02).softmax(0)

            def score(z: Tensor, inside: Tensor = inside, weights: Tensor = weights) -> Tensor:
                return (weights * torch.nn.functional.cosine_similarity(z[None], inside)).sum()

        else:
            assert columns["fam.energy"] == close(plain.energy(fam_map(activation, inside), item), abs=1e-4)

            def score(z: Tensor, inside: Tensor = inside) -> Tensor:  # type: ignore[misc]
                return mean_cosine(z, inside)

        assert columns["grad-cam.energy"] == close(plain.energy(grad_cam_map(activation, score), item), abs=1e-3)
        foil = grad_cam_map(activation, lambda z, score=score, outside=outside: score(z) - mean_cosine(z, outside))
        assert columns["grad-cam-foil.energy"] == close(plain.energy(foil, item), abs=1e-3)


def test_retrieval_records_are_those_of_a_plain_computation(
    model: TwoPartModel, scenes: ScenesWithBoxes, plain: Plain, tmp_path: Any
) -> None:
    panel = make_panel(METHODS, "localization", "swap")
    protocol = Retrieval(model, scenes, panel, ks=(1, 5), explain="all", batch_size=16)
    (record,) = _run(protocol, tmp_path, [8])
    gallery = plain.embeddings()
    for row, item in enumerate((128, 129)):
        activation = plain.activation(plain.image(item))
        cosines = torch.nn.functional.cosine_similarity(gallery[item][None], gallery)
        cosines[item] = -2
        order = cosines.argsort(descending=True)
        predicted = scenes.labels[order[0]]
        queries = {name: column[row] for name, column in query_columns(record).items()}
        assert queries["item"] == item
        assert queries["predicted"] == predicted
        assert queries["correct"] == queries["recall@1"] == (predicted == scenes.labels[item])
        assert queries["recall@5"] == (scenes.labels[order[:5]] == scenes.labels[item]).any()
        assert queries["confidence"] == close(float(cosines[order[0]]), abs=1e-5)
        columns = {name: column[row] for name, column in method_columns(record.explained).items()}
        fam = fam_map(activation, gallery[order[:1]])
        assert columns["fam.energy"] == close(plain.energy(fam, item), abs=1e-4)
        rest = gallery[torch.arange(len(gallery)) != item]
        foil = grad_cam_map(
            activation,
            lambda z, order=order, rest=rest: mean_cosine(z, gallery[order[:1]]) - mean_cosine(z, rest),
        )
        assert columns["grad-cam-foil.energy"] == close(plain.energy(foil, item), abs=1e-3)
        other = next(at for at in order.tolist() if scenes.labels[at] != predicted)
        swapped = fam_map(activation, gallery[other][None])
        correlation = torch.corrcoef(torch.stack([fam.flatten(), swapped.flatten()]))[0, 1]
        assert columns["fam.swap"] == close(float(correlation), abs=1e-3)


@pytest.mark.parametrize("cell", [None, 24])
def test_mosaic_records_are_those_of_a_plain_computation(
    cell: int | None, model: TwoPartModel, scenes: ScenesWithBoxes, plain: Plain, tmp_path: Any
) -> None:
    panel = make_panel("fam,similarity-cam-foil,similarity-cam-gallery", "swap")
    protocol = Mosaic(model, scenes, panel, grid=3, shot=2, mosaics=4, cell=cell, seed=5)
    (record,) = _run(protocol, tmp_path, [2])
    episode = EpisodeSampler(scenes.labels, 9, 2, 1, 4, 5).episode(2)
    side = cell or model.size
    images = [plain.image(item) for item in episode.query[:, 0].tolist()]
    if cell:
        size = (side, side)
        images = [
            torch.nn.functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].double()
            for image in images
        ]
    canvas = torch.zeros(3, 3 * side, 3 * side, dtype=torch.float64)
    for at, image in enumerate(images):
        canvas[:, at // 3 * side : (at // 3 + 1) * side, at % 3 * side : (at % 3 + 1) * side] = image
    activation = plain.activation(canvas)
    supports = [torch.stack([plain.embedding(item) for item in row]) for row in episode.support.tolist()]
    directions = [torch.nn.functional.normalize(one, dim=1).mean(0) for one in supports]
    not_shown = [item for item, label in enumerate(scenes.labels.tolist()) if label not in episode.classes.tolist()]
    gallery = torch.nn.functional.normalize(plain.embeddings()[not_shown], dim=1).mean(0)
    for at in range(9):
        others = torch.stack([one for number, one in enumerate(directions) if number != at]).mean(0)
        shares = {}
        for name, map_ in (
            ("fam", fam_map(activation, supports[at])),
            ("similarity-cam-foil", ((directions[at] - others)[:, None, None] * activation).sum(0)),
            ("similarity-cam-gallery", ((directions[at] - gallery)[:, None, None] * activation).sum(0)),
        ):
            full = torch.nn.functional.interpolate(map_[None, None], canvas.shape[1:], mode="bilinear")[0, 0]
            energy = full.clamp_min(0).reshape(3, side, 3, side).sum((1, 3)).flatten()
            shares[name] = float(energy[at] / energy.sum())
            columns = {key: column[at] for key, column in method_columns(record.explained).items()}
            assert columns[f"{name}.cell-energy"] == close(shares[name], abs=1e-4)
            assert columns[f"{name}.cell-hit"] == (energy.argmax() == at)
        assert query_columns(record)["item"][at] == episode.query[at, 0]
        single = plain.activation(plain.image(int(episode.query[at, 0])))
        first, second = fam_map(single, supports[at]), fam_map(single, supports[(at + 1) % 9])
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert columns["fam.swap"] == close(float(correlation), abs=1e-3)


def test_each_image_goes_through_the_backbone_once(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[str]()
    protocol = FewShot(model, scenes, make_panel(METHODS, "localization", "swap"), query=4, episodes=6, batch_size=16)
    fast_copy = TwoPartModel.fast_copy

    def counting(self: TwoPartModel, device: Any = "cpu") -> TwoPartModel:
        copy = fast_copy(self, device)
        copy.backbone.register_forward_pre_hook(lambda _, inputs: seen.update({"images": len(inputs[0])}))
        return copy

    monkeypatch.setattr(TwoPartModel, "fast_copy", counting)
    _run(protocol, tmp_path, list(range(6)))
    assert seen["images"] == len(scenes)


def test_masked_passes_are_made_only_where_a_measure_asks(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    protocol = FewShot(model, scenes, make_panel("fam", "faithfulness"), query=4, episodes=6, batch_size=16)
    prepared = protocol.prepare(tmp_path / "features")
    passes: list[int] = []
    prepared.model.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    records = list(prepared.run(range(6)))
    assert sum(passes) == sum(len(record.rows) for record in records) > 0


def test_the_runner_up_is_another_foil_than_the_others(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    def energies(foil: Any) -> list[float]:
        panel = Panel(get_methods("similarity-cam-foil", foil))
        protocol = Retrieval(model, scenes, panel, explain="all", batch_size=16)
        (record,) = _run(protocol, tmp_path, [1])
        energies: list[float] = method_columns(record.explained)["similarity-cam-foil.energy"]
        return energies

    assert energies("others") != energies("runner-up")


def test_a_query_whose_neighbors_are_of_one_class_has_no_swap(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    protocol = Contrastive(model, scenes, make_panel("fam", "swap"), k=1, explain="all", batch_size=16)
    (record,) = _run(protocol, tmp_path, [0])
    assert method_columns(record.explained)["fam.swap"] == [None] * 16


def test_a_query_whose_neighbors_are_of_one_class_has_no_map_with_a_foil(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    panel = make_panel("grad-cam,grad-cam-foil,grad-cam-runner-up", "localization", "faithfulness")
    protocol = Contrastive(model, scenes, panel, k=2, explain="all", batch_size=16)
    prepared = protocol.prepare(tmp_path / "features")
    (record,) = prepared.run([0])
    bank = prepared.bank
    vote = bank.using(exclude=torch.arange(16)).classify(bank.embeddings[:16])
    labels = scenes.labels[vote.neighbor_indices]
    alone = (labels[:, 0] == labels[:, 1]).tolist()
    assert 0 < sum(alone) < 16
    columns = method_columns(record.explained)
    for name in ("grad-cam-foil", "grad-cam-runner-up"):
        assert [bool(value) for value in columns[f"{name}.nan"]] == alone
        for measure in ("energy", "iou", "drop"):
            assert [value is None for value in columns[f"{name}.{measure}"]] == alone
    assert None not in columns["grad-cam.energy"]
    found = panel.results(record.explained["grad-cam-foil"])["energy"]
    assert (found.n, found.n_nan) == (16 - sum(alone), sum(alone))
    for query in (alone.index(True), alone.index(False)):
        row = query_columns(record)["item"].index(query)
        cells = example_row(prepared, record, row, {"support": record.queries.predicted[row]}, panel.methods)
        titles = [cell.title for cell in cells if cell.attribution is not None]
        assert titles == ["grad-cam"] + ["grad-cam-foil", "grad-cam-runner-up"] * (not alone[query])


def test_faiss_finds_the_neighbors_that_torch_finds(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    pytest.importorskip("faiss")
    found = []
    for backend in ("torch", "faiss"):
        protocol = Contrastive(
            model,
            scenes,
            make_panel("fam", "localization"),
            k=9,
            backend=backend,
            batch_size=16,  # type: ignore[arg-type]
        )
        prepared = protocol.prepare(tmp_path / backend / "features")
        (record,) = prepared.run([1])
        found += [record.queries.predicted]
        assert prepared.bank.backend == protocol.settings()["backend"] == backend
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["few-shot", "contrastive", "retrieval", "mosaic"])
def test_every_protocol_says_what_additive_maps_cover_of_their_scores(
    name: str, scenes: ScenesWithBoxes, tmp_path: Any
) -> None:
    model = load_model("tests.experiments.runs:make_model", layer="1")
    methods = "similarity-cam-foil,similarity-cam[layers=activation+rest],grad-cam"
    panel = Panel(get_methods(methods), ())
    protocol = {
        "few-shot": lambda: FewShot(model, scenes, panel, query=4, episodes=2, explain="all"),
        "contrastive": lambda: Contrastive(model, scenes, panel, k=12, explain="all", batch_size=16),
        "retrieval": lambda: Retrieval(model, scenes, panel, explain="all", batch_size=16),
        "mosaic": lambda: Mosaic(model, scenes, panel, shot=2, mosaics=2),
    }[name]()
    (record,) = _run(protocol, tmp_path, [0])
    columns = method_columns(record.explained)
    for method in ("similarity-cam-foil", "similarity-cam[layers=activation+rest]"):
        assert columns[f"{method}.sum"] == close(columns[f"{method}.score"], rel=1e-3, abs=1e-5)
    assert "grad-cam.sum" not in columns


def test_a_layer_that_the_model_does_not_have_is_refused_before_any_image_is_read(scenes: ScenesWithBoxes) -> None:
    with pytest.raises(ValueError, match=r"rest\.7 is no layer behind the activation"):
        Mosaic(make_model(), scenes, Panel(get_methods("fam[layers=rest.7]"), ()), shot=2)


def test_a_gallery_is_refused_where_there_is_none(scenes: ScenesWithBoxes) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="grad-cam-gallery: few-shot has no gallery"):
        FewShot(model, scenes, Panel(get_methods("fam,grad-cam-gallery"), ()))
    with pytest.raises(ValueError, match="correspondence-gallery compares with the positions"):
        Mosaic(model, scenes, Panel(get_methods("correspondence-gallery"), ()), shot=2)
    of_four = [item for item, label in enumerate(scenes.labels) if label in scenes.labels.unique()[:4]]
    few: Any = Subset(scenes, of_four)
    few.labels = scenes.labels[of_four]
    with pytest.raises(ValueError, match="fam-gallery needs images of classes that the mosaic does not show"):
        Mosaic(model, few, Panel(get_methods("fam-gallery"), ()), shot=2)


def test_the_gallery_of_a_retrieval_is_its_foil(model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Any) -> None:
    panel = make_panel("similarity-cam-foil,similarity-cam-gallery", "localization")
    (record,) = _run(Retrieval(model, scenes, panel, explain="all", batch_size=16), tmp_path, [8])
    columns = method_columns(record.explained)
    assert columns["similarity-cam-foil.energy"] == close(columns["similarity-cam-gallery.energy"], abs=1e-6)


class _Overlap(LinearSimilarity):
    """A similarity of the tests' own: the inner product, halved."""

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return query @ support.mT / 2

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return support_weights @ support / 2


def test_a_similarity_of_ones_own_decides_and_is_named_in_the_settings(scenes: ScenesWithBoxes, tmp_path: Any) -> None:
    model = make_model()
    model.similarity = _Overlap()
    panel = make_panel("fam,similarity-cam", "localization")
    protocol = FewShot(model, scenes, panel, query=4, episodes=2, explain="all", batch_size=16)
    (record,) = _run(protocol, tmp_path, [0])
    other = make_model()
    other.similarity = "dot"
    (expected,) = _run(
        FewShot(other, scenes, panel, query=4, episodes=2, explain="all", batch_size=16), tmp_path / "dot", [0]
    )
    assert record.queries.predicted == expected.queries.predicted
    assert "_Overlap" in json.dumps(protocol.settings())


def test_protocols_are_found_by_name() -> None:
    assert list_protocols()[:4] == ("contrastive", "few-shot", "mosaic", "retrieval")
    assert get_protocol("few-shot") is FewShot
    with pytest.raises(ValueError, match="'one-shot' is unknown"):
        get_protocol("one-shot")
    with pytest.raises(ValueError, match="'mosaic' is taken"):
        register_protocol("mosaic")(FewShot)


@pytest.mark.parametrize(
    ("name", "maps_of_a_row"), [("few-shot", 2), ("contrastive", 2), ("retrieval", 2), ("mosaic", 3)]
)
def test_rows_that_differ_in_the_filter_only_share_their_maps_and_keep_their_numbers(
    name: str,
    maps_of_a_row: int,
    model: TwoPartModel,
    scenes: ScenesWithBoxes,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[str] = []
    maps = PreparedProtocol.maps

    def counted(self: Any, method: Any, *args: Any) -> Any:
        computed.append(method.name)
        return maps(self, method, *args)

    monkeypatch.setattr(PreparedProtocol, "maps", counted)
    rows = ["similarity-cam-foil", "similarity-cam[smooth=3]-foil", "similarity-cam[smooth=5]-foil"]
    options = {
        "few-shot": {"way": 4, "query": 3, "episodes": 2},
        "contrastive": {"k": 5, "bank": scenes},
        "mosaic": {"mosaics": 2, "shot": 2},
    }

    def run(methods: list[str]) -> dict[str, Any]:
        computed.clear()
        protocol = get_protocol(name)(model, scenes, make_panel(",".join(methods), "swap"), **options.get(name, {}))
        (record,) = _run(protocol, tmp_path / methods[-1], [1])
        return method_columns(record.explained)

    together = run(rows)
    assert len(computed) == maps_of_a_row
    alone = [run([row]) for row in rows]
    assert together == {name: column for columns in alone for name, column in columns.items()}
    # The filter changes what the measures see, and not the coverage.
    swaps = [together[f"{row}.swap"] for row in rows]
    assert swaps[0] != swaps[1] != swaps[2]
    assert together[f"{rows[0]}.sum"] == together[f"{rows[2]}.sum"]
