"""Figures of the lab: one function per figure, each returns a matplotlib `Figure`.

`from labkit import plots`, then `plots.data.image_grid(...)`; a submodule is imported on first use.
"""

import pkgutil
from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Import a submodule when it is first asked for."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if name in known:
        return import_module(f"labkit.plots.{name}")
    raise AttributeError(f"labkit.plots has no {name!r}; it has {', '.join(known)}")
