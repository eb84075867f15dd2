"""Networks with a classifier: maps of a similarity beside CAM, Grad-CAM, Score-CAM and others of other libraries.

    pip install "captum-fam[weights]" grad-cam torchcam
    python -m benchmarks.classifiers [--shared ../shared] [--runs runs/classifiers] [--out FILE] [NAME ...]

SqueezeNet and EfficientNet-Lite0 with their ImageNet classifiers, on validation images of ImageNet with boxes, on CUB's
species that are classes of ImageNet, and on mosaics of four images of ImageNet. FAM and the additive map explain the
similarity to photographs of the class, or to the row of the class in the classifier; the others explain the logit.
Finished methods are kept in --runs, so that the networks can run side by side, each by its NAME, before the call that
writes the page. `--quick` takes a few images only. Score-CAM needs a pass for each channel, hence fewer images.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.classifiers.methods import Method, similarity_methods
from benchmarks.classifiers.networks import CLASSIFIERS, Classifier
from benchmarks.classifiers.page import Section, write
from benchmarks.classifiers.peers import CAM, peer_methods
from benchmarks.classifiers.photographs import SOURCES, Photographs, few
from benchmarks.classifiers.pieces import Piece, finished, measure
from benchmarks.classifiers.pieces import write as write_piece
from benchmarks.classifiers.queries import (
    Queries,
    draw_mosaics,
    explainable,
    know,
    mosaics,
    single_photographs,
)


@dataclass(frozen=True)
class Sizes:
    """How many images are explained.

    Attributes:
        photographs: photographs of each source, at most.
        mosaics: mosaics, each explained for four classes.
        slow: photographs of each source for the methods that need hundreds of passes, in full batches of eight.
        slow_mosaics: mosaics for these methods.
        few: read a few photographs of a source only.
    """

    photographs: int = 200
    mosaics: int = 30
    slow: int = 16
    slow_mosaics: int = 2
    few: bool = False


QUICK = Sizes(photographs=8, mosaics=2, slow=0, slow_mosaics=0, few=True)


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
            made.append(_mosaics(classifier, photographs, rows, methods, folder, sizes))
    return made


def _mosaics(
    classifier: Classifier,
    photographs: Photographs,
    rows: list[int],
    methods: list[Method],
    folder: Path,
    sizes: Sizes,
) -> Section:
    batches = mosaics(classifier, photographs, draw_mosaics(photographs.labels, rows, sizes.mosaics))
    pieces = _run(classifier, methods, batches, 4 * sizes.slow_mosaics, folder / "mosaics")
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
    cam = next(method for method in methods if method.name == CAM)
    maps_of_cam: dict[int, Tensor] = {}

    def cam_of(queries: Queries) -> Tensor:
        if id(queries) not in maps_of_cam:
            maps_of_cam[id(queries)] = cam.maps(queries).maps
        return maps_of_cam[id(queries)]

    for method in methods:
        explained = batches[: slow // len(batches[0].classes)] if method.slow else batches
        if not explained:
            continue
        file = folder / f"{method.name.replace(' ', '_')}.json"
        piece = finished(file, [queries.shown for queries in explained])
        if piece is None:
            print(f"{classifier.name}: {folder.name}: {method.name}", flush=True)
            piece = measure(classifier, method, explained, cam_of)
            write_piece(piece, file)
        pieces[method.name] = piece
    return pieces


def main(arguments: list[str] | None = None) -> None:
    """Run the methods, and write the page.

    Args:
        arguments: words of the command line. Default: None, those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CLASSIFIERS)}; default: all")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/classifiers"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/classifiers.md"))
    parser.add_argument("--quick", action="store_true", help="a few images, without the slow methods")
    numbers = [size for size in dataclasses.fields(Sizes) if size.name != "few"]
    for size in numbers:
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, help=f"default: {size.default}")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(CLASSIFIERS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    given = {size.name: getattr(options, size.name) for size in numbers}
    sizes = dataclasses.replace(
        QUICK if options.quick else Sizes(), **{name: size for name, size in given.items() if size is not None}
    )
    command = "python -m benchmarks.classifiers" + (" --quick" if options.quick else "")
    command += "".join(f" --{name.replace('_', '-')} {size}" for name, size in given.items() if size is not None)
    classifiers = [CLASSIFIERS[name](options.shared) for name in options.names or CLASSIFIERS]
    found = [section for one in classifiers for section in sections(one, options.shared, options.runs, sizes)]
    write(options.out, " ".join([command, *options.names]), classifiers, found)


if __name__ == "__main__":
    main()
