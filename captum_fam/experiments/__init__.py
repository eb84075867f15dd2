"""The experiments of the paper end to end: few-shot, contrastive, retrieval and mosaics, with any methods and measures.

A protocol describes an experiment. :func:`evaluate` runs the protocol and writes a table; a run can be resumed, and can
have any number of processes. :func:`register_protocol` and :func:`register_measure` add protocols and measures of your
own.

Each module is imported when a name of the module is first used, because the networks of the paper, which are part of
this package, need neither the protocols nor the extra ``eval``. ``__init__.pyi`` lists the public names, for type
checkers and for this module.
"""

from captum_fam._lazy import lazy_names

__all__, __getattr__ = lazy_names(__name__, __file__)
