"""Writing results so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A scratch folder whose files move to ``folder`` when the block ends, and vanish when it raises.

    A manifest moves last, after the one of an earlier run is gone: where it stands, the files it lists are there.
    Files of the same name are replaced, all others left alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder, because a move is atomic within one file system only.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".captum-fam-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        if files and files[-1].name == MANIFEST:
            (folder / MANIFEST).unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)


def claim(path: Path, settings: Mapping[str, Any], holds: str) -> None:
    """Write the settings of a run where its folder has none yet, so that it is resumed with the same ones only.

    Raises:
        ValueError: if the folder ``holds`` (in words) a run of other settings.
    """
    if not path.exists():
        with staged(path.parent) as scratch:
            (scratch / path.name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if differing:
        said = "; ".join(f"{key} was {found.get(key)!r}, now {settings.get(key)!r}" for key in differing)
        raise ValueError(f"{path.parent} holds {holds} ({said}); choose another folder")
