"""What importing LanceDB costs, and what of it a folder on disk never uses."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, cast


class _LoadedWhenNeeded(ModuleType):
    """A package whose sub-modules can be imported while its own `__init__` waits for the first name it is asked for."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]
        cast("Any", self.__spec__).loader.exec_module(self)
        return getattr(self, name)


def without_rest_client() -> None:
    """Let LanceDB import the types of its REST client without the client, 0.55 s that a folder on disk never uses."""
    name = "lance_namespace_urllib3_client"
    if "lancedb" not in sys.modules and name not in sys.modules and (spec := importlib.util.find_spec(name)):
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _LoadedWhenNeeded
        sys.modules[name] = package
