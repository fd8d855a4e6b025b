"""Makes transformers read its own source files once, not twice, when it is imported; import this module before it.

It finds the names of its classes in some 3,000 files, and remembers what it found in 128 folders, of which it has over
500. So the second of its packages that asks reads all of them again: a quarter of a second of each job that has a
model (`benchmarks/startup.py`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_SCANNER = "transformers.utils.import_utils"


class _ScannerOnce(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _SCANNER or (spec := PathFinder.find_spec(name, path)) is None or spec.loader is None:
            return None
        spec.loader = _Remembering(spec.loader)
        return spec


class _Remembering(Loader):
    def __init__(self, loader: Loader):
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        # What tracebacks and `inspect` ask for: the source.
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        found: dict[str, Any] = vars(module)
        # Other versions of transformers may do it in another way.
        if (read_folder := getattr(found.get("create_import_structure_from_path"), "__wrapped__", None)) is not None:
            found["create_import_structure_from_path"] = functools.cache(read_folder)
        if (read_names := found.get("fetch__all__")) is not None:
            # The names stand at the end of a file, and it looks at each line before them.
            found["fetch__all__"] = lambda text: read_names(text[text.rfind("\n__all__") + 1 :])


if _SCANNER not in sys.modules:
    sys.meta_path.insert(0, _ScannerOnce())
