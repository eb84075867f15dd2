"""Notes and errors of the package in the words of the command line: options in the place of arguments of Python."""

from __future__ import annotations

import re

_INDEX = ", and give the similarity of the index as --similarity"
# What the package says, as a regular expression, and what the command line says in its place.
_WORDS = (
    # Each image that is left out is named anyway.
    (r"left out of the bank, because they could not be used: .*", ""),
    # Neighbors always are in their gallery, and each batch has another number of them.
    (
        r"\d+ of \d+ supports are in the gallery, as the same image; there they are left out on their own side",
        "on its own side, a support that is in the gallery is left out of it",
    ),
    (r"Pass gallery=, other images, to see", "Give other images as --gallery to see"),
    (r"; or foil=None$", "; or give --foil none"),
    (r"pass scores=-distances, and the similarity of the index", f"write minus the distance as the score{_INDEX}"),
    (r"pass scores=-distances", "write minus the distance as the score"),
    (r"pass scores=1 - distances", "write 1 minus the distance as the score"),
    (r"pass scores=2 \* scores - 1", "write 2 * score - 1 as the score"),
    (r'similarity="([\w-]+)"', r"--similarity \1"),
    (r"; score_gap\(\) gives all differences", ""),
    (r"; leave it out there( \((MemoryBank|Neighbors|SupportSet)\.[^;]*\))?$", "; take out one of the two images"),
    (
        r"Use LayerSimilarityCAM, or a foil with normalization='auto'",
        "Look at the map of similarity-cam (--methods) instead, or choose a --foil",
    ),
    (r"the layers that find_layer measured", "the layers that were measured"),
    (
        r"Choose an earlier layer, or a module that contains this layer(: find_layer measures .* more)?",
        "Choose an earlier layer, or a module that contains this layer, as --layer",
    ),
    (r"Layer '([^']+)' explains", r"--layer \1 explains"),
    (r"; name another, or use find_layer", "; name another as --layer"),
    (
        r"give size=, mean= and std= if they differ",
        "if they differ, give --size, or return an EmbeddingModel with its preprocessing from FILE.py:FACTORY",
    ),
    (
        r"Pass the part of the model that gives the embedding, such as its backbone",
        "Name the embedding with --output, or give the part that makes it as FILE.py:FACTORY",
    ),
    (r'against="threshold" needs threshold=, a number', "--against threshold needs --threshold T, a number"),
    (r"^threshold (?=must be|is -?\d)", "--threshold "),
    (r"negated distances, at most 0: pass ", "negated distances, at most 0: give --threshold "),
    (r"\b(top_matches=0, or )(?=--matches 0)", ""),
)


def in_options(text: str) -> str:
    """A note or an error of the package, with options of the command line in the place of arguments of Python.

    Args:
        text: the text.

    Returns:
        The text; empty for a note that the command line says in another way.

    Example:
        >>> in_options("the scores are cosine distances: pass scores=1 - distances")
        'the scores are cosine distances: write 1 minus the distance as the score'
    """
    for words, replacement in _WORDS:
        text = re.sub(words, replacement, text)
    return text
