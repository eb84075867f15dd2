"""The folder of a training run: settings, log, checkpoints, and what it takes to go on after a kill."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from captum_fam._files import check_same_settings, need, versions, write_all_or_nothing, write_json
from captum_fam.experiments.distributed import Ranks

Precision = Literal["float32", "bfloat16", "float16"]
Row = dict[str, Any]


class Trained(NamedTuple):
    """A trained model, and how its training went.

    Attributes:
        model: with the weights of the best epoch, in eval mode.
        log: one row per epoch, as in ``log.csv``.
        best: the row of the best epoch.
    """

    model: nn.Module
    log: list[Row]
    best: Row


_SETTINGS = "run.json"
_STATE = "state.pt"
_LOG = "log.csv"


class TrainingRun:
    """The folder of a run, written after each epoch, each file whole or not at all.

    ``run.json`` holds the settings, ``log.csv`` one line per epoch, ``last.safetensors`` and ``best.safetensors``
    weights that ``create_model(name, path)`` reads, each with a ``.json`` that says what they are, ``tensorboard/`` the
    curves if asked for, and ``state.pt`` the rest that a run needs to go on.

    Args:
        folder: made where it is missing; where it holds a run of the same settings, that run goes on.
        settings: what the result depends on, as JSON can hold it.
        score: the column of the log whose largest value makes the best epoch; None: the last one is best.
        parts: what has a state, by name: the model and its losses, optimizer, scaler.
        ranks: the processes that share the run; the first one writes.
        tensorboard: write the curves for TensorBoard too. Default: False.

    Attributes:
        history: the rows of the log.

    Raises:
        ValueError: if the folder has a run of other settings.
        ImportError: without safetensors, or without tensorboard where asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any],
        score: str | None,
        parts: Mapping[str, Any],
        ranks: Ranks,
        tensorboard: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.score = score
        self.parts = parts
        self.ranks = ranks
        self.history: list[Row] = []
        self._safetensors = need("safetensors.torch", extra="train", purpose="training")
        if ranks.is_first:
            check_same_settings(self.folder / _SETTINGS, self.settings, "another training run")
        ranks.wait()
        if (self.folder / _STATE).is_file():
            state = torch.load(self.folder / _STATE, map_location="cpu", weights_only=True)
            self.history = state.pop("history")
            for name, part in parts.items():
                part.load_state_dict(state[name])
        self._curves: Any = None
        if tensorboard and ranks.is_first:
            curves = need("torch.utils.tensorboard", extra="train", purpose="tensorboard=True")
            self._curves = curves.SummaryWriter(self.folder / "tensorboard", purge_step=self.epoch)

    @property
    def epoch(self) -> int:
        """The next epoch, counted from zero."""
        return len(self.history)

    @property
    def best(self) -> Row:
        """The row of the best epoch so far, the first one of equals."""
        if self.score is None:
            return self.history[-1]
        return max(self.history, key=lambda row: float(row[self.score or ""]))

    def finish_epoch(self, row: Row, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write an epoch.

        Args:
            row: of the log, the same columns in every epoch.
            weights: state dicts by the suffix of their files' names, ``""`` for the network.
        """
        self.history.append(row)
        if not self.ranks.is_first:
            return
        names = ["last", "best"] if self.best is row else ["last"]
        # The state moves last: where the process dies before, the epoch is done again.
        with write_all_or_nothing(self.folder) as scratch:
            for name in names:
                for suffix, state in weights.items():
                    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
                    self._safetensors.save_file(tensors, scratch / f"{name}{suffix}.safetensors")
                write_json(scratch / f"{name}.json", {**row, "settings": self.settings, "versions": versions()})
            with (scratch / _LOG).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerows(self.history)
            states = {name: part.state_dict() for name, part in self.parts.items()}
            torch.save({"history": self.history, **states}, scratch / _STATE)
        if self._curves is not None:
            for key, value in row.items():
                if key != "epoch":
                    self._curves.add_scalar(key, value, row["epoch"])
            self._curves.flush()

    def finish(self, modules: Mapping[str, nn.Module]) -> None:
        """Load the best weights, in eval mode, and close the curves.

        Args:
            modules: by the suffix of their files' names.
        """
        if self._curves is not None:
            self._curves.close()
        self.ranks.wait()
        for suffix, module in modules.items():
            module.load_state_dict(self._safetensors.load_file(self.folder / f"best{suffix}.safetensors"))
            module.eval()


def autocast(device: torch.device | str, precision: Precision) -> AbstractContextManager[Any]:
    """Mixed precision on a device; float32 is none.

    Raises:
        ValueError: for an unknown precision, or float16 on a CPU, which has no scaler for its gradients.
    """
    kind = torch.device(device).type
    if precision == "float32":
        return nullcontext()
    if precision not in ("bfloat16", "float16"):
        raise ValueError(f'precision must be "float32", "bfloat16" or "float16", got {precision!r}')
    if precision == "float16" and kind == "cpu":
        raise ValueError('precision "float16" needs a GPU; "bfloat16" and "float32" do on a CPU')
    return torch.autocast(kind, getattr(torch, precision))


@contextmanager
def random_numbers_restored(device: torch.device | str) -> Iterator[None]:
    """Whatever is drawn and seeded inside, the random numbers of torch outside go on as if nothing had been."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        yield


def distribute(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module whose gradients the processes average; itself where there is one process."""
    if ranks.size == 1:
        return module
    on_gpu = torch.device(ranks.device).type == "cuda"
    return nn.parallel.DistributedDataParallel(module, device_ids=[ranks.device] if on_gpu else None)
