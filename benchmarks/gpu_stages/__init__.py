"""The stages of ``benchmarks.gpu``: a file each, run in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of the run.

    Attributes:
        name: name of the stage, and of its JSON file.
        module: module with ``run(case, report)``.
        share: share of the time that is left, among the stages that are left.
        most: seconds at most.
    """

    name: str
    module: str
    share: float
    most: float


STAGES = tuple(
    Stage(name, f"benchmarks.gpu_stages.{module}", share, most)
    for name, module, share, most in (
        # What is most wanted comes first, because a lost machine takes the rest with it.
        ("cost", "cost", 3, 170),
        ("bank", "bank", 1, 45),
        ("tests", "cuda_tests", 2, 100),
        ("few-shot", "few_shot", 2.5, 120),
        ("moco", "moco", 2.5, 150),
        ("ranks", "one_rank", 1, 60),
    )
)
