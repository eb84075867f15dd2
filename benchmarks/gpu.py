"""Everything that needs a GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu pack [--shared ../shared] [--out runs/gpu-pack]
    python -m benchmarks.gpu [--data-pack runs/gpu-pack] [--out runs/gpu] [--minutes 8] [--stages a,b] [--size small]
    python -m benchmarks.gpu page RUNS [--out docs/benchmarks/gpu.md]

The stages stand in ``benchmarks/gpu_stages``; docs/benchmarks/gpu.md says what each does. A finished stage is not run
again. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_stages import STAGES
from benchmarks.gpu_stages.environment import look
from benchmarks.gpu_stages.page import summary, write_page
from benchmarks.gpu_stages.runner import FINISHED, run_stages
from benchmarks.pieces import write_json


def main(words: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        words: the words behind the name of the command; None for those of the process. Default: None.

    Returns:
        0 if every stage has finished, else 1.
    """
    given = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if given[:1] == ["pack"]:
        parser.add_argument("--shared", type=Path, default=Path("../shared"))
        parser.add_argument("--out", type=Path, default=Path("runs/gpu-pack"))
        options = parser.parse_args(given[1:])
        # Imported here: a run needs no library of images.
        from benchmarks.gpu_stages.pack import pack

        print(f"{options.out}: {pack(options.shared, options.out):.1f} MiB")
        return 0
    if given[:1] == ["page"]:
        parser.add_argument("runs", type=Path)
        parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/gpu.md"))
        options = parser.parse_args(given[1:])
        write_page(options.runs, options.out)
        return 0
    parser.add_argument("--data-pack", type=Path, help="folder that pack has written; default: planted scenes only")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages; default: %(default)s")
    parser.add_argument("--stages", help=f"of {', '.join(stage.name for stage in STAGES)}; default: all")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: a rehearsal on the CPU")
    options = parser.parse_args(given)
    wanted = options.stages.split(",") if options.stages else [stage.name for stage in STAGES]
    unknown = sorted(set(wanted) - {stage.name for stage in STAGES})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if options.data_pack is not None and not options.data_pack.is_dir():
        parser.error(f"--data-pack: there is no folder {options.data_pack}")
    return run(options, wanted)


def run(options: argparse.Namespace, wanted: Sequence[str]) -> int:
    """Look at the machine, run the stages, and print how they ended.

    Args:
        options: the parsed options.
        wanted: names of the stages.

    Returns:
        0 if every stage has finished, else 1.
    """
    # An end from outside ends the running stage too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = look()
    write_json(options.out / "environment.json", found)
    if found["missing"]:
        print(f"missing: {', '.join(found['missing'])}; stages that need them fail")
    device = "cuda" if options.size == "full" else "cpu"
    if device == "cuda" and not found.get("cards"):
        print(f"no GPU is seen; --size small rehearses on the CPU\n{found.get('error', '')}", file=sys.stderr)
        return 1
    reports = run_stages(
        [stage for stage in STAGES if stage.name in wanted],
        options.out.absolute(),
        options.minutes,
        device=device,
        size=options.size,
        data_pack=None if options.data_pack is None else options.data_pack.absolute(),
    )
    print("\n".join(summary(reports)))
    return 0 if all(reports.get(name, {}).get("state") in FINISHED for name in wanted) else 1


if __name__ == "__main__":
    raise SystemExit(main())
