from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from captum_fam import SupportSet, TokenGrid
from captum_fam import explain as explain_queries
from captum_fam.cli.main import main
from captum_fam.explanation import compare_figure
from captum_fam.functional import smooth_maps
from captum_fam.image_files import find_classes
from captum_fam.images import read_image
from captum_fam.models import Conv4Net, EmbeddingModel, create_model
from captum_fam.visualization import MapFigure

Explain = Callable[..., int]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a SqueezeNet that nobody trained."""
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(models.squeezenet1_1().state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with queries and the birds of three classes; the sizes of no two images are alike."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(
        ["q1.png", "q2.jpg", *(f"birds/{bird}/{i}.png" for bird in ("crow", "jay", "wren") for i in range(2))]
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (60 + number, 90 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def explain(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Explain:
    """``explain(*words)`` on a small network, with small images and rough figures."""
    monkeypatch.setattr(MapFigure, "_write", lambda self, target, **_: self.savefig(target, dpi=20))
    network = ["--model", "squeezenet1_1", "--weights", str(weights), "--size", "64", "--device", "cpu"]
    return lambda *words: main(["explain", "--out", "out", *words, *network])


def manifest(out: str = "out") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out, "manifest.json").read_text())
    return content


def test_one_query_and_the_images_of_one_class(explain: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("q1.png", "--support", "birds/jay/0.png", "birds/jay/1.png") == 0
    assert {path.name for path in Path("out").iterdir()} == {
        ".captum-fam",
        "manifest.json",
        "results.csv",
        "q1.similarity-cam.png",
        "q1.fam.png",
        "q1.figure.png",
        "q1.npz",
    }
    assert Image.open("out/q1.fam.png").size == (90, 60)
    assert np.load("out/q1.npz")["fam"].shape == (64, 64)
    (query,) = manifest()["queries"]
    assert query["file"] == "q1.png"
    assert query["image_size"] == [60, 90]
    assert query["figure"] == "q1.figure.png"
    said = f"{query['scores']['support']:#.3g} (similarity-cam explains 100 % of the score)"
    assert f"q1.png: support {said} -> out" in capsys.readouterr().out


def test_the_score_is_the_mean_cosine_of_the_images_as_the_network_sees_them(explain: Explain, weights: Path) -> None:
    assert explain("q1.png", "q2.jpg", "--support", "birds/jay/") == 0
    net = dataclasses.replace(create_model("squeezenet1_1", weights), size=64)
    with torch.no_grad():
        queries, supports = (
            net.model(torch.stack([net.preprocess(read_image(path)) for path in paths]))
            for paths in (["q1.png", "q2.jpg"], ["birds/jay/0.png", "birds/jay/1.png"])
        )
    expected = torch.nn.functional.cosine_similarity(queries[:, None], supports[None], dim=2).mean(1)
    scores = [query["scores"]["jay"] for query in manifest()["queries"]]
    torch.testing.assert_close(torch.tensor(scores), expected)


@pytest.mark.parametrize("foil", [[], ["others"], ["runner-up"], ["birds/crow/0.png"], ["birds/crow", "birds/wren"]])
def test_a_folder_of_class_folders_explains_the_predicted_class(foil: list[str], explain: Explain) -> None:
    words = ["--foil", *foil] if foil else []
    assert explain("q1.png", "--support", "birds", *words, "--methods", "fam,similarity-cam,grad-cam") == 0
    content = manifest()
    (query,) = content["queries"]
    assert list(query["scores"]) == ["crow", "jay", "wren"]
    assert query["target"] == query["predicted"] == max(query["scores"], key=query["scores"].__getitem__)
    assert set(query["methods"]) == {"fam", "similarity-cam", "grad-cam"}
    assert abs(query["methods"]["similarity-cam"]["convergence_delta"]) < 1e-5
    assert list(content["options"]) == ["fam", "similarity-cam", "grad-cam"]
    arrays = np.load("out/q1.npz")
    score = query["scores"][query["target"]]
    np.testing.assert_allclose(arrays["similarity-cam.layer"].sum(), score, atol=1e-5)


@pytest.mark.parametrize("figures", [[], ["--no-figures"]])
def test_maps_are_smoothed_and_the_manifest_says_so(
    figures: list[str], explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for words in ([], ["--smooth", "3"]):
        assert explain("q1.png", "--support", "birds", "--foil", "others", *figures, *words) == 0
        content = manifest()
        arrays = np.load("out/maps.npz" if figures else "out/q1.npz")
        made.append([arrays[f"q1.{name}" if figures else f"{name}.layer"] for name in ("similarity-cam", "fam")])
        assert content["smooth"] == (3 if words else 1)
        assert content["queries"][0]["methods"]["similarity-cam"]["account"] == "explains 100 % of the score"
    for plain, smooth in zip(*made, strict=True):
        expected = smooth_maps(torch.from_numpy(plain)[None, None], 3)[0, 0]
        np.testing.assert_allclose(smooth, expected.numpy(), rtol=1e-4, atol=1e-7)
    for wrong in ("4", "0", "-3", "2.5", "x"):
        with pytest.raises(SystemExit, match="2"):
            explain("q1.png", "--support", "birds", f"--smooth={wrong}")
        words = f"argument --smooth: expected an odd whole number, at least 1, got '{wrong}'"
        assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("foil", [[], ["--foil", "others"]])
def test_the_line_the_manifest_and_the_figure_say_what_a_map_explains(
    foil: list[str], explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["grad-cam", "similarity-cam", "fam", "uniform"]
    assert explain("q1.png", "q2.jpg", "--support", "birds", *foil, "--methods", ",".join(methods)) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, query in zip(lines[:-1], manifest()["queries"], strict=True):
        score = f"{query['scores'][query['target']]:#.3g}"
        plain = r" \(plain score 0\.99\d\)" if foil else ""
        said = rf"{score}{plain} \(similarity-cam explains 100 % of the score\)"
        assert re.fullmatch(f"{query['file']}: {query['target']} {said} -> {Path('out', query['figure'])}", line)
        entries = query["methods"]
        assert [entries[name]["account"] for name in methods] == [
            "no account of the score",
            "explains 100 % of the score",
            "no account of the score",
            "no account of the score",
        ]
        assert abs(entries["similarity-cam"]["coverage"] - 1) < 1e-3  # of a small difference
        assert [entries[name]["flat"] for name in methods] == [False, False, False, True]
        arrays = np.load(Path("out", query["arrays"]))
        assert arrays["similarity-cam.coverage"] == np.float32(entries["similarity-cam"]["coverage"])
        assert {name for name in arrays.files if ".shares." in name} >= {
            "similarity-cam.shares.map",
            "similarity-cam.shares.rest",
        }


def test_the_line_of_a_distance_has_the_numbers_of_its_map(
    explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["q1.png", "--support", "birds/jay", "--similarity", "euclidean", "--methods", "fam,similarity-cam"]
    assert explain(*words) == 0
    (query,) = manifest()["queries"]
    shares = query["methods"]["similarity-cam"]["shares"]
    score, start = query["scores"]["jay"], shares["zero embedding"]
    assert score == pytest.approx(sum(shares.values()), abs=1e-5)
    explained, more = f"{score - start:#.3g}", "more" if score > start else "less"
    said = f"{score:#.3g}, which is {explained.strip('-')} {more} than an embedding of zeros has ({start:#.3g})"
    difference = f"explains 100 % of the difference of {explained} from an embedding of zeros"
    line = f"q1.png: jay {said} (similarity-cam {difference}) -> out/q1.figure.png"
    assert capsys.readouterr().out.splitlines()[0] == line
    account = query["methods"]["similarity-cam"]["account"]
    assert account == f"score {said}; {difference}"


def test_a_map_that_is_only_noise_is_zero_and_said_to_be(explain: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("q1.png", "--support", "q1.png", "--methods", "grad-cam,similarity-cam") == 0
    said = "similarity-cam explains 100 % of the score | grad-cam is zero everywhere"
    assert f"q1.png: support 1.00 ({said}) ->" in capsys.readouterr().out
    assert not np.load("out/q1.npz")["grad-cam"].any()
    methods = manifest()["queries"][0]["methods"]
    assert [methods[name]["flat"] for name in methods] == [True, False]
    overlay = np.asarray(Image.open("out/q1.grad-cam.png").convert("RGB")).astype(int)
    # Nothing is laid over the photograph.
    assert np.abs(overlay - np.asarray(Image.open("q1.png").convert("RGB"))).max() <= 1


def test_fam_with_a_foil_is_what_the_function_gives(explain: Explain, weights: Path) -> None:
    assert explain("q1.png", "q2.jpg", "--support", "birds", "--foil", "runner-up", "--target", "wren") == 0
    net = dataclasses.replace(create_model("squeezenet1_1", weights), size=64)
    files = [f"birds/{name}/{i}.png" for name in ("crow", "jay", "wren") for i in range(2)]
    queries, supports = (
        torch.stack([net.preprocess(read_image(path)) for path in paths]) for paths in (["q1.png", "q2.jpg"], files)
    )
    support = SupportSet(supports, ["crow", "crow", "jay", "jay", "wren", "wren"])
    why = explain_queries(net.model, queries, support, layer=net.layer, method="fam", foil="runner-up", target="wren")
    assert (why.attributions < 0).any()
    for i, name in enumerate(("q1", "q2")):
        found = np.load(f"out/{name}.npz")["fam.layer"]
        np.testing.assert_allclose(
            found, why.attributions[i, 0], rtol=1e-3, atol=1e-4 * float(why.attributions.abs().max())
        )


@pytest.mark.parametrize("target", ["wren", "2"])
def test_another_class_can_be_explained_by_name_or_number(target: str, explain: Explain) -> None:
    assert explain("q1.png", "--support", "birds/crow", "birds/jay", "birds/wren", "--target", target) == 0
    assert manifest()["queries"][0]["target"] == "wren"


def test_every_method_and_similarity_can_be_named(explain: Explain) -> None:
    methods = ["correspondence", "mean-activation", "grad-cam", "similarity-cam", "fam"]
    assert explain("q1.png", "--support", "birds", "--methods", ",".join(methods), "--similarity", "euclidean") == 0
    assert list(manifest()["queries"][0]["methods"]) == methods
    assert all(Path("out", f"q1.{method}.png").is_file() for method in methods)


def test_the_manifest_says_how_the_result_was_made(explain: Explain, weights: Path) -> None:
    assert explain("q1.png", "--support", "birds/jay", "--foil", "birds/wren", "--layer", "features.10") == 0
    content = manifest()
    assert content["model"] == "squeezenet1_1"
    assert content["layer"] == "features.10"
    assert content["weights"]["file"] == str(weights)
    assert len(content["weights"]["sha256"]) == 64
    assert content["similarity"] == "Cosine()"
    assert content["support_files"] == {"jay": ["birds/jay/0.png", "birds/jay/1.png"]}
    assert content["foil_files"] == {"wren": ["birds/wren/0.png", "birds/wren/1.png"]}
    assert content["preprocessing"]["size"] == 64
    assert content["queries"][0]["methods"]["fam"]["map_size"] == [64, 64]
    assert set(content["versions"]) == {"captum-fam", "captum", "torch", "python"}
    assert content["unreadable"] == []


def test_an_unreadable_query_is_named_and_the_others_are_done(
    explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.jpg").write_bytes(b"not an image")
    queries = ["q1.png", "broken.jpg", "gone.png", "q2.jpg", "broken.jpg"]
    assert explain(*queries, "--support", "birds/jay", "--batch-size", "1") == 1
    content = manifest()
    assert [query["name"] for query in content["queries"]] == ["q1", "q2"]
    assert [one["file"] for one in content["unreadable"]] == ["broken.jpg", "gone.png"]
    captured = capsys.readouterr()
    assert "broken.jpg: cannot be read" in captured.err
    assert "gone.png: no such file" in captured.err
    assert captured.out.endswith("2 explained, 2 unreadable: out\n")
    assert not list(Path("out").glob("broken*"))


def test_an_unreadable_support_is_named_and_left_out(explain: Explain) -> None:
    Path("birds/jay/2.png").write_bytes(b"")
    assert explain("q1.png", "--support", "birds/jay", "--out", "with") == 1
    assert explain("q1.png", "--support", "birds/jay/0.png", "birds/jay/1.png", "--out", "without") == 0
    assert [one["file"] for one in manifest("with")["unreadable"]] == ["birds/jay/2.png"]
    assert np.array_equal(np.load("with/q1.npz")["fam"], np.load("without/q1.npz")["fam"])


def test_a_class_of_which_nothing_can_be_read_stops_the_run(
    explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("birds/jay").iterdir():
        path.write_bytes(b"")
    assert explain("q1.png", "--support", "birds") == 2
    assert "no image of 'jay' could be read" in capsys.readouterr().err
    assert not Path("out").exists()


def test_queries_of_the_same_name_do_not_overwrite_each_other(explain: Explain) -> None:
    assert explain("birds/crow/", "birds/wren/0.png", "--support", "birds/jay") == 0
    assert {query["file"]: query["name"] for query in manifest()["queries"]} == {
        "birds/crow/0.png": "0",
        "birds/crow/1.png": "1",
        "birds/wren/0.png": "0-2",
    }


def test_batches_change_nothing(explain: Explain) -> None:
    for size in ("1", "3"):
        assert explain("q1.png", "q2.jpg", "birds/wren", "--support", "birds", "--batch-size", size, "--out", size) == 0
    for name in ("q1", "q2", "0", "1"):
        one, three = (np.load(f"{size}/{name}.npz")["fam"] for size in ("1", "3"))
        np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["q1.png", "--support", "nowhere"], "--support nowhere: no such file or folder"),
        (["q1.png", "--support", "birds/jay", "q2.jpg"], "--support: give .*images or folders"),
        (["q1.png", "--support", "empty"], "holds no images"),
        (["empty", "--support", "birds/jay"], "QUERY empty holds no images"),
        (["q1.png", "--support", "mixed"], "holds both images and folders"),
        (["q1.png", "--support", "birds", "empty"], "--support birds holds no images"),
        (["q1.png", "--support", "birds/jay", "other/jay"], "two folders have the same name"),
        (["q1.png", "--support", "birds/jay", "--foil", "others"], "needs supports of at least two classes"),
        (["q1.png", "--support", "birds", "--foil", "others", "q2.jpg"], "--foil others .*q2.jpg"),
        (["q1.png", "--support", "birds", "--foil", "nowhere"], "--foil nowhere: no such file"),
        (["q1.png", "--support", "birds", "--target", "wrem"], "--target wrem is none of the 3 classes .*such as wren"),
        (["q1.png", "--support", "birds", "--target", "3"], "--target 3 is none"),
        (["q1.png", "--support", "birds", "--similarity", "cosin"], "similarity must be one of cosine, dot"),
        (["q1.png", "--support", "birds", "--layer", "layer4"], "layer 'layer4' is no"),
        (["q1.png", "--support", "birds", "--out", "q2.jpg"], "q2.jpg"),
    ],
)
def test_options_that_cannot_be_followed_get_one_line_and_code_2(
    words: list[str], message: str, explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    shutil.copytree("birds/jay", "mixed/jay")
    shutil.copytree("birds/jay", "other/jay")
    shutil.copy("q1.png", "mixed")
    assert explain(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(f"captum-fam: error: .*{message}", error)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["explain", "q1.png"],
        ["explain", "q1.png", "--support", "birds", "--methods", "gradcam"],
        ["explain", "q1.png", "--support", "birds", "--size", "0"],
        ["evaluate", "retrieval", "--model", "conv4", "--data", "scenes:9", "--size", "0"],
        ["evaluate", "mosaic", "--model", "conv4", "--data", "scenes:9", "--cell", "0"],
        ["evaluate", "few-shot", "--model", "conv4", "--data", "scenes:9", "--batch-size", "0"],
        ["figure", "retrieval", "--model", "conv4", "--data", "scenes:9", "--batch-size", "0"],
        ["explain", "q1.png", "--support", "birds", "--batch-size", "0"],
        ["dance"],
    ],
    ids=" ".join,
)
def test_words_that_are_no_options_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_unknown_model_gets_the_name_that_was_meant(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "q1.png", "--support", "birds", "--model", "resnet5O"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.fixture
def conv4net(tmp_path: Path) -> Path:
    """A checkpoint of the paper's Conv4Net, as a training script would save it."""
    torch.manual_seed(5)
    path = tmp_path / "conv4net.pt"
    torch.save({"epoch": 3, "state_dict": Conv4Net().state_dict()}, path)
    return path


def test_a_network_of_the_paper_is_explained_as_it_was_trained(folder: Path, conv4net: Path) -> None:
    words = ["--model", "conv4net", "--weights", str(conv4net), "--device", "cpu"]
    assert main(["explain", "--out", "out", "q1.png", "--support", "birds/jay", *words]) == 0
    net = create_model("conv4net", conv4net)
    with torch.no_grad():
        query, *supports = (
            net.model(net.preprocess(Image.open(path))[None])
            for path in ("q1.png", "birds/jay/0.png", "birds/jay/1.png")
        )
    cosines = [torch.nn.functional.cosine_similarity(query, support) for support in supports]
    content = manifest()
    assert content["queries"][0]["scores"]["jay"] == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-5)
    assert content["queries"][0]["methods"]["fam"]["layer_size"] == [5, 5]
    assert (content["model"], content["layer"]) == ("conv4net", "features")
    assert content["weights"]["layout"] == "captum-fam"
    assert content["preprocessing"]["size"] == 84
    assert content["preprocessing"]["interpolation"] == "bicubic"


def test_a_network_is_explained_by_its_short_name(folder: Path, conv4net: Path) -> None:
    words = ["explain", "q1.png", "--support", "birds/jay", "--weights", str(conv4net), "--device", "cpu"]
    for name in ("conv4", "conv4net"):
        assert main([*words, "--model", name, "--out", name]) == 0
    assert np.array_equal(np.load("conv4/q1.npz")["fam"], np.load("conv4net/q1.npz")["fam"])


def test_a_network_decides_by_its_own_similarity_unless_told(
    folder: Path, conv4net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def euclidean(*arguments: Any, **options: Any) -> EmbeddingModel:
        net = create_model(*arguments, **options)
        return dataclasses.replace(net, similarity=options["similarity"] or "euclidean")

    monkeypatch.setattr("captum_fam.cli.loading.create_model", euclidean)
    words = ["explain", "q1.png", "--support", "birds/jay", "--model", "conv4net", "--weights", str(conv4net)]
    assert main([*words, "--out", "own"]) == main([*words, "--similarity", "cosine", "--out", "told"]) == 0
    assert manifest("own")["similarity"].startswith("Euclidean(")
    assert manifest("own")["queries"][0]["scores"]["jay"] < 0 < manifest("told")["queries"][0]["scores"]["jay"]
    assert manifest("told")["similarity"] == "Cosine()"


def test_a_network_of_the_paper_needs_a_file_of_its_weights(
    folder: Path, conv4net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", "q1.png", "--support", "birds"]
    assert main([*words, "--model", "conv4net"]) == 2
    assert "--model conv4net: give its weights as --weights FILE" in capsys.readouterr().err
    assert main([*words, "--model", "conv4"]) == 2
    assert "--model conv4: give its weights as --weights FILE" in capsys.readouterr().err
    assert main([*words, "--model", "conv4net", "--weights", "DEFAULT"]) == 2
    assert "conv4net has none that can be downloaded" in capsys.readouterr().err
    assert main([*words, "--model", "resnet12", "--weights", str(conv4net)]) == 2
    error = capsys.readouterr().err
    assert "do not fit ResNet12" in error
    assert error.count("\n") == 1


def test_a_head_with_an_l2_norm_is_part_of_the_explanation(folder: Path) -> None:
    torch.manual_seed(6)
    state = create_model("npid_resnet18").model.state_dict()
    state["head.bias"].zero_()  # its share of the score has no place in a map
    torch.save(state, "npid.pth")
    words = ["--model", "npid_resnet18", "--weights", "npid.pth", "--size", "96", "--device", "cpu"]
    assert (
        main(["explain", "--out", "out", "q1.png", "--support", "birds/jay", "--methods", "similarity-cam", *words])
        == 0
    )
    (query,) = manifest()["queries"]
    assert query["methods"]["similarity-cam"]["layer_size"] == [3, 3]
    assert abs(query["methods"]["similarity-cam"]["convergence_delta"]) < 1e-5


def test_a_model_of_timm_is_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(7)
    torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), "timm.pth")
    words = ["explain", "q1.png", "--support", "birds", "--weights", "timm.pth", "--size", "64", "--out", "out"]
    assert main([*words, "--model", "timm/mobilenetv3_small_050"]) == 0
    assert manifest()["model"] == "timm/mobilenetv3_small_050"
    assert manifest()["weights"]["layout"] == "timm"
    assert main([*words, "--model", "timm/mobilenetv3_smal_050"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_vision_transformer_is_explained_by_every_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    vit.heads = torch.nn.Identity()
    net = EmbeddingModel(
        "tiny_vit", vit, "encoder.layers.encoder_layer_1.ln_1", 64, False, (0, 0, 0), (1, 1, 1), TokenGrid()
    )
    monkeypatch.setattr("captum_fam.cli.loading.create_model", lambda *_, **__: net)
    words = ["explain", "q1.png", "--support", "birds", "--out", "out", "--device", "cpu", "--model", "tiny_vit"]
    assert main([*words, "--methods", "similarity-cam,correspondence,grad-cam"]) == 0
    arrays = np.load("out/q1.npz")
    assert arrays["similarity-cam.layer"].shape == arrays["grad-cam.layer"].shape == (4, 4)


def test_an_error_can_be_traced(explain: Explain, weights: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        main(["--traceback", "explain", "q1.png", "--support", "nowhere"])


def test_a_run_that_is_interrupted_leaves_whole_results_and_no_manifest(
    explain: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("q1.png", "q2.jpg", "--support", "birds/jay") == 0
    calls = []

    def second_time(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare_figure(*arguments)

    monkeypatch.setattr("captum_fam.cli.explain_files.compare_figure", second_time)
    assert explain("q2.jpg", "q1.png", "--support", "birds/wren") == 130
    assert not Path("out/manifest.json").exists()
    assert {path.suffix for path in Path("out").iterdir()} == {".png", ".npz", ""}
    assert "interrupted" in capsys.readouterr().err


def test_what_a_method_warns_of_is_said_in_one_line(
    explain: Explain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*arguments: Any) -> Any:
        warnings.warn("careful", stacklevel=1)
        return find_classes(*arguments)

    monkeypatch.setattr("captum_fam.cli.explain.find_classes", warn)
    assert explain("q1.png", "--support", "birds/jay") == 0
    assert "captum-fam: note: careful\n" in capsys.readouterr().err


def test_that_maps_explain_little_is_said_once_and_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    vit = models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    vit.heads = torch.nn.Identity()
    layer = "encoder.layers.encoder_layer_1.ln_1"
    net = EmbeddingModel("tiny_vit", vit, layer, 64, False, (0, 0, 0), (1, 1, 1), TokenGrid())
    monkeypatch.setattr("captum_fam.cli.loading.create_model", lambda *_, **__: net)
    words = ["explain", "q1.png", "q2.jpg", "birds/wren", "--support", "birds", "--out", "out", "--batch-size", "1"]
    assert main([*words, "--model", "tiny_vit", "--methods", "similarity-cam"]) == 0
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if "explains" in line]
    assert len(notes) == 1
    assert re.match(r"captum-fam: note: the map explains -?\d+ % of the score; other paths -?\d+ %", notes[0])
    assert ".py" not in captured.err
    lines = captured.out.splitlines()[:-1]
    accounts = [query["methods"]["similarity-cam"]["account"] for query in manifest()["queries"]]
    assert len(lines) == len(accounts) == 4
    for line, account in zip(lines, accounts, strict=True):
        assert "; other paths " in account
        assert f"(similarity-cam {account}) ->" in line


def test_files_are_one_class_and_folders_are_classes(folder: Path) -> None:
    files = [Path("q1.png"), Path("q2.jpg")]
    assert find_classes(files, "--support") == {"support": files}
    assert list(find_classes([Path("birds/jay")], "--support")) == ["jay"]
    assert list(find_classes([Path("birds")], "--support")) == ["crow", "jay", "wren"]
    assert list(find_classes([Path("birds/wren"), Path("birds/jay")], "--support")) == ["wren", "jay"]
    birds = {"birds/crow/0.png", "birds/crow/1.png"}
    assert {str(path) for path in find_classes([Path("birds")], "--support")["crow"]} == birds


def test_birds_of_cub_with_trained_weights(shared_folder: Path, tmp_path: Path) -> None:
    images = shared_folder / "data" / "cub50" / "images"
    trained = shared_folder / "weights" / "squeezenet1_0_imagenet.pth"
    if not images.is_dir() or not trained.is_file():
        pytest.skip("needs cub50 and the SqueezeNet weights in the shared data")
    cardinals = sorted(str(path) for path in (images / "017.Cardinal").iterdir())
    blackbirds = sorted(str(path) for path in (images / "010.Red_winged_Blackbird").iterdir())
    words = ["explain", cardinals[9], "--support", *cardinals[:5], "--foil", *blackbirds[:5], "--out", str(tmp_path)]
    words += ["--model", "squeezenet1_0", "--weights", str(trained), "--methods", "similarity-cam,grad-cam"]
    assert main(words) == 0
    content = manifest(str(tmp_path))
    (query,) = content["queries"]
    assert query["methods"]["similarity-cam"]["layer_size"] == [13, 13]
    assert query["scores"]["support"] > 0  # nearer to cardinals than to blackbirds
