"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A new binary file beside ``path`` that takes its name when the block ends; an error leaves ``path`` as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
