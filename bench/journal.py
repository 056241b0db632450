"""The rows of a run as they come, in a file beside its results: a run that was interrupted goes on from there."""

import hashlib
import json
import threading
from pathlib import Path

import saccade
from saccade.files import replacing


class Journal:
    """What was measured so far, by names.

    Attributes:
        path: of the file, or None, which keeps nothing.
        kept: what an interrupted run with the same settings left there. With others it begins anew.
    """

    def __init__(self, path, settings):
        self.path, self.kept, self._guard = None if path is None else Path(path), {}, threading.Lock()
        if self.path is None:
            return
        settings = json.loads(json.dumps(settings))
        head, *rows = _lines(self.path) or [None]
        if head == settings:
            self.kept = dict(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write("".join(f"{json.dumps(one)}\n" for one in (settings, *self.kept.items())).encode())

    def get(self, name, make):
        """What is kept under a name, or else what ``make()`` returns, which is kept from now on."""
        if name in self.kept:
            return self.kept[name]
        made = make()
        if self.path is not None:
            with self._guard, open(self.path, "a") as file:
                file.write(f"{json.dumps([name, made])}\n")
        return made

    def close(self):
        """The run is over: nothing is kept any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def sources():
    """A hash of this project's own code: rows that an earlier state of it measured are no rows of a run to go on."""
    found = hashlib.sha256()
    for file in sorted(Path(saccade.__file__).parent.rglob("*")):
        if file.suffix in (".py", ".cu"):
            found.update(file.read_bytes())
    return found.hexdigest()


def _lines(path):
    """What the lines of a file say, up to the first that was cut off."""
    found = []
    try:
        for line in path.read_text().splitlines():
            found.append(json.loads(line))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        pass
    return found
