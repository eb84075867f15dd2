"""A batch of a data pipeline, in any form, gets what explain() gives."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam import Explanation, MemoryBank, SupportSet, explain
from captum_fam.explanation import BatchExplainer
from captum_fam.preprocessing import Preprocessing
from tests.explanation.by_hand import as_input, embeddings, picture, small_model

RESULTS = ["map", "score", "predicted", "target", "coverage"]
OPTIONS: dict[str, Any] = {"method": "similarity-cam"}


@pytest.fixture
def photos() -> list[Image.Image]:
    return [picture(seed) for seed in range(5)]


@pytest.fixture
def support() -> SupportSet:
    birds = [picture(seed) for seed in range(60, 66)]
    return SupportSet(embeddings(birds).float(), ["wren", "jay", "wren", "jay", "crow", "crow"])


@pytest.fixture
def expected(photos: list[Image.Image], support: SupportSet) -> Explanation:
    return explain(small_model(), photos, support, **OPTIONS)


def assert_equal(batch: Any, why: Explanation) -> None:
    np.testing.assert_allclose(np.array(list(batch["map"])), why.attributions[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.array(list(batch["score"])), why.target_scores, rtol=1e-5)
    np.testing.assert_allclose(np.array(list(batch["coverage"])), why.coverage, rtol=1e-3, atol=1e-5)
    assert list(batch["predicted"]) == [why.class_names[index] for index in why.predicted]
    assert list(batch["target"]) == [why.class_names[index] for index in why.target]


def _inputs(photos: list[Image.Image]) -> torch.Tensor:
    return torch.stack([as_input(photo) for photo in photos]).float()


def _objects(photos: list[Image.Image]) -> np.ndarray[Any, Any]:
    cells = np.empty(len(photos), object)
    cells[:] = [np.asarray(photo) for photo in photos]
    return cells


COLUMNS: dict[str, Callable[[list[Image.Image]], Any]] = {
    "pixels": lambda photos: np.stack([np.asarray(photo) for photo in photos]),
    "arrays of pixels": lambda photos: [np.asarray(photo) for photo in photos],
    "objects": _objects,
    "PIL": list,
    "nested lists of pixels": lambda photos: [np.asarray(photo).tolist() for photo in photos],
    "floats": lambda photos: _inputs(photos).numpy(),
    "nested lists of floats": lambda photos: _inputs(photos).tolist(),
    "tensor": _inputs,
}


@pytest.mark.parametrize("form", COLUMNS)
def test_a_mapping_keeps_its_other_columns(
    form: str, photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    given = {"id": np.arange(5), "image": COLUMNS[form](photos), "city": list("abcde")}
    batch = BatchExplainer(small_model(), support, **OPTIONS)(given)
    assert list(batch) == ["id", "city", *RESULTS]
    assert batch["id"].tolist() == [0, 1, 2, 3, 4]
    assert batch["city"] == list("abcde")
    assert batch["map"].dtype == batch["score"].dtype == batch["coverage"].dtype == np.float32
    assert batch["map"].shape == (5, 9, 5)
    assert list(given) == ["id", "image", "city"]
    assert_equal(batch, expected)


def test_paths_are_pictures_also_the_same_path_twice(
    photos: list[Image.Image], support: SupportSet, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(5)]
    for photo, path in zip(photos, paths, strict=True):
        photo.save(path)
    batch = BatchExplainer(small_model(), support, **OPTIONS)({"image": [*paths, paths[1]]})
    assert_equal(batch, explain(small_model(), [*photos, photos[1]], support, **OPTIONS))


@pytest.mark.parametrize("form", ["PIL", "arrays of pixels", "nested lists of floats"])
def test_a_data_frame_a_series_and_an_iterator(
    form: str, photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    pandas = pytest.importorskip("pandas")
    explain_batch = BatchExplainer(small_model(), support, **OPTIONS)
    frame = pandas.DataFrame({"id": range(5), "image": COLUMNS[form](photos)}, index=list("vwxyz"))
    made = explain_batch(frame)
    assert isinstance(made, pandas.DataFrame)
    assert list(made.columns) == ["id", *RESULTS]
    assert list(made.index) == list("vwxyz")
    assert_equal(made, expected)
    of_series = explain_batch(pandas.Series(COLUMNS[form](photos), name="anything"))
    assert list(of_series.columns) == RESULTS
    assert_equal(of_series, expected)
    parts = explain_batch(iter([frame[:2], frame[2:]]))
    assert isinstance(parts, Iterator)
    assert_equal(pandas.concat(parts), expected)


def test_cells_can_be_written_by_arrow(photos: list[Image.Image], support: SupportSet, expected: Explanation) -> None:
    """Spark and Ray hand data frames on through Arrow."""
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    made = BatchExplainer(small_model(), support, **OPTIONS)(pandas.DataFrame({"image": photos}))
    table = pyarrow.Table.from_pandas(made)
    assert_equal(table.to_pydict(), expected)


def test_the_explained_class_can_be_a_column(photos: list[Image.Image], support: SupportSet) -> None:
    targets = ["jay", "crow", "wren", "jay", "jay"]
    explain_batch = BatchExplainer(small_model(), support, column="photo", target_column="label", **OPTIONS)
    batch = explain_batch({"photo": photos, "label": np.array(targets)})
    assert list(batch) == ["label", *RESULTS]
    assert batch["target"] == targets
    assert_equal(batch, explain(small_model(), photos, support, target=targets, **OPTIONS))


def test_a_method_without_an_account_has_no_coverage(photos: list[Image.Image], support: SupportSet) -> None:
    batch = BatchExplainer(small_model(), support, method="mean-activation")({"image": photos})
    assert np.isnan(batch["coverage"]).all()


@pytest.mark.parametrize("form", ["mapping", "frame"])
def test_maps_of_further_methods_are_further_columns(
    form: str, photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    given: Any = {"image": [*photos, None]}
    if form == "frame":
        given = pytest.importorskip("pandas").DataFrame(given)
    methods = ["similarity-cam", "fam", "shapley"]
    with pytest.warns(UserWarning, match="1 of 6 images were skipped"):
        batch = BatchExplainer(small_model(), support, method=methods, on_error="skip")(given)
    further = ["map_fam", "map_shapley", "coverage_fam", "coverage_shapley"]
    assert list(batch) == [*RESULTS, *further, "error"]
    assert_equal({name: list(batch[name])[:5] for name in RESULTS}, expected)
    fam = explain(small_model(), photos, support, method="fam")
    np.testing.assert_allclose(np.array(list(batch["map_fam"]))[:5], fam.attributions[:, 0], rtol=1e-4, atol=1e-6)
    shapley = explain(small_model(), photos, support, method="shapley")
    np.testing.assert_allclose(list(batch["coverage_shapley"])[:5], shapley.coverage, rtol=1e-3, atol=1e-5)
    assert np.isnan(np.array(list(batch["coverage_fam"]), float)).all()
    assert np.array(list(batch["map_fam"])[5]).shape == (9, 5)
    assert np.isnan(np.array(list(batch["map_fam"])[5])).all()
    with pytest.raises(ValueError, match="names of the results: 'map_fam'; rename"):
        BatchExplainer(small_model(), support, method=methods)({"image": photos, "map_fam": photos})


def test_the_exact_map_is_the_default_and_stands_alone(
    photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    batch = BatchExplainer(small_model(), support)({"image": photos})
    assert list(batch) == RESULTS
    assert_equal(batch, expected)
    with pytest.raises(ValueError, match="method is None, expected a method"):
        BatchExplainer(small_model(), support, method=None)


def test_a_copy_in_another_process_explains_alike(photos: list[Image.Image], expected: Explanation) -> None:
    birds = [picture(seed) for seed in range(60, 66)]
    labels = ["wren", "jay", "wren", "jay", "crow", "crow"]
    bank = MemoryBank(embeddings(birds).float(), labels, k=4)
    for support in (SupportSet(embeddings(birds).float(), labels), bank, dict(zip(labels[1:], birds[1:], strict=True))):
        explain_batch = BatchExplainer(small_model(), support, **OPTIONS)
        before = pickle.loads(pickle.dumps(explain_batch))
        made = explain_batch({"image": photos})
        size = io.BytesIO()
        pickle.dump(explain_batch, size)
        after = pickle.loads(size.getvalue())
        for copy in (before, after):
            again = copy({"image": photos})
            assert all(np.array_equal(again[name], made[name], equal_nan=name == "coverage") for name in RESULTS)
    assert_equal(
        BatchExplainer(small_model(), SupportSet(embeddings(birds).float(), labels), **OPTIONS)({"image": photos}),
        expected,
    )


def test_a_model_is_given_by_name(photos: list[Image.Image]) -> None:
    explain_batch = BatchExplainer("demo", {"a": photos[:2], "b": photos[2:4]}, **OPTIONS)
    batch = pickle.loads(pickle.dumps(explain_batch))({"image": [picture(9), picture(10)]})
    why = explain("demo", [picture(9), picture(10)], {"a": photos[:2], "b": photos[2:4]}, **OPTIONS)
    assert_equal(batch, why)


def test_the_support_is_embedded_once(photos: list[Image.Image]) -> None:
    net = small_model()
    sizes: list[int] = []
    net.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    explain_batch = BatchExplainer(net, {"a": [picture(30), picture(31), picture(32)]}, method="fam")
    for start in (0, 2):
        explain_batch({"image": photos[start : start + 2]})
    assert sizes == [3, 2, 2]


def test_a_batch_without_images_has_no_results(photos: list[Image.Image], support: SupportSet) -> None:
    explain_batch = BatchExplainer(small_model(), support, **OPTIONS)
    for images in ([], np.zeros((0, 33, 47, 3), np.uint8)):
        batch = explain_batch({"id": [], "image": images})
        assert [(name, len(column)) for name, column in batch.items()] == [(name, 0) for name in ("id", *RESULTS)]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": photos})
    none = explain_batch(frame[:0])
    assert list(none.columns) == RESULTS
    assert len(none) == 0


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"photo": []}, KeyError, "no column 'image', only 'photo'; pass column="),
        ([1, 2], TypeError, "batch must be .*got list"),
        (np.zeros((2, 3, 4, 4)), TypeError, "batch must be .*got ndarray"),
        ({"image": ["missing.jpg"]}, ValueError, "missing.jpg: no such file"),
        ({"image": [np.zeros((9, 9), np.uint8), None]}, ValueError, "row 1 of column 'image' has no image; .*on_error"),
        ({"image": [{"bytes": None, "path": None}]}, ValueError, "row 0 of column 'image' has no image"),
        ({"image": [b"no image"]}, ValueError, "image: cannot be read as an image"),
        (
            {"image": [], "score": [], "id": [], "map": []},
            ValueError,
            "names of the results: 'score', 'map'; .*prefix=",
        ),
        ({"image": [[1, 2], [3, 4]]}, TypeError, "inputs must be .*got a list of ndarray"),
    ],
)
def test_what_is_no_batch_is_refused(batch: Any, error: type[Exception], message: str, support: SupportSet) -> None:
    with pytest.raises(error, match=message):
        BatchExplainer(small_model(), support)(batch)


def encoded(photo: Image.Image) -> bytes:
    file = io.BytesIO()
    photo.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    "cell",
    [
        encoded,
        lambda photo: bytearray(encoded(photo)),
        lambda photo: {"bytes": encoded(photo), "path": "elsewhere.png"},
        lambda photo: {"bytes": encoded(photo)},
    ],
    ids=["bytes", "bytearray", "HF", "HF without path"],
)
def test_encoded_images_are_pictures(
    cell: Callable[[Image.Image], Any], photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    batch = BatchExplainer(small_model(), support, **OPTIONS)({"image": [cell(photo) for photo in photos]})
    assert_equal(batch, expected)


def test_a_path_of_an_image_that_is_not_decoded(photos: list[Image.Image], support: SupportSet, tmp_path: Path) -> None:
    photos[1].save(tmp_path / "a.png")
    cell = {"bytes": None, "path": str(tmp_path / "a.png")}
    batch = BatchExplainer(small_model(), support, **OPTIONS)({"image": [cell]})
    assert_equal(batch, explain(small_model(), photos[1], support, **OPTIONS))


def test_columns_of_the_names_of_results_are_kept_by_a_prefix(
    photos: list[Image.Image], support: SupportSet, expected: Explanation
) -> None:
    given = {"image": photos, "score": [1, 2, 3, 4, 5], "target": list("abcde"), "error": [0] * 5}
    batch = BatchExplainer(small_model(), support, prefix="why_", **OPTIONS)(given)
    assert list(batch) == ["score", "target", "error", *(f"why_{name}" for name in RESULTS)]
    assert batch["score"] == [1, 2, 3, 4, 5]
    assert_equal({name: batch[f"why_{name}"] for name in RESULTS}, expected)
    with pytest.raises(ValueError, match="names of the results: 'score', 'target'; rename"):
        BatchExplainer(small_model(), support, **OPTIONS)(given)
    # Images in a column of such a name are taken out, and the column "error" is free.
    assert list(BatchExplainer(small_model(), support, column="map")({"map": photos, "error": [0] * 5})) == [
        "error",
        *RESULTS,
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("form", ["mapping", "frame"])
def test_rows_without_a_readable_image_are_skipped(
    form: str, batch_size: int, photos: list[Image.Image], support: SupportSet, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    cells: list[Any] = [photos[0], None, str(tmp_path / "broken.jpg"), photos[1], {"bytes": b"", "path": None}]
    given: Any = {"image": cells, "label": ["jay", "owl", "owl", "wren", "owl"], "id": list(range(5))}
    if form == "frame":
        given = pytest.importorskip("pandas").DataFrame(given)
    explain_batch = BatchExplainer(
        small_model(), support, target_column="label", on_error="skip", batch_size=batch_size, **OPTIONS
    )
    with pytest.warns(UserWarning, match="3 of 5 images were skipped; the first: row 1 .*no image"):
        batch = explain_batch(given)
    assert list(batch) == ["label", "id", *RESULTS, "error"]
    assert list(batch["id"]) == [0, 1, 2, 3, 4]
    kept = {name: [batch[name][row] for row in (0, 3)] for name in RESULTS}
    assert_equal(kept, explain(small_model(), photos[:2], support, target=["jay", "wren"], **OPTIONS))
    for row, reason in ((1, "row 1 of column 'image' has no image"), (2, "row 2: .*broken.jpg"), (4, "row 4: image")):
        assert np.isnan(np.array(batch["map"][row])).all()
        assert np.array(batch["map"][row]).shape == (9, 5)
        assert np.isnan(batch["score"][row])
        assert np.isnan(batch["coverage"][row])
        assert batch["predicted"][row] is batch["target"][row] is None
        assert re.match(reason, batch["error"][row])
    assert batch["error"][0] is batch["error"][3] is None


def test_a_batch_that_cannot_be_read_at_all_has_maps_of_the_size_of_the_last_batch(
    photos: list[Image.Image], support: SupportSet
) -> None:
    explain_batch = BatchExplainer(small_model(), support, on_error="skip", **OPTIONS)
    with pytest.warns(UserWarning, match="2 of 2 images were skipped"):
        assert explain_batch({"image": [None, b""]})["map"].shape == (2, 0, 0)
    explain_batch({"image": photos[:1]})
    with pytest.warns(UserWarning, match="2 of 2 images were skipped"):
        assert explain_batch({"image": [None, b""]})["map"].shape == (2, 9, 5)


def test_inputs_with_missing_rows(photos: list[Image.Image], support: SupportSet) -> None:
    inputs = [*_inputs(photos[:2]).tolist(), None]
    with pytest.warns(UserWarning, match="1 of 3 images were skipped"):
        batch = BatchExplainer(small_model(), support, on_error="skip", **OPTIONS)({"image": inputs})
    expected = explain(small_model(), photos[:2], support, **OPTIONS)
    assert_equal({name: batch[name][:2] for name in RESULTS}, expected)


def test_a_frame_keeps_the_types_of_its_columns_also_without_rows(
    photos: list[Image.Image], support: SupportSet
) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {
            "id": np.arange(5, dtype=np.int32),
            "day": pandas.to_datetime(["2024-01-01"] * 5),
            "kind": pandas.Categorical(list("ababa")),
            "image": photos,
        },
        index=[7, 7, 8, 9, 9],
    )
    explain_batch = BatchExplainer(small_model(), support, **OPTIONS)
    whole, none = explain_batch(frame), explain_batch(frame[:0])
    for made in (whole, none):
        assert made.dtypes.tolist() == [
            *frame.dtypes[["id", "day", "kind"]].tolist(),
            *(np.dtype(one) for one in ("O", "f8", "O", "O", "f8")),
        ]
    assert list(whole.index) == [7, 7, 8, 9, 9]
    assert list(frame.columns) == ["id", "day", "kind", "image"]
    # Spark converts each batch to the types of the whole result.
    types = {
        "map": pyarrow.list_(pyarrow.list_(pyarrow.float32())),
        "score": pyarrow.float32(),
        "predicted": pyarrow.string(),
    }
    for made in (whole, none):
        for name, kind in types.items():
            assert len(pyarrow.Array.from_pandas(made[name], type=kind)) == len(made)


def test_what_every_process_would_refuse_is_refused_at_once(support: SupportSet) -> None:
    with pytest.raises(ValueError, match=r"method .*similarity-cam"):
        BatchExplainer("no model of this name", support, method="gradcam")
    for method in ("fam", "similarity-cam", "random"):
        with pytest.raises(
            TypeError, match=rf"neither BatchExplainer\(\) nor the method {method} has an argument 'batchsize'"
        ):
            BatchExplainer(small_model(), support, method=method, batchsize=3)
    with pytest.raises(ValueError, match='on_error must be "raise" or "skip"'):
        BatchExplainer(small_model(), support, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smooth must be an odd whole number of at least 1, got 2"):
        BatchExplainer(small_model(), support, smooth=2)
    BatchExplainer(small_model(), support, method="fam", normalization="auto", foil="others", batch_size=3)
    with pytest.raises(KeyError, match="no column 'label', only 'image', 'id'; pass target_column="):
        BatchExplainer(small_model(), support, target_column="label")({"image": [picture(0)], "id": [1]})


def test_maps_of_different_sizes_are_refused_also_in_batches_of_one(support: SupportSet) -> None:
    keep = Preprocessing(size=24, resize="keep")
    photos = [picture(0, 30, 40), picture(1, 40, 30)]
    for size in (1, 32):
        with pytest.raises(ValueError, match='another resize than "keep"'):
            BatchExplainer(small_model(), support, preprocess=keep, batch_size=size)({"image": photos})
