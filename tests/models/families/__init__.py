"""Every family's tiny checkpoints, conversations and outside judge, a module each.

A module has `MODEL_TYPE`, `VARIANTS` (name -> arguments of `make`), ``make(folder, **variant)``, ``conversations()``
and, where transformers has the family, ``reference(folder, messages)``; also `HUB_NAMES` and ``hub_config(config)``
where the published layout differs from the one that transformers 5 writes. The tests that run them are in
`test_families` and `test_families_live`.
"""

import importlib
import pkgutil
from types import ModuleType


def all_families() -> dict[str, ModuleType]:
    """Family modules by model type."""
    names = (info.name for info in pkgutil.iter_modules(__path__) if info.name != "reference")
    modules = (importlib.import_module(f"{__name__}.{name}") for name in names)
    return {module.MODEL_TYPE: module for module in modules}
