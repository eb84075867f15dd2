"""Networks with a classifier: maps of a similarity beside CAM, Grad-CAM, Score-CAM and others of other libraries.

    pip install "captum-fam[weights]" grad-cam torchcam
    python -m benchmarks.classifiers [--shared ../shared] [--runs runs/classifiers] [--out FILE] [NAME ...]

SqueezeNet and EfficientNet-Lite0 with their ImageNet classifiers, on validation images of ImageNet with boxes, on CUB's
species that are classes of ImageNet, and on mosaics of four images of ImageNet. FAM and the additive map explain the
similarity to photographs of the class, or to the row of the class in the classifier; the others explain the logit.
Finished methods are kept in --runs, so that the networks can run side by side, each by its NAME, before the call that
writes the page. Some 40 minutes on one core. Score-CAM needs a pass for each channel: it explains four photographs of
each source, and no mosaics. `--quick` takes a few images only, and leaves Score-CAM out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.classifiers.methods import Method, similarity_methods
from benchmarks.classifiers.networks import CLASSIFIERS, Classifier
from benchmarks.classifiers.page import Section, write
from benchmarks.classifiers.peers import CAM, peer_methods
from benchmarks.classifiers.photographs import SOURCES, Photographs, few
from benchmarks.classifiers.pieces import Piece, measure
from benchmarks.classifiers.queries import (
    Queries,
    draw_mosaics,
    explainable,
    know,
    mosaics,
    single_photographs,
)
from benchmarks.command_line import command, parser_for
from benchmarks.pieces import file_name, kept


@dataclass(frozen=True)
class Sizes:
    """How many images are explained.

    Attributes:
        photographs: photographs of each source, at most.
        mosaics: mosaics, each explained for four classes.
        slow: photographs of each source for the methods that need hundreds of passes; they explain no mosaics.
        few: read a few photographs of a source only.
    """

    photographs: int = 80
    mosaics: int = 12
    slow: int = 4
    few: bool = False


QUICK = Sizes(photographs=8, mosaics=2, slow=0, few=True)


def sections(classifier: Classifier, shared: Path, runs: Path, sizes: Sizes) -> list[Section]:
    """The results of one network on all sources.

    Args:
        classifier: the network.
        shared: folder of data and weights.
        runs: folder of finished methods.
        sizes: how many images are explained.
    """
    made = []
    for name, source in SOURCES.items():
        photographs = source(shared, classifier.model)
        if sizes.few:
            photographs = few(photographs)
        folder = runs / classifier.name / name
        known = know(classifier, photographs, folder / "known.pt")
        rows = explainable(known, photographs.labels)
        methods = similarity_methods(classifier, known.embeddings, photographs.labels) + peer_methods(classifier)
        accuracy = float(known.correct(photographs.labels).float().mean())
        facts = f"{len(photographs)} photographs, of which the classifier gets {accuracy:.3f} right"
        chosen = rows[: sizes.photographs]
        batches = single_photographs(classifier, photographs, known, chosen)
        pieces = _run(classifier, methods, batches, sizes.slow, folder / "photographs")
        made.append(Section(f"{classifier.title}: {photographs.title}", f"{facts}.", pieces))
        if name == "imagenet":
            made.append(_mosaics(classifier, photographs, rows, methods, folder, sizes.mosaics))
    return made


def _mosaics(
    classifier: Classifier,
    photographs: Photographs,
    rows: list[int],
    methods: list[Method],
    folder: Path,
    number: int,
) -> Section:
    batches = mosaics(classifier, photographs, draw_mosaics(photographs.labels, rows, number))
    pieces = _run(classifier, methods, batches, 0, folder / "mosaics")
    return Section(
        f"{classifier.title}: mosaics",
        "Four photographs of four classes, 448 x 448 pixels, explained for each of the four classes.",
        pieces,
    )


def _run(
    classifier: Classifier, methods: list[Method], batches: list[Queries], slow: int, folder: Path
) -> dict[str, Piece]:
    """The piece of every method, of which those in the folder are not run again."""
    pieces = {}
    some = first_images(batches, slow)
    cam = next(method for method in methods if method.name == CAM)
    maps_of_cam: dict[int, Tensor] = {}

    def cam_of(queries: Queries) -> Tensor:
        if id(queries) not in maps_of_cam:
            maps_of_cam[id(queries)] = cam.maps(queries).maps
        return maps_of_cam[id(queries)]

    for method in methods:
        explained = some if method.slow else batches
        if not explained:
            continue

        def make(method: Method = method, explained: list[Queries] = explained) -> dict[str, Any]:
            print(f"{classifier.name}: {folder.name}: {method.name}", flush=True)
            return asdict(measure(classifier, method, explained, cam_of))

        count = sum(len(queries.shown) for queries in explained)
        pieces[method.name] = Piece(**kept(folder / f"{file_name(method.name)}-{count}.json", make))
    return pieces


def first_images(batches: list[Queries], count: int) -> list[Queries]:
    """The first images of all batches, in full batches as long as there are any.

    Args:
        batches: the batches.
        count: number of images.
    """
    found = []
    for queries in batches:
        if count > 0:
            found.append(queries.first(count))
        count -= len(queries.shown)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the methods, and write the page.

    Args:
        arguments: words of the command line. Default: None, those of the process.
    """
    parser = parser_for(
        "benchmarks.classifiers",
        __doc__,
        names=CLASSIFIERS,
        runs="runs/classifiers",
        out="docs/results/classifiers.md",
        quick="a few images, without the slow methods",
    )
    numbers = [size for size in dataclasses.fields(Sizes) if size.name != "few"]
    for size in numbers:
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, help=f"default: {size.default}")
    options = parser.parse_args(arguments)
    given = {size.name: getattr(options, size.name) for size in numbers}
    sizes = dataclasses.replace(
        QUICK if options.quick else Sizes(), **{name: size for name, size in given.items() if size is not None}
    )
    classifiers = [CLASSIFIERS[name](options.shared) for name in options.names or CLASSIFIERS]
    runs = options.runs / "quick" if options.quick else options.runs
    found = [section for one in classifiers for section in sections(one, options.shared, runs, sizes)]
    write(options.out, command(parser, options), classifiers, found)


if __name__ == "__main__":
    main()
