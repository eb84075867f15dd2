"""The callback in trainings by Lightning, of both of its packages."""

from __future__ import annotations

import csv
import inspect
import pickle
import random
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_fam.callbacks import SimilarityExplanationCallback
from tests.callbacks.trained_nets import Flipped, SmallNet, check_same_state, random_states, small_panel, training_state

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
Made = tuple[Any, Any]


@pytest.fixture(params=PACKAGES)
def either(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the packages of Lightning."""
    module: ModuleType = pytest.importorskip(request.param, reason="needs Lightning")
    return module


@pytest.fixture
def pl() -> ModuleType:
    """The package of the extra."""
    module: ModuleType = pytest.importorskip("lightning.pytorch", reason="needs Lightning")
    return module


def module_of(pl: ModuleType) -> Any:
    """A LightningModule with a backbone and a projection head, whose forward gives the projection."""

    class Contrastive(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = SmallNet()
            self.projection_head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            projection: Tensor = self.projection_head(self.backbone(x))
            return projection

        def training_step(self, batch: Any, _: int) -> Tensor:
            images, labels = batch
            loss = nn.functional.cross_entropy(self(images)[:, :3], labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], 0.1, momentum=0.9)

    torch.manual_seed(4)
    return Contrastive()


def fit(pl: ModuleType, folder: Path, *callbacks: Any, epochs: int = 3, module: Any = None, **options: Any) -> Made:
    """Train with random transforms, shuffling and dropout; returns the trainer and the module."""
    module = module_of(pl) if module is None else module
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    options = {"logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(num_workers|LeafSpec|lightning).*")
        trainer.fit(module, DataLoader(Flipped(24, seed=1), batch_size=8, shuffle=True))
    return trainer, module


def callback_of(folder: Path | None = None, **options: Any) -> SimilarityExplanationCallback:
    return SimilarityExplanationCallback(small_panel(layer="backbone.features"), folder=folder, **options)


def test_it_is_a_callback_of_the_package_of_the_trainer(either: ModuleType) -> None:
    callback = callback_of()
    assert isinstance(callback, either.Callback)
    assert isinstance(callback, SimilarityExplanationCallback)
    again = pickle.loads(pickle.dumps(callback_of(every_n_epochs=4, embed="backbone")))
    assert isinstance(again, either.Callback)
    assert (again.every_n_epochs, again.embed) == (4, "backbone")


def test_a_subclass_is_a_callback_too(either: ModuleType) -> None:
    callback = Subclass(small_panel())
    assert isinstance(callback, either.Callback)
    assert callback.every_n_epochs == 1
    assert type(pickle.loads(pickle.dumps(callback))) is type(callback)


class Subclass(SimilarityExplanationCallback):
    """A callback of a user's."""


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", *PACKAGES):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        "captum_fam.callbacks.lightning_callback._PACKAGES", ("no_lightning.pytorch", "no_pytorch_lightning")
    )
    with pytest.raises(ModuleNotFoundError, match=r"SimilarityExplanationCallback needs .*captum-fam\[lightning\]"):
        callback_of()


def test_of_the_installed_packages_the_imported_ones_are_taken(
    monkeypatch: pytest.MonkeyPatch, either: ModuleType
) -> None:
    (other,) = set(PACKAGES) - {either.__name__}
    monkeypatch.delitem(sys.modules, other, raising=False)
    assert [base.__module__.partition(".")[0] for base in type(callback_of()).__mro__[2:3]] == [
        either.__name__.partition(".")[0]
    ]
    monkeypatch.delitem(sys.modules, either.__name__)
    assert type(callback_of()).__mro__[2].__name__ == "Callback"


def test_figures_come_before_the_training_and_after_every_n_th_epoch(either: ModuleType, tmp_path: Path) -> None:
    fit(either, tmp_path, callback_of(tmp_path / "maps", every_n_epochs=2), epochs=5)
    pictures = sorted(path.name for path in (tmp_path / "maps").glob("*.png"))
    assert pictures == [f"{epoch:04d}-query-{one}.png" for epoch in (0, 2, 4) for one in (0, 4)]
    with (tmp_path / "maps" / "panel.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "2", "4"]


def test_the_look_before_the_training_can_be_left_out(pl: ModuleType, tmp_path: Path) -> None:
    fit(pl, tmp_path, callback_of(tmp_path / "maps", at_start=False), epochs=1)
    assert {path.name[:4] for path in (tmp_path / "maps").glob("*.png")} == {"0001"}


def test_the_accuracy_is_a_metric_that_checkpoints_can_follow(either: ModuleType, tmp_path: Path) -> None:
    checkpoint = either.callbacks.ModelCheckpoint(tmp_path / "best", monitor="knn_accuracy", mode="max")
    trainer, module = fit(
        either, tmp_path, callback_of(tmp_path / "maps"), checkpoint, epochs=2, enable_checkpointing=True
    )
    module.eval()
    expected = small_panel(layer="backbone.features")(module).numbers
    logged = {name: float(trainer.callback_metrics[name]) for name in expected}
    assert logged == pytest.approx(expected, rel=1e-5)
    with (tmp_path / "maps" / "panel.csv").open(newline="") as file:
        best = max(float(row["knn_accuracy"]) for row in csv.DictReader(file) if row["step"] != "0")
    assert float(checkpoint.best_model_score) == pytest.approx(best)


def test_a_training_with_the_callback_ends_with_the_same_bits(pl: ModuleType, tmp_path: Path) -> None:
    _, plain = fit(pl, tmp_path / "plain", epochs=2)
    states = random_states()
    projection = SimilarityExplanationCallback(small_panel(shown=1, layer=None), folder=tmp_path / "projection")
    backbone = SimilarityExplanationCallback(
        small_panel(shown=1, layer=None), folder=tmp_path / "backbone", embed=lambda module: module.backbone
    )
    _, looked_at = fit(pl, tmp_path / "looks", projection, backbone, epochs=2)
    assert len(list(tmp_path.rglob("*.png"))) == 6
    for name, value in plain.state_dict().items():
        assert torch.equal(value, looked_at.state_dict()[name]), name
    assert all(map(torch.equal, states, random_states()))


def test_modes_gradients_and_buffers_are_as_they_were(pl: ModuleType, tmp_path: Path) -> None:
    class Before(pl.Callback):  # type: ignore[name-defined,misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.backbone.features[1].eval()
            for parameter in pl_module.parameters():
                parameter.grad = torch.ones_like(parameter)
            self.state = training_state(pl_module)

    class After(pl.Callback):  # type: ignore[name-defined,misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            check_same_state(before.state, training_state(pl_module))
            self.has_run = True

    before, after = Before(), After()
    fit(pl, tmp_path, before, callback_of(tmp_path / "maps"), after, epochs=1)
    assert after.has_run


@pytest.mark.parametrize(
    ("embed", "layer", "size"),
    [
        (None, "backbone.features", 4),
        ("backbone", "features", 5),
        (lambda module: module.backbone, "features", 5),
        (lambda module: nn.Sequential(module.backbone, nn.Flatten()), "0.features", 5),
    ],
)
def test_which_embedding_is_explained_can_be_said(embed: Any, layer: str, size: int, pl: ModuleType) -> None:
    module = module_of(pl)
    callback = SimilarityExplanationCallback(small_panel(layer=layer), embed=embed)
    model = callback._model(module)
    assert model(torch.rand(2, 3, 14, 10)).shape == (2, size)
    assert callback.panel(model).explanation.about["layer"] == layer


def test_an_embedding_that_is_not_there_is_named_before_the_training(pl: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attribute 'trunk', its modules are backbone, projection_head"):
        fit(pl, tmp_path, callback_of(tmp_path, embed="trunk"))


def test_tensorboard_gets_images_at_the_steps_of_the_trainer(pl: ModuleType, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit(pl, tmp_path, callback_of(every_n_epochs=2), epochs=4, logger=logger)
    found = events.EventAccumulator(logger.log_dir)
    found.Reload()
    assert [image.step for image in found.Images("maps/query-0")] == [0, 6, 12]
    assert [one.step for one in found.Scalars("knn_accuracy")] == [0, 5, 11]


def test_the_folder_of_a_csv_logger_gets_the_pictures(pl: ModuleType, tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(classifier|explains|num_workers|lightning|FAM|fam).*")
        fit(pl, tmp_path, callback_of(), epochs=1, logger=logger)
    maps = Path(logger.log_dir, "maps")
    assert len(list(maps.glob("*.png"))) == 4
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        accuracies = [row["knn_accuracy"] for row in csv.DictReader(file) if row["knn_accuracy"]]
    with (maps / "panel.csv").open(newline="") as file:
        expected = [float(row["knn_accuracy"]) for row in csv.DictReader(file)]
    assert [float(one) for one in accuracies] == pytest.approx(expected, rel=1e-5)


def test_that_a_logger_takes_no_images_is_said_once(pl: ModuleType, tmp_path: Path) -> None:
    class Numbers(pl.loggers.Logger):  # type: ignore[name-defined,misc]
        name, version = "numbers", 0

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            seen.update(metrics)

    seen: dict[str, float] = {}
    for logger, words in ((Numbers(), "Numbers takes no images"), (False, "a trainer without a logger takes no")):
        with pytest.warns(UserWarning, match=words) as caught:
            fit(pl, tmp_path, callback_of(), logger=logger)
        assert [words in str(one.message) for one in caught].count(True) == 1
    assert "knn_accuracy" in seen


def test_a_logger_of_images_gets_them_as_that_of_weights_and_biases_takes_them(pl: ModuleType, tmp_path: Path) -> None:
    written: list[tuple[Any, ...]] = []

    class Images(pl.loggers.Logger):  # type: ignore[name-defined,misc]
        name, version = "images", 0

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

        def log_image(self, key: str, images: list[Any], step: int | None = None, **_: Any) -> None:
            written.append((key, len(images), step))

    fit(pl, tmp_path, callback_of(), epochs=1, logger=Images())
    assert written == [(f"maps/query-{one}", 1, step) for step in (0, 3) for one in (0, 4)]
    theirs = inspect.signature(pl.loggers.WandbLogger.log_image).parameters
    assert list(theirs)[:4] == list(inspect.signature(Images.log_image).parameters)[:4]


def test_another_rank_writes_nothing(pl: ModuleType, tmp_path: Path) -> None:
    class Other(pl.Callback):  # type: ignore[name-defined,misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            type(trainer).is_global_zero = property(lambda _: False)

    whole = pl.Trainer.is_global_zero
    try:
        trainer, _ = fit(pl, tmp_path, Other(), callback_of(tmp_path / "maps"), epochs=1)
    finally:
        pl.Trainer.is_global_zero = whole
    assert not (tmp_path / "maps").exists()
    assert "knn_accuracy" not in trainer.callback_metrics


def test_a_look_that_fails_can_be_passed_over(pl: ModuleType, tmp_path: Path) -> None:
    class Broken(pl.Callback):  # type: ignore[name-defined,misc]
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                look.panel.layer = "no.layer"

    look = callback_of(tmp_path / "maps", on_error="warn")
    with pytest.warns(UserWarning, match="could not be read after 2 epochs: ValueError: .*no.layer"):
        _, module = fit(pl, tmp_path, look, Broken(), epochs=2)
    assert module.training
    assert {path.name[:4] for path in (tmp_path / "maps").glob("*.png")} == {"0000", "0001"}
    look = callback_of(tmp_path / "maps")
    with pytest.raises(ValueError, match=r"no\.layer"):
        fit(pl, tmp_path, look, Broken(), epochs=2)


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"on_error": "ignore"}])
def test_options_are_checked(options: dict[str, Any], pl: ModuleType) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        callback_of(**options)


def test_a_fast_run_of_the_developer_writes_nothing_and_works(pl: ModuleType, tmp_path: Path) -> None:
    fit(pl, tmp_path, callback_of(), fast_dev_run=2)
    assert not list(tmp_path.rglob("*.png"))


def test_half_precision_and_weight_averaging(pl: ModuleType, tmp_path: Path) -> None:
    averaged = module_of(pl)
    averaged.ema = torch.optim.swa_utils.AveragedModel(averaged.backbone)
    cases: dict[str, dict[str, Any]] = {
        "mixed": {"precision": "bf16-mixed"},
        "true": {"precision": "bf16-true", "module": module_of(pl).bfloat16()},
        "ema": {"module": averaged},
    }
    for name, options in cases.items():
        panel = small_panel(shown=1, layer="module.features" if name == "ema" else "backbone.features")
        embed = "ema" if name == "ema" else None
        look = SimilarityExplanationCallback(panel, embed=embed, folder=tmp_path / name, at_start=False)
        fit(pl, tmp_path, look, epochs=1, **options)
        assert [path.name for path in (tmp_path / name).glob("*.png")] == ["0001-query-0.png"]


def test_a_module_of_lightly(pl: ModuleType, tmp_path: Path) -> None:
    """A training of SimCLR as lightly's own examples write it."""
    heads = pytest.importorskip("lightly.models.modules", reason="needs lightly")
    losses = pytest.importorskip("lightly.loss", reason="needs lightly")

    class SimCLR(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(SmallNet().features, nn.AdaptiveAvgPool2d(1))
            self.projection_head = heads.SimCLRProjectionHead(6, 32, 8)
            self.criterion = losses.NTXentLoss()

        def forward(self, x: Tensor) -> Any:
            return self.projection_head(self.backbone(x).flatten(start_dim=1))

        def training_step(self, batch: Any, _: int) -> Any:
            images, _ = batch
            return self.criterion(self(images), self(images.flip(3)))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.05)

    projection = SimilarityExplanationCallback(small_panel(shown=1, layer=None), folder=tmp_path / "projection")
    backbone = SimilarityExplanationCallback(
        small_panel(shown=1, layer=None), folder=tmp_path / "backbone", embed="backbone"
    )
    fit(pl, tmp_path, projection, backbone, epochs=1, module=SimCLR())
    assert projection.panel.layer is not None
    assert projection.panel.layer.startswith("backbone.")
    for name in ("projection", "backbone"):
        with (tmp_path / name / "panel.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == ["0", "1"]
        assert all(0 <= float(row["knn_accuracy"]) <= 1 for row in rows)
    # The backbone ends with the pooled activations: all of the score lies in the image.
    assert [float(row["panel_coverage"]) for row in rows] == pytest.approx([1, 1], rel=1e-4)
