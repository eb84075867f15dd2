"""The site of captum-fam: ``make docs`` builds it, ``make docs-check`` builds it without running code.

What the build writes itself: ``api/`` (api_pages), ``cli.md`` (cli_page), ``tutorials/`` and the pages of the
repository's root (borrowed_pages), ``pictures/`` (sphinx-gallery), ``llms.txt`` (llms_txt).
"""

from __future__ import annotations

import hashlib
import os
import sys
import zlib
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]

import captum_fam  # noqa: E402

project = "captum-fam"
author = "the captum-fam authors"
copyright = "the captum-fam authors"
version = release = captum_fam.__version__
# The one place of the address is project.urls in pyproject.toml.
repository_url = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "api_pages",
    "borrowed_pages",
    "cli_page",
    "llms_txt",
    "mathml",
    "own_names",
    "unbroken",
]
exclude_patterns = [
    "_build",
    "gallery",
    "pictures/**.ipynb",
    "pictures/**.json",
    "pictures/**.py",
    "pictures/**.zip",
    "tutorials/downloads",
    "**/.ipynb_checkpoints",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
nitpicky = True  # what own_names does not find

# Pages.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Tutorials. What a tutorial printed is kept until the tutorial or the package changes.
_code = hashlib.sha256()
for _file in sorted((ROOT / "captum_fam").rglob("*.py")):
    _code.update(_file.read_bytes())
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks" / _code.hexdigest()[:16])
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no script from another server
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress")  # tqdm asks for widgets, which no page has

# Pictures.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures",
    "backreferences_dir": "pictures/used-in",
    "doc_module": ("captum_fam",),
    "filename_pattern": r"plot_",
    "image_scrapers": ("map_figures.save_figures",),
    "capture_repr": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 1e9,
    "write_computation_times": False,
}

# API.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# An inventory that cannot be had, as without a network, is replaced by an empty one: its names stay without a link.
_NO_INVENTORY = HERE / "_build" / "no-inventory.inv"
_NO_INVENTORY.parent.mkdir(exist_ok=True)
_NO_INVENTORY.write_bytes(
    b"# Sphinx inventory version 2\n# Project: none\n# Version: 0\n"
    b"# The remainder of this file is compressed using zlib.\n" + zlib.compress(b"")
)
intersphinx_timeout = 5
intersphinx_mapping = {
    name: (address, (None, str(_NO_INVENTORY)))
    for name, address in {
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
        "torchvision": "https://docs.pytorch.org/vision/stable",
        "captum": "https://captum.ai/api",
        "numpy": "https://numpy.org/doc/stable",
        "matplotlib": "https://matplotlib.org/stable",
        "pandas": "https://pandas.pydata.org/docs",
        "PIL": "https://pillow.readthedocs.io/en/stable",
        "torchmetrics": "https://lightning.ai/docs/torchmetrics/stable",
    }.items()
}

# Links to the web are no part of the build; `sphinx-build -b linkcheck` tries them.
linkcheck_anchors = False

# Looks.
html_theme = "pydata_sphinx_theme"
html_title = f"captum-fam {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": f"captum-fam {version}"},
    "icon_links": [{"name": "Repository", "url": repository_url, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "navigation_depth": 3,
    "collapse_navigation": True,
    "show_prev_next": True,
    "search_bar_text": "Search",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
