"""Explanations in the training of Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_fam._files import need
from captum_fam._warnings import warn_user
from captum_fam.callbacks.panel import ExplanationPanel
from captum_fam.callbacks.training_state import check_whole, training_paused
from captum_fam.callbacks.writers import tag_of, write_figures

if TYPE_CHECKING:  # for type checkers the callback is one of Lightning's
    from lightning.pytorch import Callback as _Base
else:
    _Base = object

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class SimilarityExplanationCallback(_Base):
    """Every n epochs of a training by Lightning: k-NN accuracy, and the maps of a fixed panel of images.

    ``knn_accuracy`` is logged as any metric, so that ``ModelCheckpoint(monitor="knn_accuracy")`` keeps the best model
    (in training by one process: others do not know the number). The maps go to every logger of the trainer that takes
    images: ``TensorBoardLogger``, ``WandbLogger``, and as PNG files into ``maps`` in the folder of a ``CSVLogger``. For
    other loggers a warning says once that they get none.

    The look leaves the training as it was: training flags, buffers such as the statistics of batch norms, gradients,
    and random numbers. A training with the callback ends with the same weights as one without. Of several processes,
    the first looks; the others go on, and wait for it where they next exchange gradients.

    The callback belongs to ``lightning`` or to ``pytorch_lightning``, whichever the program has imported.

    Args:
        panel: the panel.
        embed: which part of the ``LightningModule`` is explained: the dotted name of an attribute, such as
            ``"backbone"``; or a function that gets the ``LightningModule`` and returns a module, or a function from
            images to embeddings (the layer of the panel is then a module). Default: None, its ``forward``.
        every_n_epochs: how many epochs lie between two looks. Default: 1.
        at_start: whether to look before the first epoch too. That shows what the training changes, and a mistake in the
            panel shows before hours of training. Default: True.
        folder: a folder that gets the figures and a table in any case, named by the number of finished epochs. Default:
            None, loggers only.
        on_error: ``"raise"``, or ``"warn"`` and go on with the training, for a look that fails. The look before the
            first epoch raises in any case. Default: ``"raise"``.

    Raises:
        ModuleNotFoundError: if Lightning is not installed; the message names the extra.
        TypeError: for something that is no panel, or ``every_n_epochs`` that is no whole number.
        ValueError: for ``every_n_epochs`` below 1, or another ``on_error``.

    Example:
        >>> panel = ExplanationPanel((queries, labels), (images, labels), layer="backbone.layer4")
        >>> callback = SimilarityExplanationCallback(panel, every_n_epochs=10)  # doctest: +SKIP
        >>> Trainer(max_epochs=100, callbacks=[callback])  # doctest: +SKIP
    """

    def __new__(cls, *_: Any, **__: Any) -> SimilarityExplanationCallback:
        """An instance of a class that is a callback of the Lightning that the program uses, too."""
        own: Any = cls
        made: SimilarityExplanationCallback = object.__new__(_with_bases(own, _callback_classes()))
        return made

    def __init__(
        self,
        panel: ExplanationPanel,
        *,
        embed: str | Callable[[Any], Any] | None = None,
        every_n_epochs: int = 1,
        at_start: bool = True,
        folder: str | Path | None = None,
        on_error: str = "raise",
    ) -> None:
        if not isinstance(panel, ExplanationPanel):
            raise TypeError(f"panel must be an ExplanationPanel, got {type(panel).__name__}")
        if not isinstance(every_n_epochs, int):
            raise TypeError(f"every_n_epochs must be a whole number, got {every_n_epochs!r}")
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        if on_error not in ("raise", "warn"):
            raise ValueError(f'on_error must be "raise" or "warn", got {on_error!r}')
        self.panel = panel
        self.embed = embed
        self.every_n_epochs = every_n_epochs
        self.at_start = at_start
        self.folder = folder
        self.on_error = on_error

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot be explained, say which loggers get no images, and look for the first time."""
        check_whole(getattr(trainer.strategy, "model", pl_module))
        model = self._model(pl_module)
        if not trainer.is_global_zero:
            return
        silent = [type(logger).__name__ for logger in trainer.loggers if _image_writer(logger) is None]
        if self.folder is None and (silent or not trainer.loggers):
            names = f"{', '.join(silent)} takes" if silent else "a trainer without a logger takes"
            warn_user(f"{names} no images, so that no maps are written there; pass folder= to write them as files", 1)
        if self.at_start:
            numbers = self._look(trainer, pl_module, model, trainer.current_epoch)
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look after every n-th epoch."""
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs or not trainer.is_global_zero:
            return
        try:
            numbers = self._look(trainer, pl_module, self._model(pl_module), epochs)
        except Exception as error:
            if self.on_error == "raise":
                raise
            warn_user(f"the panel could not be read after {epochs} epochs: {type(error).__name__}: {error}", 1)
            return
        # Only the first process knows the numbers, and none waits to exchange them.
        pl_module.log_dict(numbers, on_epoch=True, rank_zero_only=trainer.world_size > 1, batch_size=1)

    def _look(self, trainer: Any, pl_module: Any, model: Any, epochs: int) -> dict[str, float]:
        """Read the panel, and write its figures; returns its numbers by their tags."""
        with training_paused(pl_module):
            reading = self.panel(model)
        for logger in trainer.loggers:
            writer = _image_writer(logger)
            if writer is not None:
                write_figures(reading, writer, epochs if isinstance(writer, Path) else trainer.global_step)
        if self.folder is not None:
            write_figures(reading, self.folder, epochs)
        return {tag_of(reading, name): value for name, value in reading.numbers.items()}

    def _model(self, pl_module: Any) -> Any:
        """The model that is explained."""
        if self.embed is None:
            return pl_module
        if callable(self.embed):
            return self.embed(pl_module)
        try:
            return attrgetter(self.embed)(pl_module)
        except AttributeError as error:
            modules = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(
                f"embed: {type(pl_module).__name__} has no attribute {self.embed!r}, its modules are {modules}"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle does not find the class of an instance by its name, because it is made while the program runs.
        return _restored, (type(self).__mro__[1], vars(self))


def _callback_classes() -> tuple[type, ...]:
    """The callback classes of the packages of Lightning that the program has imported; else of one that is installed.

    A program may have imported both, as lightly does. Their classes differ, and their trainers take their own only.
    """
    imported = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    if not imported:
        installed = (name for name in _PACKAGES if find_spec(name.partition(".")[0]) is not None)
        name = next(installed, _PACKAGES[0])
        imported = [need(name, extra="lightning", purpose="SimilarityExplanationCallback")]
    return tuple(module.Callback for module in imported)


@cache
def _with_bases(own: Any, bases: tuple[type, ...]) -> Any:
    """A class that is the given class and all of the bases."""
    return type(own.__name__, (own, *bases), {"__module__": own.__module__, "__doc__": own.__doc__})


def _restored(own: Any, state: dict[str, Any]) -> SimilarityExplanationCallback:
    callback: SimilarityExplanationCallback = own.__new__(own)
    vars(callback).update(state)
    return callback


def _image_writer(logger: Any) -> Any:
    """What takes the images of a logger of Lightning; None if nothing does."""
    experiment = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):
        return experiment
    if hasattr(logger, "log_image"):
        return logger
    log_dir = getattr(logger, "log_dir", None)
    return None if log_dir is None else Path(log_dir, "maps")
