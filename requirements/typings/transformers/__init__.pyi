"""What the type checker reads in place of transformers, whose names are all `Any`.

transformers imports its 2,500 modules in one. Reading them took a third of a whole type check, and
the automatic classes that we use return `Any` anyway.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...
