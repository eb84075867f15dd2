"""Stage ``cost``: one `attribute` call of ResNet-50 against the bare pass of the same batch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.gpu_stages.report import Case, Report
from benchmarks.gpu_stages.timing import measure
from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

SUPPORTS = 5
METHODS = (
    "LayerFAM",
    "LayerSimilarityCAM",
    "LayerGradCam(SimilarityToSupport)",
    "captum LayerGradCam, wrapper by hand",
    "torchcam GradCAM",
)
# By name: bfloat16 autocast, channels last, compiled.
MODES = {
    "float32": (False, False, False),
    "bfloat16": (True, False, False),
    "bfloat16, channels last": (True, True, False),
    "float32, channels last": (False, True, False),
    "bfloat16, channels last, compiled": (True, True, True),
}


@dataclass(frozen=True)
class Setting:
    """A batch size and a mode."""

    batch: int
    mode: str


class ByHand(nn.Module):
    """The mean cosine to the supports as a module of one score per image: what is written without a library."""

    def __init__(self, model: nn.Module, supports: Tensor) -> None:
        super().__init__()
        self.model = model
        self.supports = supports

    def forward(self, x: Tensor) -> Tensor:
        """The scores, ``(B, 1)``."""
        embedding = normalize(self.model(x), dim=-1)
        return (embedding @ normalize(self.supports, dim=-1).to(embedding.dtype).T).mean(-1, keepdim=True)


def settings(small: bool) -> Iterator[Setting]:
    """The settings, with those first that matter most: a stage that stops has the rest only."""
    batches = (2,) if small else (64, 256, 16, 1024)
    for mode in (*MODES,)[:: 4 if small else 1]:
        # Compiling takes half a minute for each shape.
        for batch in batches if "compiled" not in mode else batches[:1]:
            yield Setting(batch, mode)


def run(case: Case, report: Report) -> None:
    """Time every method in every setting; what fails, such as for memory, is a row with its error.

    Args:
        case: what the stage is told.
        report: the report of the stage.
    """
    side = 32 if case.is_small else 224
    report.fact(network="resnet18" if case.is_small else "resnet50", side=side, supports=SUPPORTS)
    longest = 0.0
    for setting in settings(case.is_small):
        what = f"batch {setting.batch}, {setting.mode}"
        if report.stops_before(what, 0.5 * longest):
            return
        start = time.monotonic()
        try:
            _measure_setting(setting, case, side, report)
        except Exception as error:  # one setting may fail, and the others are measured
            report.row(
                batch=setting.batch, mode=setting.mode, method="", error=f"{type(error).__name__}: {error}"[:500]
            )
        longest = max(longest, time.monotonic() - start)
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()


def _measure_setting(setting: Setting, case: Case, side: int, report: Report) -> None:
    half, last, compiled = MODES[setting.mode]
    torch.manual_seed(0)
    model = (torchvision.models.resnet18 if case.is_small else torchvision.models.resnet50)().to(case.device).eval()
    width, model.fc = model.fc.in_features, nn.Identity()
    x = torch.rand(setting.batch, 3, side, side, device=case.device)
    if last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if compiled:
        # Piece by piece: the hooks sit on layer4, whose blocks are compiled, and which is not compiled itself.
        for piece in (model.layer1, model.layer2, model.layer3, *model.layer4):
            piece.compile(backend="eager" if case.is_small else "inductor")
    supports = torch.rand(SUPPORTS, width, device=case.device)

    def context() -> AbstractContextManager[object]:
        return torch.autocast(case.device, torch.bfloat16) if half else nullcontext()

    def bare() -> object:
        with torch.no_grad(), context():
            return model(x)

    repetitions, seconds = (3, 0.2) if case.is_small else (7, 1.5)
    floor = measure(bare, case.device, repetitions, seconds)
    common = {"batch": setting.batch, "mode": setting.mode}
    report.row(**common, method="bare pass", **vars(floor), ratio=1.0, images_per_s=1000 * setting.batch / floor.ms)
    for method in METHODS:
        if report.stops_before(f"batch {setting.batch}, {setting.mode}, {method}"):
            return
        clean = _nothing
        try:
            call, clean = _call(method, model, x, supports)

            def run_call(call: Callable[[], object] = call) -> object:
                with context():
                    return call()

            timing = measure(run_call, case.device, repetitions, seconds)
            row = {**vars(timing), "ratio": timing.ms / floor.ms, "images_per_s": 1000 * setting.batch / timing.ms}
        except Exception as error:  # out of memory, or a mode that a method does not know
            row = {"error": f"{type(error).__name__}: {error}"[:500]}
            if case.device == "cuda":
                torch.cuda.empty_cache()
        finally:
            clean()
        report.row(**common, method=method, **row)


def _nothing() -> None:
    """What there is to clean up behind a method that leaves nothing."""


def _call(
    method: str, model: nn.Module, x: Tensor, supports: Tensor
) -> tuple[Callable[[], object], Callable[[], None]]:
    """The call to time, and what removes its hooks."""
    layer = model.get_submodule("layer4")
    support = SupportSet(supports, torch.zeros(len(supports), dtype=torch.int64, device=supports.device))
    if method == "LayerFAM":
        fam = LayerFAM(model, layer)
        return lambda: fam.attribute(x, support=support, target=0), _nothing
    if method == "LayerSimilarityCAM":
        cam = LayerSimilarityCAM(model, layer)
        return lambda: cam.attribute(x, support=support, target=0), _nothing
    if method == "LayerGradCam(SimilarityToSupport)":
        ours = LayerGradCam(SimilarityToSupport(model, support), layer)
        return lambda: ours.attribute(x, target=0), _nothing
    if method == "captum LayerGradCam, wrapper by hand":
        theirs = LayerGradCam(ByHand(model, supports), layer)
        return lambda: theirs.attribute(x, target=0), _nothing
    from torchcam.methods import GradCAM

    wrapped = ByHand(model, supports)
    extractor = GradCAM(wrapped, "model.layer4")
    return lambda: extractor(0, wrapped(x)), extractor.remove_hooks
