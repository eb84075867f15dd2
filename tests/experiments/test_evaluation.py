"""A whole run: its files, its table, and what goes wrong on the way."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam._files import sha256_of_weights
from captum_fam.cli.main import main, make_parser
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.example_figure import example_row
from captum_fam.experiments.linear_head import load_head
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.records import QueryColumns, UnitRecord
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.models import create_model
from captum_fam.support.memory_bank import MemoryBank
from tests.experiments.data_sets import Damaged, Filed
from tests.experiments.runs import NAMES, make_model, make_panel, make_protocol


def bright_model() -> TwoPartModel:
    return make_model()


def cropping_model() -> TwoPartModel:
    model = make_model()
    model.resize = "crop"
    return model


def headed_model() -> TwoPartModel:
    return make_model(head=True)


def run_command(*arguments: str) -> int:
    options = make_parser("evaluate").parse_args(arguments)
    code: int = options.run(options)
    return code


def train_a_head(*arguments: str) -> int:
    options = make_parser("train").parse_args(["head", *arguments])
    code: int = options.run(options)
    return code


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Thirty small pictures of six classes in the layout of CUB."""
    root = tmp_path / "cub"
    tables: dict[str, list[str]] = {
        name: [] for name in ("images", "image_class_labels", "bounding_boxes", "train_test_split", "classes")
    }
    random = np.random.default_rng(0)
    for label in range(6):
        name = f"{label + 1:03}.Bird_{label}"
        tables["classes"].append(f"{label + 1} {name}")
        (root / "images" / name).mkdir(parents=True)
        for number in range(5):
            image_id = 5 * label + number + 1
            pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.jpg")
            tables["images"].append(f"{image_id} {name}/{number}.jpg")
            tables["image_class_labels"].append(f"{image_id} {label + 1}")
            tables["bounding_boxes"].append(f"{image_id} 5.0 10.0 15.0 20.0")
            tables["train_test_split"].append(f"{image_id} {number % 2}")
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_run_leaves_table_summary_and_figures(name: str, tmp_path: Path) -> None:
    evaluation = evaluate(make_protocol(name), tmp_path, examples=2, wrong=2, about={"model": "small"})
    assert evaluation is not None
    assert not (tmp_path / "features").exists()
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracy = next(row for row in rows if row["measure"] == "accuracy")
    assert float(accuracy["mean"]) == evaluation.model["accuracy"].value
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["weights"] == sha256_of_weights(make_model())
    assert summary["about"] == {"model": "small"}
    assert summary["counts"]["explained"] > 0
    assert summary["versions"].keys() >= {"captum-fam", "torch", "captum"}
    assert len(summary["results"]) == len(rows)
    for figure in ("examples.png", "wrong.png"):
        with Image.open(tmp_path / figure) as image:
            assert min(image.size) > 200
    with (tmp_path / "wrong.csv").open() as file:
        mistakes = list(csv.DictReader(file))
    assert len(mistakes) == 2
    assert all(row["label"] != row["predicted"] for row in mistakes)
    assert float(mistakes[0]["confidence"]) >= float(mistakes[1]["confidence"])


def test_the_table_has_a_row_a_method_and_the_models_accuracy(tmp_path: Path) -> None:
    evaluation = evaluate(make_protocol("few-shot"), tmp_path, examples=0)
    lines = str(evaluation).splitlines()
    assert lines[0].startswith("few-shot: 9 episodes, 180 queries")
    assert lines[1].startswith("model: accuracy 0.")
    assert lines[2].split()[:3] == ["method", "energy", "energy-positive"]
    assert [line.split()[0] for line in lines[3:]] == ["fam", "grad-cam-foil", "mean-activation", "uniform"]


def test_few_shot_accuracy_is_the_mean_of_episodes_with_the_papers_interval(tmp_path: Path) -> None:
    evaluation = evaluate(make_protocol("few-shot"), tmp_path, examples=0)
    assert evaluation is not None
    records = [json.loads(line) for line in (tmp_path / "records-0.jsonl").read_text().splitlines()]
    each = np.array([np.mean(record["queries"]["correct"]) for record in records])
    assert evaluation.model["accuracy"].value == pytest.approx(each.mean())
    assert evaluation.model["accuracy"].half_width == pytest.approx(1.96 * each.std() / 3)
    energies = [
        np.mean(record["explained"]["fam"]["kept"]["localization"]["energy"]) for record in records if record["rows"]
    ]
    assert evaluation.methods["fam"]["energy"].value == pytest.approx(np.mean(energies))


def test_the_interval_of_mosaics_counts_mosaics(tmp_path: Path) -> None:
    evaluation = evaluate(make_protocol("mosaic"), tmp_path, examples=0)
    assert evaluation is not None
    records = [json.loads(line) for line in (tmp_path / "records-0.jsonl").read_text().splitlines()]
    columns = np.array([record["explained"]["grad-cam-foil"]["kept"]["cells"]["cell-energy"] for record in records])
    assert columns.shape == (7, 4)
    found = evaluation.methods["grad-cam-foil"]["cell-energy"]
    assert found.value == pytest.approx(columns.mean())
    assert found.half_width == pytest.approx(1.96 * columns.mean(1).std() / 7**0.5)
    assert (found.n, found.n_groups, evaluation.model["accuracy"].n_groups) == (28, 7, 7)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_cannot_be_used_are_left_out_and_named(name: str, tmp_path: Path) -> None:
    protocol = make_protocol(name)
    unreadable = {0, *range(32, 48)}  # a whole batch among them
    overflowing = {20} if name != "contrastive" else set()
    protocol.dataset = Damaged(protocol.dataset, unreadable, overflowing)
    if name == "contrastive":
        protocol.bank = make_protocol(name).dataset
    if name == "few-shot":
        protocol.query = 2  # the classes are smaller now
    evaluation = evaluate(protocol, tmp_path, examples=0)
    assert evaluation is not None
    assert evaluation.skipped.keys() == unreadable | overflowing
    assert evaluation.skipped[32] == "scene-32.jpg: corrupt"
    assert evaluation.counts["skipped"] == len(unreadable | overflowing)
    assert (tmp_path / "skipped.json").is_file() == (name != "contrastive")  # whose records name them
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped"]["0"] == "scene-0.jpg: corrupt"


def test_an_image_that_overflows_is_left_out_of_the_queries_of_a_bank(tmp_path: Path) -> None:
    protocol = make_protocol("contrastive")
    protocol.bank = protocol.dataset
    protocol.dataset = Damaged(protocol.dataset, overflowing={20})
    evaluation = evaluate(protocol, tmp_path, examples=0)
    assert evaluation is not None
    assert evaluation.skipped == {20: "its features hold NaN or inf"}


def test_unreadable_images_of_a_bank_are_said_and_have_no_row(tmp_path: Path) -> None:
    protocol = make_protocol("contrastive")
    protocol.bank = Damaged(protocol.dataset, unreadable={0, 50}, overflowing={7})
    with pytest.warns(UserWarning, match="left out of the bank, because they could not be used: 3"):
        evaluation = evaluate(protocol, tmp_path, examples=0)
    assert evaluation is not None
    assert len(MemoryBank.load(tmp_path / "bank.safetensors")) == 127
    reasons = {0: "scene-0.jpg: corrupt", 7: "its features hold NaN or inf", 50: "scene-50.jpg: corrupt"}
    assert evaluation.bank_skipped == reasons
    assert (evaluation.counts["queries"], evaluation.counts["skipped in the bank"]) == (130, 3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bank_skipped"] == {str(item): reason for item, reason in reasons.items()}


def test_the_file_of_an_image_whose_features_are_no_numbers_is_named(tmp_path: Path) -> None:
    protocol = make_protocol("contrastive")
    filed = Filed(protocol.dataset, range(20))
    protocol.bank = Damaged(filed, overflowing={3})  # type: ignore[arg-type]
    protocol.bank.records = filed.records
    protocol.dataset = Damaged(filed, overflowing={4})  # type: ignore[arg-type]
    protocol.dataset.records = filed.records
    with pytest.warns(
        UserWarning,
        match=r"used: 1, the first is item 3: data/3\.jpg: its features hold NaN",
    ):
        evaluation = evaluate(protocol, tmp_path, examples=0)
    assert evaluation is not None
    assert evaluation.skipped == {4: "data/4.jpg: its features hold NaN or inf"}


@pytest.mark.parametrize("name", ["contrastive", "retrieval"])
def test_a_mistake_on_the_only_image_of_its_class_is_shown_without_it(name: str, tmp_path: Path) -> None:
    class Relabeled(Damaged):
        def __init__(self, scenes: Any) -> None:
            super().__init__(scenes)
            # Two images are alone in their classes, and so mistakes.
            self.labels = torch.zeros(130, dtype=torch.int64)
            self.labels[-2:] = torch.tensor([1, 2])

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)._replace(label=int(self.labels[index]))

    protocol = make_protocol(name)
    protocol.dataset = protocol.bank = Relabeled(protocol.dataset)
    evaluate(protocol, tmp_path, examples=0, wrong=5)
    with (tmp_path / "wrong.csv").open() as file:
        assert {row["item"] for row in csv.DictReader(file)} >= {"128", "129"}
    record = UnitRecord(0, QueryColumns(item=[129], label=[2]))
    prepared = protocol.prepare(tmp_path / "features")
    query, *shown = example_row(prepared, record, 0, {"predicted": 0, "true": 2}, protocol.panel.methods[:1])
    assert "no image of the true class to compare with" in query.title
    assert len([cell for cell in shown if cell.attribution is not None]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_one_correct_query_still_has_its_accuracy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = make_protocol(name)
    if name in ("few-shot", "mosaic"):
        # Every query is the very image that supports another class.
        episode = EpisodeSampler.episode
        wrong = lambda sampler, at: episode(sampler, at)._replace(query=episode(sampler, at).support.roll(1, 0))  # noqa: E731
        monkeypatch.setattr(EpisodeSampler, "episode", wrong)
        protocol.shot = protocol.query = 1
    else:
        protocol.dataset.labels = torch.arange(len(protocol.dataset.labels))
        protocol.dataset.scenes.targets = list(range(144))
    evaluation = evaluate(protocol, tmp_path)
    assert evaluation is not None
    assert evaluation.model["accuracy"].value == 0
    assert evaluation.counts["explained"] == (28 if name == "mosaic" else 0)  # these are explained all the same
    assert "model: accuracy 0.000" in str(evaluation)


@pytest.mark.parametrize("measure", ["localization", "max-box", "faithfulness", "perturbation"])
def test_a_measure_that_mosaics_do_not_have_is_refused(measure: str) -> None:
    dataset = make_protocol("mosaic").dataset
    with pytest.raises(ValueError, match=rf"{measure} is not for mosaic.*--measures"):
        Mosaic(make_model(), dataset, make_panel("fam", "swap", measure))
    assert Mosaic(make_model(), dataset, shot=2).panel.measures == ("swap",)


@pytest.mark.parametrize("measure", ["localization", "max-box"])
@pytest.mark.parametrize("name", ["few-shot", "contrastive", "retrieval"])
def test_a_measure_of_boxes_is_refused_where_there_are_none(name: str, measure: str) -> None:
    class Plain(Damaged):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[:2]

    protocol = make_protocol(name)
    dataset = Plain(protocol.dataset, unreadable={0})
    options = {"query": 2} if name == "few-shot" else {}
    with pytest.raises(ValueError, match=rf"{measure} needs boxes.*--measures"):
        type(protocol)(make_model(), dataset, make_panel("fam", "swap", measure), **options)
    type(protocol)(make_model(), dataset, make_panel("fam", "swap", "faithfulness"), **options)


@pytest.mark.parametrize("name", ["contrastive", "retrieval"])
def test_a_method_that_compares_positions_is_refused_where_supports_have_none(name: str) -> None:
    protocol = make_protocol(name)
    panel = make_panel("fam,correspondence-foil")
    with pytest.raises(ValueError, match="correspondence-foil compares with the positions"):
        type(protocol)(make_model(), protocol.dataset, panel)


def test_a_folder_of_another_run_is_refused_before_any_work(tmp_path: Path) -> None:
    evaluate(make_protocol("few-shot"), tmp_path, examples=0)
    other = make_protocol("few-shot")
    other.seed = 1
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        evaluate(other, tmp_path)


def test_other_weights_are_another_run(tmp_path: Path) -> None:
    evaluate(make_protocol("few-shot"), tmp_path, examples=0)
    protocol = make_protocol("few-shot")
    other = FewShot(make_model(seed=1), protocol.dataset, make_panel(), query=4, episodes=9, batch_size=16)
    with pytest.raises(ValueError, match="weights was"):
        evaluate(other, tmp_path)


def test_the_commands_run_on_a_folder_of_photographs(birds: Path, tmp_path: Path, capsys: Any) -> None:
    model = ("--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu", "--examples", "1")
    few_shot = ("--way", "3", "--query", "2", "--episodes", "4", "--split", "all")
    assert run_command("few-shot", *model, *few_shot, "--out", str(tmp_path / "few-shot")) == 0
    assert "few-shot: 4 episodes, 24 queries" in capsys.readouterr().out
    assert run_command("retrieval", *model, "--methods", "fam,uniform", "--out", str(tmp_path / "retrieval")) == 0
    assert "recall@8" in capsys.readouterr().out
    contrastive = ("--k", "3", "--methods", "fam-foil", "--measures", "localization,swap")
    assert run_command("contrastive", *model, *contrastive, "--out", str(tmp_path / "contrastive")) == 0
    mosaic = ("--split", "all", "--shot", "2", "--mosaics", "3", "--methods", "fam")
    assert run_command("mosaic", *model, *mosaic, "--out", str(tmp_path / "mosaic")) == 0
    assert "cell-auroc" in capsys.readouterr().out


def test_the_command_cuts_at_a_layer_and_prints_what_maps_cover(birds: Path, tmp_path: Path, capsys: Any) -> None:
    model = ("--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu", "--examples", "1")
    methods = "similarity-cam-foil,similarity-cam[layers=activation+rest],grad-cam[layers=rest]"
    mosaic = ("--split", "all", "--shot", "2", "--mosaics", "3", "--measures", "", "--methods", methods)
    arguments = ("mosaic", *model, *mosaic, "--out", str(tmp_path / "out"))
    assert run_command(*arguments, "--layer", "1") == 0
    head, *rows = capsys.readouterr().out.splitlines()[2:5]
    assert head.split()[-4:] == ["coverage", "n", "nan", "empty"]
    assert all("1.000 ± 0.000" in row for row in rows)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["about"]["layer"] == "1"
    covered = {row["method"]: row["mean"] for row in summary["results"] if row["measure"] == "coverage"}
    assert covered == pytest.approx(dict.fromkeys(methods.split(",")[:2], 1.0), abs=1e-3)
    assert run_command(*arguments, "--layer", "1") == 0
    with pytest.raises(ValueError, match=r"tail was|weights was"):
        run_command(*arguments, "--layer", "0")
    with pytest.raises(ValueError, match=r"rest is no layer behind the activation.*\(--layer\)"):
        run_command(*arguments)


def test_the_command_trains_a_head_that_the_next_one_takes(birds: Path, tmp_path: Path, capsys: Any) -> None:
    model = ("--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu")
    head = str(tmp_path / "head.pt")
    assert train_a_head(*model, "--width", "5", "--steps", "3", "--out", head) == 0
    assert "12 -> 5, on 15 images" in capsys.readouterr().out
    arguments = ("--head", head, "--split", "all", "--methods", "fam", "--out", str(tmp_path / "out"))
    assert run_command("retrieval", *model, *arguments) == 0


def test_a_head_is_trained_on_the_pooled_activation_whatever_head_the_model_has(birds: Path, tmp_path: Path) -> None:
    heads = []
    for factory in ("bright_model", "headed_model"):
        path = tmp_path / f"{factory}.pt"
        arguments = ("--model", f"{__name__}:{factory}", "--data", str(birds), "--device", "cpu", "--steps", "3")
        assert train_a_head(*arguments, "--width", "5", "--out", str(path)) == 0
        heads.append(load_head(path).weight)
    assert heads[0].shape == (5, 12)
    assert torch.equal(heads[0], heads[1])


def test_a_head_of_captum_fam_train_metric_is_taken_with_its_pooling(birds: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from captum_fam.experiments.training.metric import MetricRecipe, train_metric_head

    features, labels = torch.rand(40, 12), torch.arange(40) % 4
    recipe = MetricRecipe(steps=2, period=1, way=3, images=2)
    train_metric_head(features, labels, None, tmp_path / "run", recipe, embedding_size=5)
    head = tmp_path / "run/best-head.safetensors"
    arguments = ("--head", str(head), "--pooling", "gmp", "--split", "all", "--methods", "fam")
    model = ("--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu", "--examples", "0")
    assert run_command("retrieval", *model, *arguments, "--out", str(tmp_path / "out")) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert "(pooling): GMP()" in summary["tail"]
    assert "out_features=5" in summary["tail"]
    assert summary["about"]["pooling"] == "gmp"
    with pytest.raises(ValueError, match="tail was"):
        run_command("retrieval", *model, *arguments, "--pooling", "gap", "--out", str(tmp_path / "out"))


def test_a_crop_moves_images_and_boxes_and_is_another_run(birds: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ("retrieval", "--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu")
    arguments = (*arguments, "--methods", "uniform", "--examples", "0", "--split", "all", "--out", str(tmp_path))
    assert run_command(*arguments, "--resize", "crop") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["preprocessing"]["geometry"] == "ResizeCrop(resize=None, crop=32, interpolation='bilinear')"
    energy = next(row["mean"] for row in summary["results"] if row["measure"] == "energy")
    # The box (5, 10, 20, 30) of 30 x 40 becomes (5.33, 10.5, 21.33, 31.5) of 32 x 42, less the crop's corner (0, 5):
    # the centers of columns 5 to 20 and rows 5 to 25.
    assert energy == pytest.approx(16 * 21 / 32**2)
    with pytest.raises(ValueError, match="preprocessing was"):
        run_command(*arguments, "--resize", "squash")
    with pytest.raises(ValueError, match="cannot be cropped"):
        run_command("retrieval", "--model", "demo", "--data", "scenes:9", "--resize", "crop")


@pytest.mark.parametrize(("given", "geometry"), [((), "ResizeCrop"), (("--resize", "squash"), "Squash")])
def test_a_model_that_crops_does_so_unless_told_otherwise(
    given: tuple[str, ...], geometry: str, birds: Path, tmp_path: Path
) -> None:
    arguments = ("retrieval", "--model", f"{__name__}:cropping_model", "--data", str(birds), "--device", "cpu")
    arguments = (*arguments, "--methods", "uniform", "--examples", "0", "--split", "all", "--out", str(tmp_path))
    assert run_command(*arguments, *given) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["preprocessing"]["geometry"].startswith(geometry)


def test_random_weights_are_said_once(birds: Path, tmp_path: Path) -> None:
    arguments = ("--data", str(birds), "--device", "cpu", "--size", "32")
    torch.save(create_model("conv4net").model.state_dict(), tmp_path / "conv4net.pth")
    commands = {
        "retrieval": (run_command, ("retrieval", "--split", "all", "--methods", "uniform", "--examples", "0")),
        "head": (train_a_head, ("--steps", "2")),
    }
    for name, (run, further) in commands.items():
        words = (*further, *arguments, "--model", "conv4")
        with pytest.warns(UserWarning, match="--model conv4: random weights.*--weights") as said:
            assert run(*words, "--out", str(tmp_path / name)) == 0
        assert len([one for one in said if "random weights" in str(one.message)]) == 1
        with warnings.catch_warnings(record=True) as said:
            weights = ("--weights", str(tmp_path / "conv4net.pth"))
            assert run(*words, *weights, "--out", str(tmp_path / f"{name}-trained")) == 0
        assert not [one for one in said if "random weights" in str(one.message)]


def test_the_conventions_of_a_command_are_part_of_the_run(birds: Path, tmp_path: Path) -> None:
    arguments = ("retrieval", "--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu")
    arguments = (*arguments, "--methods", "fam", "--examples", "0", "--split", "all", "--out", str(tmp_path))
    assert run_command(*arguments, "--signed", "positive", "--epsilon", "0.01", "--threshold", "0.3") == 0
    conventions = json.loads((tmp_path / "summary.json").read_text())["conventions"]
    assert (conventions["signed"], conventions["epsilon"], conventions["threshold"]) == ("positive", 0.01, 0.3)
    with pytest.raises(ValueError, match="conventions was"):
        run_command(*arguments)


def test_the_bank_of_imagenet_has_its_boxes(tmp_path: Path) -> None:
    lines = ["ImageId,PredictionString"]
    for folder in ("val", "more"):
        (tmp_path / folder).mkdir()
        for number in range(8):
            name = f"{folder}_{number}"
            Image.fromarray(np.full((20, 30, 3), 25 * number + 9, dtype=np.uint8)).save(
                tmp_path / folder / f"{name}.png"
            )
            lines.append(f"{name},n0{number % 2} 3 4 20 18")
    (tmp_path / "boxes.csv").write_text("\n".join(lines[:9]))
    (tmp_path / "more.csv").write_text("\n".join([lines[0], *lines[9:]]))
    (tmp_path / "all.csv").write_text("\n".join(lines))
    model = ("--model", f"{__name__}:bright_model", "--data", str(tmp_path / "val"), "--device", "cpu")
    model = (*model, "--bank-data", str(tmp_path / "more"), "--methods", "uniform", "--examples", "0", "--k", "2")
    for number, boxes in enumerate((["all.csv"], ["boxes.csv", "--bank-boxes", str(tmp_path / "more.csv")])):
        out = tmp_path / f"out-{number}"
        assert (
            run_command("contrastive", *model, "--boxes", str(tmp_path / boxes[0]), *boxes[1:], "--out", str(out)) == 0
        )
        bank = MemoryBank.load(out / "bank.safetensors")
        assert bank.class_names == ("n00", "n01")
        assert bank.labels.tolist() == [0, 1] * 4


def test_a_corrupt_photograph_is_named_and_the_exit_code_says_so(birds: Path, tmp_path: Path, capsys: Any) -> None:
    (birds / "images/004.Bird_3/1.jpg").write_bytes(b"no picture")
    arguments = ("--data", str(birds), "--methods", "fam", "--examples", "0", "--out", str(tmp_path / "out"))
    assert run_command("retrieval", "--model", f"{__name__}:bright_model", "--device", "cpu", *arguments) == 1
    said = capsys.readouterr()
    assert "1 skipped" in said.out
    assert "1.jpg: corrupt" in said.err


def test_the_same_command_again_repeats_nothing(birds: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ("retrieval", "--model", f"{__name__}:bright_model", "--data", str(birds), "--device", "cpu")
    arguments = (*arguments, "--methods", "fam", "--batch-size", "4", "--out", str(tmp_path / "out"))
    run_command(*arguments)
    first = capsys.readouterr().out
    before = (tmp_path / "out/records-0.jsonl").read_bytes()
    run_command(*arguments)
    assert capsys.readouterr().out == first
    assert (tmp_path / "out/records-0.jsonl").read_bytes() == before


def test_an_interrupted_command_says_how_to_go_on(
    birds: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("captum_fam.experiments.protocols.retrieval.PreparedRetrieval.run_unit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_command(
            "retrieval", "--model", f"{__name__}:bright_model", "--data", str(birds), "--out", str(tmp_path / "out")
        )
    assert "the same command" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")


def test_a_missing_extra_is_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError('pip install "captum-fam[models]"')

    monkeypatch.setattr("captum_fam.experiments.cli.evaluate.load_split_model", missing)
    assert main(["evaluate", "retrieval", "--model", "conv4", "--data", "scenes:9", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == 'captum-fam: error: pip install "captum-fam[models]"\n'
