"""The measures of a table, and the columns that they fill.

=================  ===========================  ================================================================
measure            columns                      of the map
=================  ===========================  ================================================================
``localization``   ``energy``                   energy proportion (Eq. 19) of the map, scaled by min-max as in the paper
..                 ``energy-positive``          energy proportion of the positive part of the map
..                 ``lift``                     ``energy`` divided by the share of the image inside the boxes
..                 ``iou``                      IoU of the annotated box and the box of the map (Eq. 20)*
``max-box``        ``max-box-acc``              MaxBoxAccV2*
``faithfulness``   ``drop``, ``increase``       average drop and increase in confidence (Eq. 21, 22)*
``perturbation``   ``deletion``, ``insertion``  area under the curve of the score, divided by the score of the image
``swap``           ``swap``                     correlation with the map for another support
``cells``          ``cell-energy``              mosaics: energy of the positive part in the cell of the support
..                 ``cell-hit``                 mosaics: whether the cell of the support has the most energy
..                 ``cell-auroc``               mosaics: AUROC of the cell of the support, for the signed map
``coverage``       ``coverage``                 share of the scores that maps reach which add up to them
=================  ===========================  ================================================================

A star marks the measures for which :attr:`Conventions.signed` chooses the part of a signed map. ``cells`` and
``coverage`` are measured wherever they are defined, all other measures on request. All numbers are shares or
correlations, none is in percent. A new measure is a function with :func:`register_measure`, in any module.
"""

# The order of these imports is the order of the columns of a table.
from captum_fam.experiments.measures import boxes, confidence, specificity  # noqa: F401
from captum_fam.experiments.measures.base import (
    MEASURES,
    Cells,
    Column,
    Conventions,
    MapBatch,
    Measure,
    Perturbable,
    list_measures,
    register_measure,
)
from captum_fam.experiments.measures.panel import Panel

__all__ = [
    "MEASURES",
    "Cells",
    "Column",
    "Conventions",
    "MapBatch",
    "Measure",
    "Panel",
    "Perturbable",
    "list_measures",
    "register_measure",
]
