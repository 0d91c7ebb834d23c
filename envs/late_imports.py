"""Imports of what takes seconds to import, made only where it runs."""

import gc
from pkgutil import resolve_name
from typing import Any


def import_late(name: str) -> Any:
    """Return the module `package.module`, or the object `package.module:name`.

    Garbage is not looked for meanwhile: nearly all that an import makes lives on, and looking for
    garbage in it is a sixth of the time. Raises ImportError and AttributeError.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return resolve_name(name)
    finally:
        if collects:
            gc.enable()
