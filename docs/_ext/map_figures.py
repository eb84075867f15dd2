"""The figures of this package in the gallery of pictures: pyplot, where sphinx-gallery looks, does not manage them."""

from __future__ import annotations

from typing import Any

from sphinx_gallery.scrapers import figure_rst

from captum_fam.visualization import MapFigure


def save_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figures that a block of an example has made.

    Args:
        block: the block.
        block_vars: its variables and the names of its images.
        gallery_conf: the settings of the gallery.

    Returns:
        What shows the images, as reStructuredText.
    """
    paths = []
    for value in list(block_vars["example_globals"].values()):
        if isinstance(value, MapFigure) and not getattr(value, "is_in_gallery", False):
            path = next(block_vars["image_path_iterator"])
            value.save(path, dpi=110)
            value.is_in_gallery = True  # type: ignore[attr-defined]
            paths.append(path)
    return str(figure_rst(paths, gallery_conf["src_dir"]))
