"""Figures of the lab: one function per figure, each returns a matplotlib `Figure`.

`from labkit import plots`, then `plots.data.image_grid(...)`; a submodule is imported on first use.
"""

from importlib import import_module
from types import ModuleType

_SUBMODULES = frozenset(
    {
        "data",
        "export",
        "live",
        "operate",
        "quantize",
        "report",
        "repository",
        "serving",
        "style",
        "training",
    }
)


def __getattr__(name: str) -> ModuleType:
    """Import a submodule when it is first asked for."""
    if name in _SUBMODULES:
        return import_module(f"labkit.plots.{name}")
    raise AttributeError(f"labkit.plots has no {name!r}; it has {', '.join(sorted(_SUBMODULES))}")
