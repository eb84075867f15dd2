"""What a method needs of a model and leaves in it, tried on a small network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO

import torch
from torch import Tensor, nn

from benchmarks.peers.changes import changes, look
from benchmarks.peers.question import Question, Row, Subject

COLUMNS = ("no_grad", "inference_mode", "frozen", "compiled", "in training mode", "left by a call", "left by an error")
SIDE = 48


def subject_of(seed: int = 0) -> Subject:
    """A small network with a batch norm, in eval mode.

    Args:
        seed: of its weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).eval()
    return Subject(model, model[4], model[2], (0.5,) * 3, (0.5,) * 3)


def question_for(row: Row, subject: Subject) -> Question:
    """One image, three classes of two supports, one class explained.

    Args:
        row: the method, whose contrast the question has.
        subject: the model.
    """
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1
    supports = torch.rand(3, 2, 3, SIDE, SIDE, generator=generator) * 2 - 1
    gallery = torch.rand(4, 3, SIDE, SIDE, generator=generator) * 2 - 1
    with torch.no_grad():
        embeddings = subject.model(supports.flatten(0, 1)).unflatten(0, (3, 2))
        return Question(image, supports, embeddings, subject.model(gallery), (1,), row.contrast)


def needs(row: Row) -> dict[str, str]:
    """What a method does in seven situations.

    Args:
        row: the method.

    Returns:
        A cell for each of :data:`COLUMNS`. ``"yes"``: the map is that of a plain call. Else the error, or what changed.
    """
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        plain = row.explain(subject := subject_of(), question_for(row, subject))

        def answer(change: Callable[[Subject], Subject], around: AbstractContextManager[object]) -> str:
            subject = subject_of()
            question = question_for(row, subject)
            subject = change(subject)
            try:
                with around:
                    found = row.explain(subject, question)
            except Exception as error:  # whatever a package raises is its answer
                return type(error).__name__
            return "yes" if _same(plain, found) else "another map"

        cells = [
            answer(_as_it_is, torch.no_grad()),
            answer(_as_it_is, torch.inference_mode()),
            answer(_frozen, nullcontext()),
            answer(_compiled, nullcontext()),
        ]
        torch._dynamo.reset()
        return dict(zip(COLUMNS, (*cells, *_left(row)), strict=True))


def _left(row: Row) -> Iterator[str]:
    """What a call changes: of a model in training mode, in eval mode, and when the supports do not fit the model."""
    for situation in ("training", "eval", "error"):
        subject = subject_of()
        question = question_for(row, subject)
        if situation == "training":
            subject.model.train()
        elif situation == "error":
            question = replace(question, supports=question.supports[..., :-1], support_images=_narrow(question))
        before = look(subject.model)
        failed = ""
        try:
            row.explain(subject, question)
        except Exception as error:
            failed = type(error).__name__
        found = changes(before, look(subject.model))
        if situation == "training":
            # Statistics of batch norms follow from the mode that the user chose.
            found = [change for change in found if change != "weights or buffers changed"]
        words = ", ".join(found) or "nothing"
        if situation == "error":
            yield words if failed else "no error"
        else:
            yield f"{failed}; {words}" if failed else words


def _narrow(question: Question) -> Tensor:
    """Images that no model of three channels takes, for methods that take the supports as images."""
    return question.support_images[:, :, :2]


def _as_it_is(subject: Subject) -> Subject:
    return subject


def _frozen(subject: Subject) -> Subject:
    subject.model.requires_grad_(False)
    return subject


def _compiled(subject: Subject) -> Subject:
    """The model by TorchDynamo, after passes with and without gradients; the eager backend needs no compiler."""
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, backend="eager")
    for has_gradient in (False, True):
        with torch.set_grad_enabled(has_gradient):
            compiled(torch.zeros(1, 3, SIDE, SIDE))
    return replace(subject, model=compiled)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-3 * float(first.abs().max()))
