"""Public names that are imported at their first use (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def importing(package: str, modules: Mapping[str, str], names: dict[str, Any]) -> Callable[[str], object]:
    """Return the ``__getattr__`` of *package*: it imports a public name from its module, and keeps it in *names*.

    *modules* has the module of each public name, below *package*.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        names[name] = value
        return value

    return get
