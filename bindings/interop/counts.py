"""How many calls the drop-ins took over, and why they left the others alone."""

import threading
from collections import Counter

TAKEN = "taken over"

_counts = Counter()
_lock = threading.Lock()


class Report(dict):
    """{place: {``"taken over"`` or why a call was left to the library: how often}}; prints as lines."""

    def __str__(self):
        lines = [
            f"{place}: {how}, {times:,}" if how == TAKEN else f"{place}: left alone, {how}, {times:,}"
            for place, found in self.items()
            for how, times in sorted(found.items(), key=lambda one: (one[0] != TAKEN, -one[1]))
        ]
        return "\n".join(lines) or "no call has come to a drop-in"


def count(place, reason=None):
    """Note a call at ``place``, taken over, or left alone for a ``reason``."""
    with _lock:
        _counts[place, reason or TAKEN] += 1


def report():
    """What has been counted in this process since it began, or since ``reset``.

    Calls that ``torch.compile`` has traced in Python are not counted, as Python is not asked again.
    """
    found = Report()
    with _lock:
        for (place, how), times in sorted(_counts.items()):
            found.setdefault(place, {})[how] = times
    return found


def reset():
    """Begin to count anew."""
    with _lock:
        _counts.clear()
