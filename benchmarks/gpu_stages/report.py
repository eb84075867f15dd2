"""What a stage has found so far, as a JSON file that is whole at every moment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pieces import write_json


@dataclass(frozen=True)
class Case:
    """What a stage is told.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``.
        size: ``"full"``, or ``"small"`` for a rehearsal in seconds.
        folder: folder of the stage's own files.
        data_pack: folder that ``benchmarks.gpu pack`` has written; None for planted scenes only.
    """

    device: str
    size: str
    folder: str
    data_pack: str | None = None

    @property
    def is_small(self) -> bool:
        """Whether this is a rehearsal."""
        return self.size == "small"

    @property
    def cub(self) -> str:
        """The images to train on: packed CUB photographs, or planted scenes, which are drawn."""
        packed = Path(self.data_pack or ".") / "cub50"
        if self.data_pack and packed.is_dir() and not self.is_small:
            return str(packed)
        return f"scenes:{400 if self.is_small else 8000}"


class Report:
    """Rows and facts of a stage. Every change is written at once, so that a killed stage leaves what it had.

    Args:
        path: the JSON file.
        stage: name of the stage.
        budget: seconds for the stage.
        settings: size and device, by which a later run knows whether the stage is done.
    """

    def __init__(self, path: Path, stage: str, budget: float, settings: dict[str, Any]) -> None:
        self.path = path
        self._start = time.monotonic()
        self.content: dict[str, Any] = {
            "stage": stage,
            "state": "running",
            "budget_s": round(budget, 1),
            "seconds": 0.0,
            **settings,
            "facts": {},
            "rows": [],
        }
        self.write()

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; negative when it is used up."""
        return float(self.content["budget_s"] - (time.monotonic() - self._start))

    def stops_before(self, what: str, seconds: float = 0.0) -> bool:
        """Whether the time does not suffice for the next step; then the report says how far the stage came.

        Args:
            what: the step.
            seconds: what the step takes, as far as known. Default: 0.
        """
        if self.left >= seconds and self.left > 0:
            return False
        self.content.update(state="stopped", stopped_before=what)
        self.write()
        return True

    def row(self, **values: Any) -> None:
        """Add a row of the stage's table."""
        self.content["rows"].append(values)
        self.write()

    def fact(self, **values: Any) -> None:
        """Add facts that are no row."""
        self.content["facts"].update(values)
        self.write()

    def finish(self, **values: Any) -> None:
        """End the stage: ``done``, unless it has stopped or ``values`` has another state."""
        if self.content["state"] == "running":
            self.content["state"] = "done"
        self.content.update(values)
        self.write()

    def write(self) -> None:
        """Write the file in one step."""
        self.content["seconds"] = round(time.monotonic() - self._start, 2)
        write_json(self.path, self.content)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; an empty dictionary if there is none, or it is damaged.

    Args:
        path: the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
