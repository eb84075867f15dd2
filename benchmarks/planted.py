"""Whether the maps of a similarity lie on what query and support share, where the truth is known to the pixel.

    python -m benchmarks.planted train|evaluate|all [--device cpu|cuda] [--minutes 40] [--out runs/planted]

`train` makes the two networks of `benchmarks.planted_training` from planted scenes: 40 minutes for the ViT and
20 for the convolution net on one thread, a few minutes on a GPU. Nothing is downloaded. `evaluate` explains queries of
novel classes with every method of `benchmarks.planted_maps` and writes the page, in a quarter of an hour on one thread.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import machine
from benchmarks.planted_maps import BLOCKS, CASES, FIRST_INPUT, Case, exact
from benchmarks.planted_training import NETS, NOVEL_SEED, NovelEpisodes, Trained, drawn, load, train_and_save
from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.metrics import area_share, energy_proportion, find_empty, summarize, upsample

MODULE = "benchmarks.planted"
SHARES = {"vit": 1.0, "convnet": 0.5}
"""Of the minutes, for each network."""
TITLES = {"vit": "Class-token ViT", "convnet": "ConvNeXt blocks, pooling, LayerNorm"}


@dataclass(frozen=True)
class Found:
    """What one method's maps show, each ``(queries,)``; NaN in the first two where a map has no positive value.

    Attributes:
        energy: share of the map's positive part inside the object.
        inside: whether the maximum lies inside the object.
        score: what is explained.
        shares: parts of the score by name; none where nothing adds up.
    """

    energy: Tensor
    inside: Tensor
    score: Tensor
    shares: dict[str, Tensor]


@dataclass(frozen=True)
class Findings:
    """All methods on one network.

    Attributes:
        found: by row of the table.
        right: whether the network gives the query its true class, ``(queries,)``.
        episode: of each query, ``(queries,)``.
        area: share of the image that is object, ``(queries,)``.
    """

    found: dict[Case, Found]
    right: Tensor
    episode: Tensor
    area: Tensor


def maximum_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the largest value of a map lies inside the mask; of several equally large ones the share that does.

    Args:
        maps: ``(B, 1, h, w)``, interpolated to the mask's size here.
        masks: boolean ``(B, H, W)``.

    Returns:
        ``(B,)`` in [0, 1]; NaN where a map has no positive value.

    Example:
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> maximum_inside(torch.tensor([[[[3.0, 1.0], [3.0, 0.0]]]]), mask)
        tensor([0.5000])
    """
    values = upsample(maps, (masks.shape[1], masks.shape[2])).flatten(1)
    highest = values.amax(1, keepdim=True)
    # Interpolation gives equal values back with rounding noise.
    largest = (highest - values <= 4 * torch.finfo(values.dtype).eps * highest).float()
    share = (largest * masks.flatten(1)).sum(1) / largest.sum(1)
    return share.masked_fill(find_empty(maps, "positive"), torch.nan)


def evaluate(net: nn.Module, cases: list[Case], episodes: Iterable[tuple[Tensor, ...]]) -> Findings:
    """Explain the true class of every query by every method.

    Args:
        net: an embedding model.
        cases: rows of its table.
        episodes: supports, one per class, queries, their labels and masks, as of `NovelEpisodes`.
    """
    parts: dict[Case, list[Found]] = defaultdict(list)
    right, areas = [], []
    for support, queries, labels, masks in episodes:
        classes = SupportSet(support, torch.arange(len(support)))
        by_foil = {
            False: SimilarityToSupport(net, classes),
            True: SimilarityToSupport(net, classes, foil="others"),
        }
        with torch.no_grad():
            logits = {foil: scores(queries) for foil, scores in by_foil.items()}
        right.append(logits[False].argmax(1) == labels)
        areas.append(area_share(masks))
        for case in cases:
            foil = bool(case.foil)
            maps, shares = case(by_foil[foil], queries, labels)
            parts[case].append(
                Found(
                    energy_proportion(maps, masks, energy="positive"),
                    maximum_inside(maps, masks),
                    logits[foil].gather(1, labels[:, None])[:, 0],
                    shares,
                )
            )
    episode = torch.cat([torch.full_like(one, index, dtype=torch.long) for index, one in enumerate(right)])
    return Findings(
        {case: _joined(found) for case, found in parts.items()}, torch.cat(right), episode, torch.cat(areas)
    )


def _joined(parts: list[Found]) -> Found:
    # A part that no query of a batch has is not named there.
    names = dict.fromkeys(name for part in parts for name in part.shares)
    return Found(
        torch.cat([part.energy for part in parts]),
        torch.cat([part.inside for part in parts]),
        torch.cat([part.score for part in parts]),
        {name: torch.cat([part.shares.get(name, torch.zeros_like(part.score)) for part in parts]) for name in names},
    )


def cell(values: Tensor, findings: Findings, chosen: Tensor) -> str:
    """Mean over the episodes of the chosen queries, with its interval and how many have no value."""
    result = summarize(values[chosen], findings.episode[chosen])
    left_out = int(chosen.sum()) - result.n
    if not result.n:
        return "–"
    return f"{result.value:.3f} ± {result.half_width:.3f}" + (f" ({left_out} left out)" if left_out else "")


def share(found: Found, name: str, chosen: Tensor) -> str:
    """A part of the score: its sum over the chosen queries over that of the scores."""
    if name not in found.shares:
        return "–"
    # Adding zero takes the sign off a zero.
    return f"{round(float(found.shares[name][chosen].sum() / found.score[chosen].sum()), 3) + 0.0:.3f}"


def localization(net: str, findings: Findings) -> list[str]:
    """The table of the methods."""
    lines = [
        "| method | layer | foil | energy inside | maximum inside | sum of the map / score |",
        "|---|---|---|---|---|---|",
    ]
    for case, found in findings.found.items():
        foil = {None: "blind to the support", True: "others", False: "none"}[case.foil]
        energy, inside = (cell(values, findings, findings.right) for values in (found.energy, found.inside))
        total = share(found, "map", findings.right)
        lines.append(f"| {case.name} | {place(net, case.layer)} | {foil} | {energy} | {inside} | {total} |")
    return lines


def place(net: str, layer: str) -> str:
    """The layer in words."""
    if layer == FIRST_INPUT[net]:
        return f"input of the first block, `{layer}`"
    if layer in BLOCKS[net]:
        return f"behind block {BLOCKS[net].index(layer)}, `{layer}`"
    return f"`{layer}`"


def parts_by_block(net: str, findings: Findings) -> list[str]:
    """Where the score is, block by block, without and with the foil."""
    names = {"map": "positions", "class token": "class token", "bias": "bias behind the pooling"}
    rows = [(case, found) for case, found in findings.found.items() if case.method is exact]
    shown = [name for name in names if any(name in found.shares for _, found in rows)]
    titles = [names[name] for name in shown]
    lines = [
        f"| layer | {' | '.join(titles)} | {' | '.join(f'{title}, foil' for title in titles)} |",
        f"|---|{'---|' * 2 * len(shown)}",
    ]
    for layer in (FIRST_INPUT[net], *BLOCKS[net]):
        both = sorted((case.foil is True, found) for case, found in rows if case.layer == layer)
        cells = [share(found, name, findings.right) for _, found in both for name in shown]
        lines.append(f"| {place(net, layer)} | {' | '.join(cells)} |")
    return lines


def largest_rest(findings: Findings) -> float:
    """The largest magnitude of what no part accounts for."""
    rests = [found.shares["rest"] for case, found in findings.found.items() if case.method is exact]
    return float(torch.stack(rests).abs().max())


def section(net: str, trained: Trained, findings: Findings) -> list[str]:
    """What was found on one network."""
    right, wrong = findings.right, ~findings.right
    first = findings.found[Case("similarity-cam", exact, FIRST_INPUT[net], foil=True)]
    return [
        f"## {TITLES[net]}",
        "",
        f"Trained for {trained.minutes:g} minutes, {trained.steps} steps of {trained.batch} scenes out of "
        f"{trained.scenes}, seed {trained.seed}, on {trained.hardware}. Novel 5-way 1-shot accuracy "
        f"{trained.accuracy:.1%} ± {trained.interval:.1%} over {trained.episodes} episodes; here "
        f"{int(right.sum())} of {len(right)} queries are right. Object area: {cell(findings.area, findings, right)}.",
        "",
        *localization(net, findings),
        "",
        f"On the {int(wrong.sum())} queries that the network gets wrong, the exact map with foil at the input of the "
        f"first block, still of the true class: energy {cell(first.energy, findings, wrong)}, maximum "
        f"{cell(first.inside, findings, wrong)}, object area {cell(findings.area, findings, wrong)}.",
        "",
        "Where the score is, by layer, as the exact map's parts:",
        "",
        *parts_by_block(net, findings),
        "",
        f"What no part accounts for is at most {largest_rest(findings):.0e}, in units of the cosine, for every query.",
        "",
    ]


def head(episodes: int, command: str) -> list[str]:
    """The page above the tables."""
    return [
        "# Maps on planted scenes: does the map lie on what query and support share?",
        "",
        f"Written by `{command}` on {machine()}.",
        "",
        f"{episodes} episodes of novel classes, 5-way 1-shot with 5 queries of each class, seed {NOVEL_SEED} of the "
        "scenes and the episode's number. A scene is a labeled object among one or two others on a cluttered "
        "background; query and support share the object's class and nothing else, and the object's mask is exact. "
        "Networks are trained on base classes, whose textures no novel scene shows, to name all objects of a scene, "
        f"without a mask; one training of each, by `python -m {MODULE} train`, whose defaults take an hour on a CPU. "
        "How these here were trained stands above each table.",
        "",
        "The true class of the query is explained, for the queries that the network gets right. Maps are "
        "interpolated bilinearly to the image. `energy inside`: the share of the map's positive part inside the "
        "object. `maximum inside`: how often its maximum lies there. Both have the object's area as their floor. "
        "`sum of the map / score`: over the sums of all queries, where a map claims to add up. A map without a "
        "positive value is left out and counted. Half-widths (±) are of the 95 % interval over the episodes. With the "
        'foil "others" the score is the cosine to the class minus the mean of the others.',
        "",
        "Grad-CAM and mean activation of tokens are those of the patches; attention is the mean over the heads, in "
        "the class token's row.",
        "",
    ]


def page(folder: Path, episodes: int, command: str) -> list[str]:
    """Evaluate the networks of a folder."""
    drawn_episodes = list(drawn(NovelEpisodes(episodes), None))
    lines = head(episodes, command)
    for name in NETS:
        net, trained = load(name, folder)
        lines += section(name, trained, evaluate(net, CASES[name], drawn_episodes))
    return lines[:-1]


def main(arguments: Iterable[str] | None = None) -> None:
    """Train the networks, evaluate them, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "evaluate", "all"))
    parser.add_argument("--net", choices=tuple(NETS), action="append", help="to train, of the two; default: both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the training")
    parser.add_argument("--minutes", type=float, default=40.0, help="to train the ViT; the convolution net: half of it")
    parser.add_argument("--scenes", type=int, default=12_000, help="to train on; default: %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="scenes per step; default: %(default)s")
    parser.add_argument("--episodes", type=int, default=60, help="of novel classes; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="folder of the weights")
    parser.add_argument("--page", type=Path, default=Path("docs/results/planted.md"), help="file of the tables")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    if options.what != "evaluate":
        minutes = {name: SHARES[name] * options.minutes for name in options.net or NETS}
        train_and_save(
            minutes, options.out, options.device, options.scenes, options.batch, options.episodes, options.seed
        )
    if options.what != "train":
        command = shlex.join(["python", "-m", MODULE, *given])
        lines = page(options.out, options.episodes, command)
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text("\n".join(lines) + "\n")
        print(f"written to {options.page}")


if __name__ == "__main__":
    main()
