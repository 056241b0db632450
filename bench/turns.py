"""Who may use a GPU, of several processes that prepare rows: all that judge, or the one that is timed."""

import contextlib
import fcntl
from pathlib import Path


class Turns:
    """Locks in a folder that the processes share.

    Whoever comes passes a door and leaves it open behind himself once he is in, so that one who waits to be alone is
    not overtaken.
    """

    def __init__(self, folder):
        self.door, self.hall = Path(folder, "door"), Path(folder, "hall")

    def together(self):
        """In the block, nobody is alone."""
        return self._inside(fcntl.LOCK_SH)

    def alone(self):
        """In the block, nobody else is inside."""
        return self._inside(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _inside(self, how):
        with contextlib.ExitStack() as inside:
            with held(self.door):
                inside.enter_context(held(self.hall, how))
            yield


@contextlib.contextmanager
def held(path, how=fcntl.LOCK_EX):
    """In the block, the lock of a file that is made if need be."""
    with open(path, "a") as file:
        fcntl.flock(file, how)
        yield
