"""Measures of a map: functions that return one value per sample, and torchmetrics classes that average them.

The class for a function in ``NAME.py`` is in ``NAME_metric.py``. The functions need torch, and scipy where they draw a
box around a map. The classes need torchmetrics. ``captum-fam[eval]`` installs scipy and torchmetrics. Each module is
imported when a name of the module is first used, because the import of torchmetrics takes seconds. ``__init__.pyi``
lists the public names, for type checkers and for this module.
"""

from captum_fam._lazy import lazy_names

__all__, __getattr__ = lazy_names(__name__, __file__)
