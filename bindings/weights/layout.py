"""What a layout says of itself, and how the sizes of a model are read off the shapes of its tensors."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from saccade.weights.links import nearest


@dataclass(frozen=True)
class Layout:
    """One library's way to lay out one kind of model.

    ``title`` is for people, ``kind`` the model's: imagegpt, vit or clip. ``mark`` are names that no other layout has:
    a file with any of them is of this one. Functions: ``sizes(found)`` is what the shapes tell (``found`` is a
    ``Found``), ``said(source)`` a list of (who says so, facts) from the files beside, ``names(config, found)`` the
    ``links.Names``, where ``found`` is None for writing, ``ignored(name)`` tells tensors that no model needs, and
    ``beside(config)`` gives the JSON files that the library wants beside its own, by name. ``usual`` are facts that
    the library takes for granted, for what nobody says.
    """

    title: str
    kind: str
    mark: tuple
    sizes: Callable
    names: Callable
    said: Callable
    beside: Callable
    usual: dict
    ignored: Callable = lambda name: False


class Found(dict):
    """The shapes of a file's tensors by name."""

    def __init__(self, shapes, where):
        super().__init__(shapes)
        self.where = where

    def size(self, name, axis):
        """A side of a tensor that must be there."""
        if name not in self:
            raise ValueError(f"{self.where}: missing: {name}{nearest(name, list(self))}")
        if not -len(self[name]) <= axis < len(self[name]):
            raise ValueError(f"{self.where}: of another shape: {name} {self[name]}, expected more axes")
        return self[name][axis]

    def depth(self, pattern):
        """How many different numbers stand where ``pattern``, of the beginning of names, has its group."""
        matches = (re.match(pattern, name) for name in self)
        return len({match[1] for match in matches if match})

    def side(self, positions, axis, prefix, patch):
        """{"image_size": …} of a square grid of positions; nothing where it cannot be square."""
        n = self.size(positions, axis) - prefix
        root = math.isqrt(max(n, 0))
        return {"image_size": root * patch} if root * root == n and root else {}


def prefixed(prefix, facts):
    """Facts of one tower."""
    return {f"{prefix}.{name}": value for name, value in facts.items()}


GELUS = {"gelu": "erf", "quick_gelu": "sigmoid", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}


def gelu_kind(where, name):
    """Ours for a library's name of an activation."""
    if name not in GELUS:
        raise ValueError(f"{where}: activation {name!r}, expected one of {', '.join(GELUS)}")
    return GELUS[name]


def gelu_name(kind):
    """Hugging Face's name for ours."""
    return {"erf": "gelu", "sigmoid": "quick_gelu", "tanh": "gelu_pytorch_tanh"}[kind]


def keys(table, names):
    """Facts from a JSON object: ``names`` maps theirs to ours; what is absent or null says nothing."""
    return {ours: table[theirs] for theirs, ours in names.items() if table.get(theirs) is not None}


def normalisation(table, mean, std):
    """{"mean": …, "std": …} from a JSON object, as tuples."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in keys(table, {mean: "mean", std: "std"}).items()}
