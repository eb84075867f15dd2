"""Writes docs/benchmarks/gpu.md from the JSON files of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_stages import STAGES
from benchmarks.gpu_stages.report import read_json

_INTRODUCTION = """# On a GPU

One command, at most eight minutes on one GPU; nothing is downloaded.

```
python -m benchmarks.gpu pack                     # on any machine: photographs and the list of wheels, to runs/gpu-pack
python -m benchmarks.gpu --data-pack runs/gpu-pack --out runs/gpu
python -m benchmarks.gpu page runs/gpu            # this page, from the files of the run
```

`pack` writes JPEG files of the shared photographs (at most 50 MiB, in a folder that git ignores) and `wheels.txt`, the
packages that a machine with torch and torchvision needs beside them
(`pip download --no-deps -r runs/gpu-pack/wheels.txt -d WHEELS` there,
`pip install --no-index --no-deps --find-links WHEELS -r runs/gpu-pack/wheels.txt` here). The run first names the
packages that are missing. Without a pack, planted scenes are drawn for the trainings.

Every stage is a process of its own with a time budget. The file `STAGE.json` is whole at every moment: a stage that is
over its budget stops by itself and says how far it came, a stage that fails leaves its traceback, and the next stage
runs. The same command again runs only what is not finished. `--stages cost,bank` chooses stages, `--minutes` the time
for all of them, and `--size small` rehearses every stage on the CPU, as the suite does.

- `cost`: `attribute` on ResNet-50 at 224 x 224 with five supports: LayerFAM, LayerSimilarityCAM, Captum's LayerGradCam
  on `SimilarityToSupport` and on a wrapper written by hand, torchcam's GradCAM. Batches of 16 to 1,024; float32,
  bfloat16 autocast, channels last, compiled. Time by CUDA events (median of at most seven calls), peak of memory, and
  the ratio to the bare pass of the same batch.
- `bank`: `MemoryBank.classify` with 1,280,000 rows of 128 features and k = 200, beside the product of matrices, and the
  product with the selection of k.
- `tests`: the tests marked `cuda`.
- `few-shot`: ResNet-12 and ResNet-18, trained on episodes for a fixed time.
- `moco`: `captum-fam train contrastive moco` for a fixed time.
- `ranks`: one process of torchrun with nccl: values exchanged, averaged gradients, and evaluations of the network that
  `moco` has trained.
"""
_COLUMNS = {
    "cost": ("batch", "mode", "method", "ms", "ratio", "images_per_s", "peak_mib", "error"),
    "tests": ("test", "state", "message"),
}


def write_page(runs: Path, path: Path) -> None:
    """Write the page.

    Args:
        runs: folder of a run; without results on a GPU the page says that there are none.
        path: the page.
    """
    lines = [_INTRODUCTION]
    found = read_json(runs / "environment.json")
    reports = {stage.name: read_json(runs / f"{stage.name}.json") for stage in STAGES}
    reports = {
        name: report for name, report in reports.items() if report.get("device") == "cuda" and report.get("rows")
    }
    if not reports or not found.get("cards"):
        lines += [
            "## Results",
            "",
            "No GPU has run this yet: there are no results. The suite rehearses it on the CPU.",
            "",
        ]
    else:
        lines += ["## Machine", "", *_machine(found), ""]
        for name, report in reports.items():
            lines += [f"## {name}", "", *_stage(name, report), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    print(f"written to {path}")


def summary(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of the stages: how each ended.

    Args:
        reports: content of the JSON files, by stage.
    """
    rows = [
        {
            "stage": name,
            "state": report.get("state", "–"),
            "seconds": report.get("seconds"),
            "rows": len(report.get("rows", ())),
            "note": report.get("error") or report.get("stopped_before", ""),
        }
        for name, report in reports.items()
    ]
    return _table(rows, ("stage", "state", "seconds", "rows", "note"))


def _machine(found: Mapping[str, Any]) -> list[str]:
    versions = {name: number for name, number in found.get("versions", {}).items() if number}
    smi = found.get("nvidia_smi")
    lines = [f"- {', '.join(found['cards'])}; CUDA {found.get('cuda')}, cuDNN {found.get('cudnn')}"]
    if isinstance(smi, dict):
        lines.append("- nvidia-smi: " + ", ".join(f"{name} {value}" for name, value in smi.items()))
    lines.append(f"- TF32: {found.get('tf32')}")
    lines.append(
        f"- Python {found.get('python')}: " + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    return lines


def _stage(name: str, report: Mapping[str, Any]) -> list[str]:
    state = f"{report['state']} after {report['seconds']:.0f} of {report['budget_s']:.0f} seconds"
    if report.get("stopped_before"):
        state += f", before: {report['stopped_before']}"
    if report.get("error"):
        state += f": `{report['error']}`"
    facts = {key: value for key, value in report.get("facts", {}).items() if key != "output"}
    lines = [f"{state[0].upper()}{state[1:]}.", ""]
    lines += [", ".join(f"{key}: {_cell(value)}" for key, value in facts.items()), ""] if facts else []
    rows = report["rows"]
    if name == "tests":  # those that passed are counted above
        rows = [row for row in rows if row["state"] != "passed"]
    return [*lines, *_table(rows, _COLUMNS.get(name))] if rows else lines


def _table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> list[str]:
    wanted = list(columns or dict.fromkeys(key for row in rows for key in row))
    wanted = [column for column in wanted if any(row.get(column) not in (None, "") for row in rows)]
    lines = [f"| {' | '.join(wanted)} |", f"|{'---|' * len(wanted)}"]
    return [*lines, *(f"| {' | '.join(_cell(row.get(column)) for column in wanted)} |" for row in rows)]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return " ".join(str(value).replace("|", "\\|").split())
