"""Explanations in any training loop."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

from captum_fam.callbacks.panel import ExplanationPanel, PanelReading
from captum_fam.callbacks.training_state import check_whole
from captum_fam.callbacks.writers import tag_of, takes_images, write_figures
from captum_fam.embedding.ranks import current_ranks


def log_similarity_explanations(
    model: Any, panel: ExplanationPanel, writer: Any, step: int, *, every: int = 1
) -> PanelReading | None:
    """Look at a model in a training loop, and write k-NN accuracy, mean score and coverage, and the maps as images.

    The model may be in training mode, see :class:`ExplanationPanel`. Of several processes of PyTorch's process group,
    the first looks and writes. The others go on at once, and wait for it where they next exchange gradients.

    Args:
        model: as for a call of the panel.
        panel: the panel.
        writer: a ``SummaryWriter`` of TensorBoard; a folder, which gets ``STEP-QUERY.png`` per query and a line in
            ``panel.csv``; any logger with ``log_image(key, images, step)`` and ``log_metrics(numbers, step)``; or a
            list of these.
        step: the step, such as the number of finished epochs.
        every: how many steps lie between two looks; other steps are passed over. Default: 1.

    Returns:
        What the panel says; None in a step that is passed over, and in other processes than the first.

    Raises:
        TypeError: for another panel or writer, or a step or ``every`` that is no whole number.
        ValueError: for a step below 0, ``every`` below 1, or a sharded model.
        ValueError, TypeError: as for a call of the panel.
        OSError: if files cannot be written.

    Example:
        >>> panel = ExplanationPanel((queries, labels), (images, labels), shown=2, layer="layer4")
        >>> for epoch in range(1, 5):
        ...     reading = log_similarity_explanations(model, panel, "panel", epoch, every=2)
        >>> sorted(path.name for path in Path("panel").glob("*.png"))
        ['0002-query-0.png', '0002-query-7.png', '0004-query-0.png', '0004-query-7.png']
    """
    if not isinstance(panel, ExplanationPanel):
        raise TypeError(f"panel must be an ExplanationPanel, got {type(panel).__name__}")
    counts: tuple[object, ...] = (step, every)
    if not all(isinstance(count, Integral) for count in counts):
        raise TypeError(f"step and every must be whole numbers, got step={step!r} and every={every!r}")
    if step < 0 or every < 1:
        raise ValueError(f"step must be at least 0 and every at least 1, got step={step} and every={every}")
    writers = writer if isinstance(writer, list | tuple) else [writer]
    for one in writers:
        if not takes_images(one):
            raise TypeError(
                "writer must be a SummaryWriter, a folder, a logger with log_image, or a list of these, got "
                f"{type(one).__name__}"
            )
    check_whole(model)
    if step % every or not current_ranks().is_first:
        return None
    reading = panel(model)
    for one in writers:
        write_figures(reading, one, step)
        numbers = {tag_of(reading, name): value for name, value in reading.numbers.items()}
        if hasattr(one, "add_scalar"):
            for tag, value in numbers.items():
                one.add_scalar(tag, value, step)
        elif not isinstance(one, str | Path):
            one.log_metrics(numbers, step)
    return reading
