"""The code of docs/training.md runs from top to bottom, given what its reader has."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.trained_nets import SmallNet, labeled

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="needs Lightning")
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.chdir(tmp_path)

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = SmallNet()

        def training_step(self, batch: Any, _: int) -> Any:
            images, labels = batch
            return nn.functional.cross_entropy(self.backbone(images)[:, :3], labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], 0.1)

    names: dict[str, Any] = {
        "model": SmallNet(),
        "train_one_epoch": lambda model: None,
        "epochs": 2,
        "module": Module(),
        "val_set": TensorDataset(*labeled(6, seed=3)),
        "bank_set": TensorDataset(*labeled(12, seed=4)),
        "train_loader": DataLoader(TensorDataset(*labeled(8, seed=5)), batch_size=4),
    }
    names["val_images"], names["val_labels"] = labeled(6, seed=3)
    names["bank_images"], names["bank_labels"] = labeled(12, seed=4)
    assert len(BLOCKS) == 3
    for code in BLOCKS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(code, "docs/training.md", "exec"), names)
    assert [path for path in Path("runs", "first").iterdir() if "tfevents" in path.name]
    assert len(list(Path().glob("query-*.png"))) == 4
    assert names["reading"].numbers.keys() == {"knn_accuracy", "panel_score", "panel_coverage"}
    assert list(Path("runs").rglob("*.ckpt"))
