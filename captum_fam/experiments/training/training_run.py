"""The folder of a training run: settings, log, checkpoints, and the state from which a killed run continues."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

from captum_fam._files import SETTINGS, check_same_settings, need, versions, write_all_or_nothing, write_json
from captum_fam._tensor_files import read_tensors
from captum_fam.embedding.ranks import Ranks

Precision = Literal["float32", "bfloat16", "float16"]
Row = dict[str, Any]


class Trained(NamedTuple):
    """A trained model with the log of its training.

    Attributes:
        model: the model with the weights of the best epoch, in eval mode.
        log: one row per epoch, as in ``log.csv``.
        best: row of the best epoch.
    """

    model: nn.Module
    log: list[Row]
    best: Row


_STATE = "state.pt"
_LOG = "log.csv"


class TrainingRun:
    """The folder of a run, which is written after each epoch; each file is written completely or not at all.

    ``run.json`` holds the settings, and ``log.csv`` one line per epoch. ``last.safetensors`` and ``best.safetensors``
    hold weights that ``create_model(name, path)`` reads; a ``.json`` file beside each holds the row of the log, the
    settings and the versions. ``tensorboard/`` holds the curves, if requested. ``state.pt`` holds everything else that
    a run needs to continue.

    Args:
        folder: folder of the run, which is created if it does not exist. If it holds a run with the same settings, this
            run continues.
        settings: everything on which the result depends, in types that JSON can hold.
        score: column of the log whose largest value makes an epoch the best epoch; None if the last epoch is the best.
        parts: objects with a state, by name: the model and its losses, the optimizer, the scaler.
        ranks: the processes that share the run, of which the first writes.
        tensorboard: also write the curves for TensorBoard. Default: False.

    Attributes:
        history: rows of the log.

    Raises:
        ValueError: if the folder holds a run with other settings, or a state that is broken or belongs to another run.
        ImportError: without safetensors, or without tensorboard if it is requested.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> run = TrainingRun("my-run", {"steps": 2}, "val", {"model": model}, Ranks())
        >>> for accuracy in (0.5, 0.25):
        ...     run.finish_epoch({"epoch": run.epoch, "val": accuracy}, {"": model.state_dict()})
        >>> run.finish({"": model})
        >>> run.best
        {'epoch': 0, 'val': 0.5}
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
        curves = need("torch.utils.tensorboard", extra="train", purpose="tensorboard=True") if tensorboard else None
        if ranks.is_first:
            check_same_settings(self.folder / SETTINGS, self.settings, "another training run")
        ranks.wait()
        if (self.folder / _STATE).is_file():
            self._load_state(self.folder / _STATE)
        self._curves: Any = None
        if curves is not None and ranks.is_first:
            self._curves = curves.SummaryWriter(self.folder / "tensorboard", purge_step=self.epoch)

    def _load_state(self, path: Path) -> None:
        """Continue from the state of an earlier process."""
        state = read_tensors(path, self._remedy)
        names = {"history", *self.parts}
        if not isinstance(state, dict) or state.keys() != names or not self._is_history(state["history"]):
            raise ValueError(f"{path} is no state of this training; {self._remedy}")
        self.history = state["history"]
        for name, part in self.parts.items():
            try:
                part.load_state_dict(state[name])
            except Exception as error:  # each kind of part fails in its own way
                raise ValueError(
                    f"{path} does not fit the {name} of this training ({error}); {self._remedy}"
                ) from error

    def _is_history(self, rows: Any) -> bool:
        """Whether something is the log of this training: a row for each epoch, with its number and its score."""
        columns = ["epoch", *([] if self.score is None else [self.score])]
        return isinstance(rows, list) and all(
            isinstance(row, dict)
            and all(isinstance(row.get(column), int | float) and math.isfinite(row[column]) for column in columns)
            and row["epoch"] == number
            for number, row in enumerate(rows)
        )

    @property
    def _remedy(self) -> str:
        return f"delete {self.folder} and train again, or choose another folder"

    @property
    def epoch(self) -> int:
        """Number of the next epoch, counted from zero."""
        return len(self.history)

    @property
    def best(self) -> Row:
        """Row of the best epoch so far, the first among equally good epochs."""
        if self.score is None:
            return self.history[-1]
        return max(self.history, key=lambda row: float(row[self.score or ""]))

    def finish_epoch(self, row: Row, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the files of an epoch.

        Args:
            row: row of the log, with the same columns in every epoch.
            weights: state dicts by the suffix of the names of their files, ``""`` for the network.
        """
        self.history.append(row)
        if not self.ranks.is_first:
            return
        names = ["last", "best"] if self.best is row else ["last"]
        # The state is written last. If the process dies before, the resumed run repeats the epoch.
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
            modules: modules by the suffix of the names of their files.

        Raises:
            ValueError: if a file of weights is missing or broken, or does not fit its module.
        """
        if self._curves is not None:
            self._curves.close()
        self.ranks.wait()
        for suffix, module in modules.items():
            path = self.folder / f"best{suffix}.safetensors"
            try:
                module.load_state_dict(self._safetensors.load_file(path))
            except Exception as error:  # a missing or broken file, or tensors of another model
                raise ValueError(f"{path} cannot be loaded ({error}); {self._remedy}") from error
            module.eval()


def autocast(device: torch.device | str, precision: Precision) -> AbstractContextManager[Any]:
    """A context for mixed precision on a device.

    Args:
        device: the device.
        precision: ``"bfloat16"`` or ``"float16"``; ``"float32"`` for no mixed precision.

    Returns:
        The context.

    Raises:
        ValueError: for an unknown precision, or ``"float16"`` on a CPU, for which torch scales no gradients.

    Example:
        >>> with autocast("cpu", "bfloat16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    device_type = torch.device(device).type
    if precision == "float32":
        return nullcontext()
    if precision not in ("bfloat16", "float16"):
        raise ValueError(f'precision must be "float32", "bfloat16" or "float16", got {precision!r}')
    if precision == "float16" and device_type == "cpu":
        raise ValueError('precision "float16" needs a GPU; use "bfloat16" or "float32" on a CPU')
    return torch.autocast(device_type, getattr(torch, precision))


@contextmanager
def random_numbers_restored(device: torch.device | str) -> Iterator[None]:
    """A context after which the random numbers of torch continue as if nothing had been drawn or seeded inside.

    Args:
        device: device whose random numbers are restored, beside the random numbers of the CPU.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with random_numbers_restored("cpu"):
        ...     inside = torch.rand(1)
        >>> bool(inside == torch.rand(1))
        True
    """
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        yield


def distribute(module: nn.Module, ranks: Ranks) -> nn.Module:
    """A module whose gradients are averaged over the processes.

    Args:
        module: module on the device of this process.
        ranks: the processes.

    Returns:
        The module in ``DistributedDataParallel``; the module itself if there is only one process.
    """
    if ranks.size == 1:
        return module
    on_gpu = torch.device(ranks.device).type == "cuda"
    return nn.parallel.DistributedDataParallel(module, device_ids=[ranks.device] if on_gpu else None)


def gather_batch(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all processes, in their order; those of other processes have no gradients.

    Args:
        rows: the rows of this process, as many as every process has, ``(B, ...)``.
        ranks: the processes.

    Returns:
        ``(ranks.size * B, ...)``; the rows themselves if there is only one process.

    Example:
        >>> gather_batch(torch.arange(3), Ranks())
        tensor([0, 1, 2])
    """
    if ranks.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(ranks.size)]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)
