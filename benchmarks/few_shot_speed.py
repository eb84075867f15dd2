"""How long the few-shot protocol takes: every query of every episode explained, with and without masked passes.

    python -m benchmarks.few_shot_speed [--episodes 2000] [--model conv64f] [--data FOLDER --split novel]

The paper's protocol is 2,000 episodes of 75 queries, so 150,000 maps and, for average drop and increase in confidence,
as many masked passes. Weights are random, and all queries are explained whether they are right or not: real runs
explain the correct ones only. With fewer episodes the rest is extrapolated, and the table says from how many. On a
machine with other work the CPU time tells more than the clock's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import machine
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments import FewShot, Panel, get_methods, load_dataset, load_model

ALL_EPISODES = 2000
CASES: dict[str, tuple[str, ...]] = {
    "localization": ("localization",),
    "with average drop and increase": ("localization", "faithfulness"),
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20, help=f"to run, of {ALL_EPISODES}; default: %(default)s")
    parser.add_argument("--model", default="conv64f")
    parser.add_argument("--methods", default="fam")
    parser.add_argument("--data", default="scenes:2953", help="default: as many scenes as CUB has novel photographs")
    parser.add_argument("--split", default="novel")
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_model(options.model)
    dataset = load_dataset(options.data, options.split, model)
    lines = [
        "# How long the few-shot protocol takes",
        "",
        f"Written by `python -m benchmarks.few_shot_speed --episodes {options.episodes} --model {options.model} "
        f"--methods {options.methods}` on {machine()}.",
        f"5-way 1-shot, 75 queries per episode, all explained; {len(dataset)} images of {model.size} pixels.",  # type: ignore[arg-type]
        "",
        f"| measures | images once | per episode | CPU time per episode | {ALL_EPISODES} episodes | |",
        "|---|---|---|---|---|---|",
    ]
    for name, measures in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            panel = Panel(get_methods(options.methods), measures)
            protocol = FewShot(model, dataset, panel, episodes=ALL_EPISODES, explain="all")
            start = time.perf_counter()
            prepared = protocol.prepare(Path(folder), Ranks(), progress=True)
            images = time.perf_counter() - start
            next(iter(prepared.run([ALL_EPISODES - 1])))
            start, cpu = time.perf_counter(), time.process_time()
            for _ in prepared.run(range(options.episodes)):
                pass
            episode = (time.perf_counter() - start) / options.episodes
            cpu = (time.process_time() - cpu) / options.episodes
        whole = images + ALL_EPISODES * episode
        said = "measured" if options.episodes == ALL_EPISODES else f"extrapolated from {options.episodes}"
        times = f"{images:.0f} s | {1000 * episode:.0f} ms | {1000 * cpu:.0f} ms | {whole / 60:.1f} min"
        lines.append(f"| {name} | {times} | {said} |")
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
