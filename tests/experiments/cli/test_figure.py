"""``captum-fam figure``: what is drawn, and what the file beside it says."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageOps

from captum_fam._files import sha256_of_weights
from captum_fam.cli.main import main
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.experiments import (
    Contrastive,
    FewShot,
    Panel,
    Retrieval,
    TwoPartModel,
    evaluate,
    get_methods,
    load_dataset,
    load_model,
)
from captum_fam.experiments.data import CUB200
from captum_fam.experiments.data.boxed_images import BoxedImage
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.figure_cells import query_cell
from captum_fam.experiments.figure_queries import choose_queries
from captum_fam.experiments.model_figure import check_scale, model_figure
from captum_fam.experiments.model_run import ModelRun, run_model
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.images import UnreadableImageError
from captum_fam.models import Conv4Net
from captum_fam.visualization import MapFigure
from tests.experiments.cub_files import write_tables

Draw = Callable[..., tuple[dict[str, Any], MapFigure]]

NOTHING = Panel((), ())
SIDE = 48
TWO = ("--model", f"demo,size={SIDE}", f"demo,size={SIDE},pooling=gmp,label=demo by GMP")
FEW_SHOT = ("few-shot", "--query", "1", "--episodes", "12")
CONTRASTIVE = ("contrastive", "--split", "novel", "--bank-split", "novel", "--k", "5")
RETRIEVAL = ("retrieval", "--split", "novel")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """``draw(*words)`` runs the command on 60 planted scenes; gives the file beside the figure, and the figure."""
    drawn: list[MapFigure] = []

    def keep(self: MapFigure, target: Any, **_: Any) -> None:
        drawn.append(self)
        self.savefig(target, dpi=20)

    monkeypatch.setattr(MapFigure, "_write", keep)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, data: str = "scenes:60") -> tuple[dict[str, Any], MapFigure]:
        assert main(["figure", *words, "--data", data, "--device", "cpu", "--out", "out/figure.png"]) == 0
        assert {path.name for path in Path("out").iterdir()} == {"figure.png", "figure.json"}
        content: dict[str, Any] = json.loads(Path("out/figure.json").read_text())
        return content, drawn[-1]

    return run


def texts(figure: MapFigure) -> list[str]:
    """The headers."""
    return [text.get_text() for text in figure.texts]


def titles(figure: MapFigure, n_columns: int) -> list[list[str]]:
    """Titles of the cells, row by row, each on one line."""
    each = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    return [each[start : start + n_columns] for start in range(0, len(each), n_columns)]


def test_few_shot_has_a_row_a_query_and_a_column_a_model(draw: Draw) -> None:
    content, figure = draw(*FEW_SHOT, *TWO, "--queries", "3")
    rows = titles(figure, 4)  # query, support, two models
    assert len(figure.axes) == 3 * 4
    assert [row[0] for row in rows] == [query["label"] for query in content["queries"]]
    assert all(row[1:] == ["", "", ""] for row in rows)
    assert [bool(ax.patches) for ax in figure.axes] == [True, False, False, False] * 3
    assert {"5-way 1-shot", "accuracy", "support", "demo", "demo by GMP"} <= set(texts(figure))
    for query in content["queries"]:
        assert set(query["predicted"].values()) == {query["label"]}
    assert len({query["episode"] for query in content["queries"]}) == 3
    assert not plt.get_fignums()


def test_the_accuracy_of_each_model_is_that_of_evaluate(draw: Draw, tmp_path: Path) -> None:
    content, figure = draw(*FEW_SHOT, *TWO, "--queries", "1")
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:60", "novel", model)
    expected = evaluate(FewShot(model, data, NOTHING, query=1, episodes=12), tmp_path / "evaluated", examples=0)
    assert expected is not None
    accuracy = expected.model["accuracy"]
    first, second = content["models"]
    assert first["accuracy"] == {"mean": accuracy.value, "ci95": accuracy.half_width, "n": 60}
    assert f"{100 * accuracy.value:.1f} ± {100 * accuracy.half_width:.1f} %" in texts(figure)
    assert first["settings"]["weights"] == second["settings"]["weights"] == sha256_of_weights(model)
    assert (first["label"], second["pooling"]) == ("demo", "gmp")
    assert "GMP" in second["settings"]["tail"]
    assert content["versions"]["captum-fam"]


def test_several_methods_are_columns_of_each_model(draw: Draw) -> None:
    _, figure = draw(*FEW_SHOT, *TWO, "--queries", "2", "--methods", "fam,similarity-cam-foil", "--no-supports")
    assert len(figure.axes) == 2 * (1 + 2 * 2)
    assert [text for text in texts(figure) if text in ("fam", "similarity-cam-foil")] == [
        "fam",
        "similarity-cam-foil",
    ] * 2


def test_mistakes_show_the_maps_of_the_predicted_and_of_the_true_class(draw: Draw) -> None:
    content, figure = draw(*CONTRASTIVE, *TWO, "--queries", "2", "--which", "wrong")
    rows = titles(figure, 5)  # query, and two maps of each model
    for row, query in zip(rows, content["queries"], strict=True):
        true = f"true: {query['label']}"
        first, second = query["predicted"].values()
        assert query["label"] not in (first, second)
        assert row == [true, f"predicted: {first}", true, f"predicted: {second}", true]
    maps = [np.asarray(ax.images[-1].get_array()) for ax in figure.axes]
    assert not np.array_equal(maps[1], maps[2])
    assert "5-NN accuracy" in texts(figure)


def test_mistakes_of_an_episode_show_both_supports(draw: Draw) -> None:
    _, figure = draw(*FEW_SHOT, *TWO, "--queries", "1", "--which", "wrong")
    (row,) = titles(figure, 9)
    assert [bool(title) for title in row] == [True, *[False, True] * 4]


def test_any_queries_name_what_each_model_predicts(draw: Draw) -> None:
    content, figure = draw(*CONTRASTIVE, *TWO, "--queries", "4", "--which", "any", "--supports")
    for row, query in zip(titles(figure, 5), content["queries"], strict=True):
        first, second = query["predicted"].values()
        assert row == [f"true: {query['label']}", "", f"predicted: {first}", "", f"predicted: {second}"]


def test_retrieval_shows_maps_of_the_query_and_of_what_each_model_retrieves(draw: Draw) -> None:
    content, figure = draw(*RETRIEVAL, *TWO, "--queries", "2")
    assert len(figure.axes) == 2 * (1 + 2 * 2)
    assert texts(figure).count("retrieved") == 2
    assert "Recall@1" in texts(figure)
    assert [query["item"] for query in content["queries"]] == [
        int(query["file"]) for query in content["queries"]
    ]  # scenes have no files, and are named by their position


def test_the_retrieved_image_is_explained_by_its_similarity_to_the_query(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:24", "novel", model)
    run = run_model("demo", Retrieval(model, data, NOTHING, ks=(1,), explain="all"), tmp_path)
    record = run.records[0]
    label = record.queries.predicted[3]
    there = run.prepared.example(record, 3, label)
    back = run.prepared.reverse_example(record, 3, label)
    assert back is not None
    torch.testing.assert_close(back.image, there.support)
    with torch.no_grad():
        embeddings = model(torch.stack([data[item].image for item in range(24)]))
        cosines = torch.nn.functional.cosine_similarity(embeddings[3:4], embeddings)
        cosines[3] = -1
        nearest = int(cosines.argmax())
        torch.testing.assert_close(back.scores_for(None)(back.activation)[0, 0], cosines[nearest])
        others = torch.nn.functional.cosine_similarity(embeddings[nearest : nearest + 1], embeddings)
        less_others = (others.sum() - others[nearest]) / 23
        contrast = back.scores_for("others")(back.activation)[0, 0]
        torch.testing.assert_close(contrast, cosines[nearest] - less_others, rtol=1e-4, atol=1e-5)


def test_chosen_items_come_in_their_order(draw: Draw) -> None:
    content, _ = draw(*RETRIEVAL, *TWO[:2], "--queries", "3", "--which", "any", "--seed", "5")
    items = [query["item"] for query in content["queries"]][::-1]
    again, _ = draw(*RETRIEVAL, *TWO[:2], "--which", "any", "--items", ",".join(map(str, items)))
    assert [query["item"] for query in again["queries"]] == items


def test_items_of_an_earlier_figure_are_its_queries_of_the_same_episodes(draw: Draw) -> None:
    words = (*FEW_SHOT, *TWO[:2], "--which", "any")
    content, figure = draw(*words, "--queries", "4", "--seed", "5")
    again, redrawn = draw(*words, "--seed", "5", "--items", content["items"])
    assert again["queries"] == content["queries"]
    for ax, same in zip(figure.axes, redrawn.axes, strict=True):
        np.testing.assert_array_equal(ax.images[-1].get_array(), same.images[-1].get_array())


@pytest.fixture
def episodes(tmp_path: Path) -> ModelRun:
    """A run of 12 episodes, of which some share queries."""
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:60", "novel", model)
    return run_model("demo", FewShot(model, data, NOTHING, query=1, episodes=12), tmp_path / "episodes")


def test_an_item_of_several_episodes_is_named_with_its_episode(episodes: ModelRun) -> None:
    asked = [(record.unit, item) for record in episodes.records for item in record.queries.item]
    counts = Counter(item for _, item in asked)
    several = next(item for item, count in counts.items() if count > 1)
    units = [unit for unit, item in asked if item == several]
    named = [(unit, several) for unit in units[::-1]]
    assert [(query.unit, query.item) for query in choose_queries([episodes], "any", items=named)] == named
    with pytest.raises(
        ValueError, match=f"items: {several} is a query of {len(units)} episodes; .*{units[1]}:{several}"
    ):
        choose_queries([episodes], "any", items=[several])
    once = next(item for item, count in counts.items() if count == 1)
    (query,) = choose_queries([episodes], "any", items=[once])
    assert (query.unit, query.item) in asked
    assert query.item == once
    with pytest.raises(ValueError, match=f"items: {query.name} is given twice; a query has one row"):
        choose_queries([episodes], "any", items=[once, (query.unit, once)])
    with pytest.raises(ValueError, match=f"items: 99:{once} .*--which any"):
        choose_queries([episodes], "any", items=[(99, once)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,4,3", "3 is given twice; a query has one row"),
        ("1:3,1:3", "1:3 is given twice; a query has one row"),
        ("3,four", "'four': expected ITEM"),
    ],
)
def test_items_that_cannot_be_read_are_refused_at_once(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["figure", "few-shot", "--model", "demo", "--data", "scenes", "--items", text])
    assert caught.value.code == 2
    assert f"argument --items: {message}" in capsys.readouterr().err


def test_another_seed_chooses_other_queries(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    run = run_model("demo", Retrieval(model, load_dataset("scenes:40", "novel", model), NOTHING), tmp_path)
    chosen = [[query.item for query in choose_queries([run], "any", 8, seed)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(items)) == 8 for items in chosen)
    for which, expected in (("correct", 1), ("wrong", 0)):
        for query in choose_queries([run], which, 100):  # type: ignore[arg-type]
            assert query.column("correct") == [expected]


class FirstAlone(ScenesWithBoxes):
    """Scenes of which the first has a class of its own."""

    def __getitem__(self, index: int) -> BoxedImage:
        sample = super().__getitem__(index)
        return sample._replace(label=999) if index == 0 else sample


def test_a_mistake_on_the_only_image_of_its_class_is_not_chosen(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    data = FirstAlone(PlantedScenes("novel", length=60, size=SIDE), model)
    run = run_model("demo", Retrieval(model, data, NOTHING), tmp_path)
    assert 0 in [query.item for query in choose_queries([run], "any", 100)]
    assert 0 not in [query.item for query in choose_queries([run], "wrong", 100)]


def test_neighbors_of_one_class_have_no_foil(draw: Draw) -> None:
    words = ["contrastive", "--split", "novel", "--bank-split", "novel", "--k", "1", "--methods", "fam,fam-foil"]
    _, figure = draw(*words, *TWO[:2], "--queries", "1")
    assert titles(figure, 3)[0][1:] == ["", "no other class to contrast with"]


def test_models_that_were_asked_other_episodes_are_not_compared(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:60", "novel", model)
    runs = [
        run_model(f"seed {seed}", FewShot(model, data, NOTHING, query=1, episodes=2, seed=seed), tmp_path / f"{seed}")
        for seed in (0, 1)
    ]
    with pytest.raises(ValueError, match=r"models seed 0 and seed 1 .*episodes"):
        choose_queries(runs)


class Unread(ScenesWithBoxes):
    """Scenes some of which cannot be read."""

    unread: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> BoxedImage:
        if index in self.unread:
            raise UnreadableImageError(f"{index}: broken")
        return super().__getitem__(index)


def test_accuracies_of_different_queries_are_said_to_be_so(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    runs = []
    for name, unread in (("A", (3,)), ("B", (5, 6)), ("C", (3,))):
        data = Unread(PlantedScenes("novel", length=24, size=SIDE), model)
        data.unread = unread
        runs.append(run_model(name, Retrieval(model, data, NOTHING), tmp_path / name))
    with pytest.warns(UserWarning, match="different queries, .*: A 23, B 22, C 23; .* the 21 that all") as warned:
        queries = choose_queries(runs, "any", 100)
    assert len(warned) == 1
    assert {query.item for query in queries} == {*range(24)} - {3, 5, 6}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_queries([runs[0], runs[2]], "any")


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:24", "novel", model)
    run_model("first", Retrieval(model, data, NOTHING), tmp_path / "both")
    with pytest.raises(ValueError, match="both is not empty"):
        run_model("second", Retrieval(load_model("demo", pooling="gmp"), data, NOTHING), tmp_path / "both")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Eight classes of three photographs of 30 x 20 pixels in the layout of CUB, two of them novel."""
    folder = tmp_path / "birds"
    folder.mkdir()
    return write_tables(folder)


def test_photographs_keep_their_shape_and_boxes(draw: Draw, birds: Path) -> None:
    words = ("few-shot", "--way", "2", "--query", "1", "--episodes", "5", "--queries", "1", "--which", "any")
    content, figure = draw(*words, "--model", f"demo,size={SIDE}", data=str(birds))
    (query,) = content["queries"]
    file = birds / "images" / query["label"] / query["file"]
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(drawn, np.asarray(Image.open(file)) / 255, atol=1e-6)
    assert [ax.images[0].get_array().shape[:2] for ax in figure.axes] == [(20, 30)] * 3
    (box,) = figure.axes[0].patches
    assert box.get_bbox().bounds == pytest.approx((2.5, 3.5, 15, 10))
    assert figure.axes[0].get_title() in ("true: Bird 4", "true: Bird 8")


def one_episode(model: TwoPartModel, data: CUB200) -> FewShot:
    return FewShot(model, data, NOTHING, way=2, query=1, episodes=1)


def test_images_cut_at_the_borders_are_shown_as_the_model_sees_them(birds: Path, tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = 16
    data = CUB200(birds, "novel", ResizeCrop(20, 16))
    prepared = run_model("demo", one_episode(model, data), tmp_path / "cropped").prepared
    assert prepared.image(0).shape == (3, 16, 16)
    assert query_cell(prepared, 0, "").boxes == data[0].boxes.tolist()
    squashed = one_episode(model, CUB200(birds, "novel", Squash(16)))
    assert run_model("demo", squashed, tmp_path / "squashed").prepared.image(0).shape == (3, 20, 30)


def test_a_box_that_the_crop_cuts_away_is_not_drawn(tmp_path: Path) -> None:
    """Of 30 x 20 the columns 7 to 23 and rows 2 to 18 are left."""
    birds = write_tables(tmp_path / "birds", dict.fromkeys(range(1, 25), "0 5 6 10"))
    data = CUB200(birds, "novel", ResizeCrop(20, 16))
    assert data[0].boxes.shape == (1, 4)
    model = load_model("demo")
    model.size = 16
    prepared = run_model("demo", one_episode(model, data), tmp_path / "run").prepared
    assert query_cell(prepared, 0, "").boxes == []


def test_photographs_of_class_folders_are_upright_as_the_model_sees_them(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(2):
            noise = Image.effect_noise((30, 20), 90).convert("RGB")
            noise.save(tmp_path / name / f"{number}.png", exif=turned)
    model = load_model("demo")
    model.size = 16
    run = run_model("demo", Retrieval(model, load_dataset(tmp_path, "test", model), NOTHING), tmp_path / "run")
    cell = query_cell(run.prepared, 3, "")
    assert cell.image.shape == (3, 30, 20)
    assert not cell.boxes
    with Image.open(tmp_path / "bee/1.png") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_allclose(cell.image.movedim(0, -1), upright / 255, atol=1e-6)


def test_a_checkpoint_and_a_head_of_each_model(draw: Draw, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Conv4Net().state_dict(), tmp_path / "a,b.pt")
    torch.save(torch.nn.Linear(64, 8).state_dict(), tmp_path / "head.pt")
    models = [f"conv4net=a,b.pt,size={SIDE},label=plain", f"conv4net=a,b.pt,head=head.pt,size={SIDE},similarity=dot"]
    content, _ = draw(*FEW_SHOT, "--model", *models, "--queries", "1", "--which", "any")
    plain, headed = content["models"]
    assert plain["weights"] == headed["weights"] == "a,b.pt"
    assert [plain["label"], headed["label"]] == ["plain", "conv4net"]
    assert "Linear(in_features=64, out_features=8" in headed["settings"]["tail"]
    assert headed["settings"]["similarity"] == "dot"


def test_a_memory_bank_of_its_own(draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("demo")
    model.size = SIDE
    data = load_dataset("scenes:60", "novel", model)
    evaluate(Contrastive(model, data, NOTHING, bank=data, k=5), tmp_path / "evaluated", examples=0)
    bank = tmp_path / "evaluated" / "bank.safetensors"
    words = [*CONTRASTIVE, "--model", f"demo,size={SIDE},bank={bank}", "--queries", "2"]
    content, _ = draw(*words)
    assert "note: bank: it seems to hold the queries" in capsys.readouterr().err
    assert content["models"][0]["settings"]["bank"]["rows"] == 60
    assert content["models"][0]["accuracy"]["n"] == 60


def test_minmax_leaves_the_smallest_value_clear(tmp_path: Path) -> None:
    model = load_model("demo")
    model.size = SIDE
    run = run_model("demo", Retrieval(model, load_dataset("scenes:24", "novel", model), NOTHING), tmp_path)
    (query,) = choose_queries([run], "any", 1)
    (method,) = get_methods("mean-activation")
    example = run.prepared.example(*query.places[0], query.column("predicted")[0])
    map_ = run.prepared.maps(method, example.scores_for, example.activation, example.target).maps[0]
    assert map_.min() > 0
    drawn = {}
    for scale in ("zero", "minmax"):
        figure = model_figure([run], [query], [method], which="any", supports=False, scale=scale)  # type: ignore[arg-type]
        drawn[scale] = np.asarray(figure.axes[1].images[-1].get_array())
    # The way to the image's size is linear, and leaves a constant as it is.
    np.testing.assert_allclose(drawn["minmax"], drawn["zero"] - float(map_.min()), atol=1e-6)


@pytest.mark.parametrize(
    "names", ["fam", "fam[normalization=relu]", "mean-activation,eigen-cam,random,center,center-box,uniform"]
)
def test_minmax_takes_maps_without_a_sign(names: str) -> None:
    check_scale(get_methods(names), "minmax")


@pytest.mark.parametrize(
    "name",
    [
        "fam-foil",
        "fam[normalization=minmax]-foil",
        "fam[normalization=none]",
        "fam[normalization=maxabs]",
        "similarity-cam",
        "grad-cam",
        "mean-activation-foil",
    ],
)
def test_minmax_refuses_signed_maps(name: str) -> None:
    methods = get_methods(["fam", name])
    check_scale(methods, "zero")
    with pytest.raises(ValueError, match=f"scale minmax: {re.escape(name)} is signed"):
        check_scale(methods, "minmax")


def test_a_figure_of_signed_maps_has_no_minmax(episodes: ModelRun) -> None:
    queries = choose_queries([episodes], "any", 1)
    with pytest.raises(ValueError, match="scale minmax: similarity-cam is signed"):
        model_figure([episodes], queries, get_methods("similarity-cam"), which="any", scale="minmax")


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_a_figure_is_written_in_the_format_of_its_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"figure.{suffix}"
    words = ["--model", f"demo,size={SIDE}", "--data", "scenes:24", "--queries", "1", "--out", str(path)]
    assert main(["figure", *RETRIEVAL, *words, "--which", "any", "--device", "cpu"]) == 0
    assert path.read_bytes()[:5] == {"pdf": b"%PDF-", "svg": b"<?xml"}[suffix]
    assert path.with_suffix(".json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "figure.tiff"], "--out figure.tiff: "),
        (["--model", "demo", "demo"], "--model: several "),
        (["--model", "conv4net"], "--model conv4net: give its weights as conv4net=FILE"),
        (["--model", "conv4net=gone.pt"], "weights gone.pt: no such file"),
        (["--model", "demo,bank=b.safetensors"], "--model: bank=b.safetensors is for protocols with a memory bank"),
        (["--model", "demmo"], "model 'demmo' is unknown"),
        (["--model", "demo,pooling=max"], "pooling must be one of gap, gmp, lse, gem, got 'max'"),
        (["--model", f"demo,size={SIDE},resize=crop"], "resize: scenes are drawn"),
        (["--methods", "correspondence"], "correspondence compares with the positions of support images"),
        (["--methods", "gradcam"], "method 'gradcam' is unknown"),
        (["--methods", "fam,fam-foil", "--scale", "minmax"], "scale minmax: fam-foil is signed"),
        (["--methods", "similarity-cam", "--scale", "minmax"], "scale minmax: similarity-cam is signed"),
        (["--items", "0:3"], "--items: EPISODE:ITEM is for episodes"),
        (["--data", "nowhere"], "data nowhere: no such folder"),
        (["--data", "scenes:30", "--which", "any", "--items", "3,99"], "items: 99 is no query"),
        (["--data", "scenes:24", "--which", "correct"], "no query that all models get right, among 24"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_cannot_be_followed_get_one_line_and_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    defaults = ["--model", f"demo,size={SIDE}", "--data", "scenes:24"]
    assert main(["figure", *RETRIEVAL, *defaults, *words, "--device", "cpu"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("captum-fam")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


def test_supports_of_a_memory_bank_are_refused_before_any_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # There is no such file: nothing may come to read it.
    words = ["contrastive", "--model", "demo,bank=b.safetensors", "--data", "scenes:24", "--supports"]
    assert main(["figure", *words]) == 2
    assert "--supports: the memory bank b.safetensors has no images to show" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["demo,gap", "=weights.pt", "conv4net=", "demo,size=big", "demo,size=0", "demo,similarity=", "demo,color=red"],
)
def test_a_model_that_cannot_be_read_is_shown_the_syntax(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["figure", "retrieval", "--model", text, "--data", "scenes"])
    assert caught.value.code == 2
    assert re.search("argument --model: .*(expected NAME|expected pixels|size must be)", capsys.readouterr().err)


def test_titles_and_headers_do_not_run_into_images(draw: Draw) -> None:
    long = "a network of a very long name, which goes on over several lines of the header"
    models = [f"demo,size={SIDE},label={long}", f"demo,size={SIDE}"]
    _, figure = draw(*CONTRASTIVE, "--model", *models, "--queries", "2", "--which", "wrong", "--methods", "fam,center")
    renderer = FigureCanvasAgg(figure).get_renderer()
    images = [ax.get_window_extent(renderer) for ax in figure.axes]
    written = [text for text in figure.texts if text.get_text()] + [ax.title for ax in figure.axes]
    boxes = [text.get_window_extent(renderer) for text in written if text.get_text()]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(image) for image in images)
        assert not any(box.overlaps(other) for other in boxes[:number])
