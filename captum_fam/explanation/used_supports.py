"""The supports that a query was compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation


class UsedSupport(NamedTuple):
    """A support that a query was compared with.

    Attributes:
        row: its position in the support, as in :attr:`Explanation.support_rows`.
        similarity: its similarity to the query.
        weight: its weight in the score of the target class.
    """

    row: int
    similarity: float
    weight: float


def used_supports(explanation: Explanation, index: int) -> list[UsedSupport]:
    """The supports that one query was compared with, as :meth:`Explanation.supports_of` gives them.

    Args:
        explanation: the explanation.
        index: the position of the query.
    """
    columns = (explanation.support_rows, explanation.support_similarities, explanation.support_weights)
    known = [column[index].tolist() for column in columns if column is not None]
    if len(known) < len(columns):
        return []
    used = [one for one in map(UsedSupport, *known) if one.row >= 0 and one.weight != 0]
    return sorted(used, key=lambda one: (-one.similarity, one.row))
