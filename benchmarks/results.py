"""The tables of docs/results: every protocol on the CUB photographs, for both networks, beside the trivial baselines.

    python -m benchmarks.results [NAME ...] [--only NETWORK] [--quick] [--shared ../shared] [--runs runs/results]

NAME is a page. Its tables are those of `captum-fam evaluate`, whose commands stand above them. The results of a run are
in RUNS/RUN-NETWORK and go on where they were stopped. With --only the runs of one network are made; the page is written
as soon as those of the other are there too. So two processes can share the work, one for each network. Without a NAME
all pages are written. --quick has a twentieth of the episodes and mosaics, and a third of the photographs, to see
whether a page works: its runs are in RUNS/quick, and its pages in RUNS/quick/pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.command_line import parser_for
from benchmarks.networks import NETWORKS, Network, trained_head
from benchmarks.pages import call, table, write_page
from benchmarks.paired import paired_table

FLOORS = "mean-activation,eigen-cam,random,center,center[sigma=0.2],center-box,uniform"


def foiled(*maps: str, foils: Sequence[str] = ("", "-foil", "-runner-up")) -> str:
    """Every map without a foil and with each foil."""
    return ",".join(f"{name}{foil}" for name in maps for foil in foils)


def smoothed(*maps: str, windows: Sequence[int] = (3, 5)) -> str:
    """Every map through the mean filters that keep its sum; a map is a name and a foil, ``"grad-cam -foil"``."""
    parts = (name.partition(" ") for name in maps)
    return ",".join(f"{name}[smooth={window}]{foil}" for name, _, foil in parts for window in windows)


MAPS = foiled("fam", "similarity-cam", "grad-cam")
SMOOTH = smoothed("similarity-cam -foil")
MOSAIC = ",".join(
    (
        foiled("fam", "similarity-cam", "grad-cam", foils=("", "-foil", "-runner-up", "-gallery")),
        smoothed("similarity-cam -foil", "similarity-cam -runner-up", "similarity-cam -gallery", "grad-cam -foil"),
    )
)
MOSAIC_FLOORS = f"{smoothed('mean-activation')},{FLOORS}"
# Not beside a head, which these maps do not use. The last has its mean filter twice: in the descriptors, and behind.
POSITIONS = ",".join(
    (
        "correspondence,correspondence-foil",
        foiled(*(f"correspondence[window={side}]" for side in (1, 3, 5)), foils=("-runner-up",)),
        "correspondence[window=3,smooth=5]-runner-up",
    )
)
# Fewer rows, because they cost a pass of the network for each map, and deletion with insertion two for each step.
MASKING = (
    "fam,similarity-cam,similarity-cam-foil,similarity-cam[smooth=5]-foil,grad-cam,grad-cam-foil,mean-activation,"
    "random,center,uniform"
)
# A map of Shapley values takes thousands of passes through the tail.
PLAYERS = (
    f"{foiled('similarity-cam', 'shapley', 'pair-support', 'grad-cam', foils=('', '-foil'))},"
    f"{smoothed('shapley -foil', windows=(5,))},mean-activation,uniform"
)
SIDES = "--plugin benchmarks.support_side"


@dataclass(frozen=True)
class Run:
    """One command of ``captum-fam evaluate``, for each network.

    Attributes:
        command: protocol and options; ``{middle}`` and ``{finer}`` are the layers of the network.
        size: option of the number of units, and the number.
        head: whether the network has a trained head. Default: False.
        heading: what the table shows, where a page has several of a network. Default: none.
        plugin: option before the subcommand. Default: none.
        paired: measures whose differences from the mean activation are shown, paired by query. Default: none.
    """

    command: str
    size: tuple[str, int] | None = None
    head: bool = False
    heading: str = ""
    plugin: str = ""
    paired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page of docs/results.

    Attributes:
        title: its title.
        runs: its tables by the name of the run.
        note: a paragraph above the tables. Default: none.
    """

    title: str
    runs: dict[str, Run] = field(default_factory=dict)
    note: str = ""


def layers() -> str:
    """Additive maps where a network is cut, at a layer behind it and where it is pooled; means; filters; Grad-CAM."""
    each = ("activation", "{middle}", "rest")
    several = (*each, "{middle}+rest", "activation+{middle}+rest")
    maps = [f"similarity-cam[layers={at}]{foil}" for foil in ("-foil", "") for at in several]
    filtered = [
        f"similarity-cam[layers={at},smooth={window}]-foil"
        for at, windows in {
            "activation": (5, 9, 17),
            "{middle}": (5, 9),
            "rest": (3, 5),
            "{middle}+rest": (5, 9, 11, 21),
            "activation+{middle}+rest": (9, 17),
        }.items()
        for window in windows
    ]
    others = [f"grad-cam[layers={at}]-foil" for at in each]
    return ",".join([*maps, *filtered, *others, "mean-activation[layers=rest]", "uniform"])


WITH_HEAD = "with a trained linear head"
PAGES = {
    "few-shot": Page(
        "Few-shot, 5-way 1-shot, novel classes",
        {
            "few-shot": Run(
                f"few-shot --measures localization,swap --methods {MAPS},{SMOOTH},correspondence,"
                f"correspondence-runner-up,{FLOORS}",
                ("episodes", 25),
            )
        },
    ),
    "few-shot-head": Page(
        f"Few-shot {WITH_HEAD}",
        {
            "few-shot-head": Run(
                f"few-shot --measures localization,swap --methods {MAPS},{SMOOTH},{FLOORS}", ("episodes", 25), head=True
            )
        },
    ),
    "few-shot-max-box": Page(
        "Few-shot: MaxBoxAccV2",
        {"few-shot-max-box": Run(f"few-shot --measures max-box --methods {MAPS},{SMOOTH},{FLOORS}", ("episodes", 10))},
    ),
    "few-shot-faithfulness": Page(
        "Few-shot: average drop and increase in confidence",
        {
            "few-shot-faithfulness": Run(
                f"few-shot --query 3 --measures faithfulness --methods {MASKING}",
                ("episodes", 100),
                paired=("drop", "increase"),
            )
        },
        "The mask is the map, scaled by min-max. `uniform` has a mask of one half everywhere.",
    ),
    "few-shot-perturbation": Page(
        "Few-shot: deletion and insertion, over the score of the whole image",
        {
            "few-shot-perturbation": Run(
                "few-shot --query 1 --measures perturbation --steps 8 --methods "
                "fam,similarity-cam,similarity-cam-foil,grad-cam,grad-cam-foil,mean-activation,random,center",
                ("episodes", 40),
                paired=("deletion", "insertion"),
            )
        },
        "Every step changes an eighth of the pixels. A flat map has no order of pixels and no curve: `random` stands "
        "for it.",
    ),
    "contrastive": Page(
        "k-NN with a memory bank of the training split",
        {"contrastive": Run(f"contrastive --measures localization,swap --methods {MAPS},{SMOOTH},{FLOORS}")},
    ),
    "contrastive-head": Page(
        f"k-NN with a memory bank, {WITH_HEAD}",
        {
            "contrastive-head": Run(
                f"contrastive --measures localization,swap --methods {MAPS},{SMOOTH},{FLOORS}", head=True
            )
        },
    ),
    "retrieval": Page(
        "Retrieval: every test image against the others",
        {"retrieval": Run(f"retrieval --measures localization,swap --methods {MAPS},{SMOOTH},{FLOORS}")},
        "The foil of `-foil` is the mean of the gallery, that of `-runner-up` the nearest image of another class.",
    ),
    "retrieval-head": Page(
        f"Retrieval {WITH_HEAD}",
        {
            "retrieval-head": Run(
                f"retrieval --measures localization,swap --methods {MAPS},{SMOOTH},{FLOORS}", head=True
            )
        },
    ),
    "mosaic": Page(
        "2 x 2 mosaics, five supports",
        {"mosaic": Run(f"mosaic --methods {MOSAIC},{POSITIONS},{MOSAIC_FLOORS}", ("mosaics", 60))},
    ),
    "mosaic-head": Page(
        f"2 x 2 mosaics {WITH_HEAD}",
        {"mosaic-head": Run(f"mosaic --methods {MOSAIC},{MOSAIC_FLOORS}", ("mosaics", 60), head=True)},
    ),
    "mosaic-shapley": Page(
        "2 x 2 mosaics: positions as players, and the support's side",
        {
            "mosaic-shapley": Run(f"mosaic --methods {PLAYERS}", ("mosaics", 10), heading="no head", plugin=SIDES),
            "mosaic-shapley-head": Run(
                f"mosaic --methods {PLAYERS}", ("mosaics", 10), head=True, heading=WITH_HEAD, plugin=SIDES
            ),
        },
        "`pair-support` has the mosaic as the support and each support image of the class as the query: the map is "
        "that of the support's side of the pairs, averaged. A cosine does not change when its arguments are exchanged, "
        "so that the map is that of `similarity-cam`, by another computation: the two rows must agree. By itself the "
        "command is `python -m captum_fam` in place of `captum-fam`, in the folder that holds `benchmarks`.",
    ),
    "mosaic-layers": Page(
        "2 x 2 mosaics: additive maps at finer layers",
        {
            "mosaic-layers": Run(
                f"mosaic --layer {{finer}} --examples 4 --measures '' --methods {layers()}", ("mosaics", 40)
            )
        },
        "`activation` is the layer where the network is cut, and `rest` the pooled layer. In SqueezeNet these are "
        "`features.5` with 110 x 110 positions on a mosaic, `rest.features.10` with 55 x 55, and 27 x 27; in "
        "EfficientNet-Lite0 `blocks.2` with 56 x 56, `rest.blocks.4` with 28 x 28, and 14 x 14. A sum of layers stands "
        "for the mean of their maps, `smooth=N` for a mean filter of N x N positions of the finest of them, and "
        "`coverage` for the share of the scores that the sums of the maps reach.",
    ),
}


_TABLES = ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "train_test_split.txt")


def small_copy(shared: Path, folder: Path) -> Path:
    """A folder like the shared one, with every third photograph.

    Args:
        shared: folder of data and weights.
        folder: where the small folder is made; a finished one is used again.

    Returns:
        The folder.
    """
    source, target = shared / "data/cub50", folder / "data/cub50"
    if (target / "classes.txt").exists():  # the last file below
        return folder
    target.mkdir(parents=True, exist_ok=True)
    for link, to in ((target / "images", source / "images"), (folder / "weights", shared / "weights")):
        if not link.exists():
            link.symlink_to(to.resolve())
    for name in _TABLES:
        lines = (source / name).read_text().splitlines(keepends=True)
        (target / name).write_text("".join(lines[::3]))
    (target / "classes.txt").write_text((source / "classes.txt").read_text())
    return folder


def commands_of(name: str, run: Run, network: Network, shared: Path, runs: Path, share: int = 1) -> list[str]:
    """The commands of a run, that of its head first; the head is trained where it is missing.

    Args:
        name: name of the run.
        run: the run.
        network: the network.
        shared: folder of data and weights.
        runs: folder of the results.
        share: divides the number of units. Default: 1.
    """
    protocol, _, options = run.command.partition(" ")
    made = []
    model = f"{network.options(shared)} --data {shared}/data/cub50"
    if run.head:
        head, command = trained_head(network, protocol, shared, runs)
        made.append(command)
        model += f" --head {head}"
    if run.size is not None:
        option, count = run.size
        options = f"--{option} {max(count // share, 2)} {options}"
    options = options.format(finer=network.finer, middle=network.middle)
    if "--examples" not in options:
        options = f"--examples 0 {options}"
    return [*made, f"{run.plugin} evaluate {protocol} {model} {options} --out {folder_of(name, network, runs)}".strip()]


def folder_of(name: str, network: Network, runs: Path) -> Path:
    """The folder of the results of a run for a network."""
    return runs / f"{name}-{network.name}"


def make(name: str, page: Page, networks: Sequence[Network], shared: Path, runs: Path, out: Path, share: int) -> None:
    """Run a page for some networks, and write it where those of all networks are there.

    Args:
        name: name of the page.
        page: the page.
        networks: the networks to run.
        shared: folder of data and weights.
        runs: folder of the results.
        out: folder of the page.
        share: divides the numbers of units.
    """
    for network in networks:
        for run_name, run in page.runs.items():
            start, used = time.time(), time.process_time()
            call(commands_of(run_name, run, network, shared, runs, share)[-1])
            wall, used = time.time() - start, time.process_time() - used
            print(f"{run_name}-{network.name}: {used / 60:.1f} minutes of processor time, {wall / 60:.1f} by the clock")
    missing = [
        folder.name
        for network in NETWORKS.values()
        for run_name in page.runs
        if not ((folder := folder_of(run_name, network, runs)) / "summary.json").is_file()
    ]
    if missing:
        print(f"{name}: the page is not written yet, for {', '.join(missing)} is not there")
        return
    commands = [
        f"captum-fam {command}"
        for network in NETWORKS.values()
        for run_name, run in page.runs.items()
        for command in commands_of(run_name, run, network, shared, runs, share)
    ]
    write_page(
        out / f"{name}.md",
        page.title,
        f"python -m benchmarks.results {name}{' --quick' if share > 1 else ''}",
        sections(page, runs),
        ran=list(dict.fromkeys(commands)),
        note=page.note,
    )


def sections(page: Page, runs: Path) -> Iterator[str]:
    """The lines of a page below its head: the tables of each network."""
    for network in NETWORKS.values():
        yield from (f"## {network.title}", "")
        for name, run in page.runs.items():
            folder = folder_of(name, network, runs)
            if run.heading:
                yield from (f"### {network.title}, {run.heading}", "")
            yield from (*table(folder), "")
            if run.paired:
                yield from (*paired_table(folder, run.paired), "")


def main() -> None:
    """Run the protocols and write their tables."""
    parser = parser_for(
        "benchmarks.results",
        __doc__,
        names=PAGES,
        runs="runs/results",
        out="docs/results",
        quick="a twentieth of the episodes and mosaics, a third of the images",
    )
    parser.add_argument("--only", choices=tuple(NETWORKS), help="run this network only; default: both")
    options = parser.parse_args()
    networks = [NETWORKS[options.only]] if options.only else list(NETWORKS.values())
    shared, runs, out, share = options.shared, options.runs, options.out, 1
    if options.quick:
        runs, share = runs / "quick", 20
        shared, out = small_copy(shared, runs / "shared"), runs / "pages"
    for name in options.names or PAGES:
        make(name, PAGES[name], networks, shared, runs, out, share)


if __name__ == "__main__":
    main()
