"""What queries are compared with, and what their scores are contrasted with, as an explanation uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from PIL.Image import Image
from torch import Tensor

from captum_fam.explanation.reading.support_images import SupportNames
from captum_fam.explanation.reading.supports import SupportReader
from captum_fam.explanation.reading.thumbnails import ListPictures
from captum_fam.support import (
    Against,
    ContrastedSupport,
    FoilName,
    Gallery,
    Support,
    SupportSet,
    ThresholdedSupport,
)
from captum_fam.support.foil import as_foil
from captum_fam.support.threshold import check_against

Ids = list[str] | list[list[str]] | None
Thumbnails = Mapping[int, Image] | ListPictures | None
ReadFoil = FoilName | SupportSet | Gallery | None


@dataclass(frozen=True)
class Compared:
    """A support and its contrast, read from what the user gave.

    Attributes:
        support: the support; a tensor whose meaning depends on the queries.
        ids: hashes of the pictures that the support was made of; None if there are none.
        names: the names of their files.
        thumbnails: small copies of these pictures.
        foil: the foil; None for none.
        foil_ids: hashes of the pictures that the foil or the gallery was made of; None if there are none.
        foil_thumbnails: small copies of these pictures.
        against: as for :func:`~captum_fam.explain`.
        threshold: as for :func:`~captum_fam.explain`.
    """

    support: Support | Tensor
    ids: Ids
    names: SupportNames
    thumbnails: Thumbnails
    foil: ReadFoil
    foil_ids: Ids
    foil_thumbnails: Thumbnails
    against: Against | None
    threshold: float | None

    def about(self, support: Support) -> dict[str, Any]:
        """What the scores are contrasted with, as JSON can represent it.

        Args:
            support: the support of one call, which can have a foil of its own.
        """
        foil = getattr(support, "foil", None) if self.foil is None else self.foil
        if isinstance(foil, Gallery):
            foil = "gallery"
        elif isinstance(foil, SupportSet):
            foil = f"{len(foil)} support{'s' * (len(foil) != 1)}"
        return {"foil": foil, "against": self.against, "threshold": self.threshold}


def read_compared(
    reader: SupportReader, support: Any, foil: Any, gallery: Any, against: Against | None, threshold: float | None
) -> Compared:
    """Read a support and its contrast.

    Args:
        reader: makes supports of pictures.
        support: as for :func:`~captum_fam.explain`. A support that has a contrast already gives it up, so that the
            supports of each query and of its foil can be told apart.
        foil: as for :func:`~captum_fam.explain`.
        gallery: as for :func:`~captum_fam.explain`.
        against: as for :func:`~captum_fam.explain`.
        threshold: as for :func:`~captum_fam.explain`.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message names the argument.
    """
    read = reader.read(support)
    ids, names, thumbnails = reader.ids, reader.names, reader.thumbnails
    if foil is None and isinstance(read, ContrastedSupport):
        foil, read = read.foil, read.support
    if against is None and isinstance(read, ThresholdedSupport):
        against, threshold, read = read.against, read.threshold, read.support
    threshold = check_against(against, threshold)
    return Compared(read, ids, names, thumbnails, *read_foil(reader, foil, gallery), against, threshold)


def read_foil(reader: SupportReader, foil: Any, gallery: Any) -> tuple[ReadFoil, Ids, Thumbnails]:
    """Read a foil.

    Args:
        reader: makes supports of pictures.
        foil: as for :func:`~captum_fam.explain`.
        gallery: as for :func:`~captum_fam.explain`.

    Returns:
        The foil; and the hashes and the small copies of the pictures that it was made of.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message names the argument.
    """
    given, name = (foil, "foil") if gallery is None else (gallery, "gallery")
    is_named = name == "foil" and isinstance(given, str) and given in get_args(FoilName)
    if name == "foil" and isinstance(given, str) and not is_named and not Path(given).exists():
        names = ", ".join(map(repr, get_args(FoilName)))
        raise ValueError(f"foil must be {names}, a support, images or the path of images, got {given!r}")
    ids: Ids = None
    thumbnails: Thumbnails = None
    if given is not None and not is_named and not isinstance(given, Gallery):
        given = reader.read(given, name)
        ids, thumbnails = reader.ids, reader.thumbnails
    return (as_foil(given) if gallery is None else as_foil(foil, given)), ids, thumbnails
