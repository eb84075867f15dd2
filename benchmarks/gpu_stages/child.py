"""Runs one stage: ``python -m benchmarks.gpu_stages.child MODULE STAGE BUDGET FILE CASE``."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_stages.report import Case, Report


def run_stage(module: str, stage: str, budget: float, file: Path, case: Case) -> Report:
    """Run a stage in this process. An exception ends the stage and stands in its report.

    Args:
        module: module with ``run(case, report)``.
        stage: name of the stage.
        budget: seconds for the stage.
        file: the JSON file of the report.
        case: what the stage is told.

    Returns:
        The report.
    """
    report = Report(file, stage, budget, {"size": case.size, "device": case.device})
    Path(case.folder).mkdir(parents=True, exist_ok=True)
    try:
        import_module(module).run(case, report)
    except Exception as error:  # a stage may fail in any way, and the others go on
        report.finish(state="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    else:
        report.finish()
    return report


if __name__ == "__main__":
    name, title, seconds, path, options = sys.argv[1:]
    made = run_stage(name, title, float(seconds), Path(path), Case(**json.loads(options)))
    print(made.content.get("traceback", ""), file=sys.stderr)
