"""nnattr: which parts of a language model cause a behaviour?

::

    import nnattr

    model = nnattr.load("teaching-gpt2")
    task = nnattr.tasks.ioi(model.tokenizer, n=8, seed=0)
    scores = nnattr.activation_patching(model, task, nnattr.LogitDiff(), site="z")
    scores.top(5)
    scores.plot().show()

The public names are listed in ``__init__.pyi``. Each is imported when it is first used, so that
``import nnattr`` is quick.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

import lazy_loader

from nnattr import drawing
from nnattr.progress import ProgressBar

__version__ = version("nnattr")

_attribute, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"nnattr has no {name!r}; it has {', '.join(__all__)}")
    if "nnattr.model.load" in sys.modules:
        return _attribute(name)
    with ProgressBar("import torch"):  # and what else a model needs: seconds, once
        return _attribute(name)


def _figures() -> drawing.Drawers:
    """What draws each result; plotly is loaded here, and not before a figure is wanted."""
    from nnattr.plots import FIGURES

    return FIGURES


drawing.filled_by(_figures)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
