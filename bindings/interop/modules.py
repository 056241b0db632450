"""Modules of ours in the place of a library's, whose code is the library's own for what reads code."""

import functools
from typing import Any

from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from saccade.interop.tensors import noted


class Stand:
    """A mixin, named first: our class of a module's is the library's again in what TorchScript compiles.

    ``torch.jit.script`` puts its copies into the model it was given, so a scripted model is no longer patched.
    """

    def __prepare_scriptable__(self):
        theirs: Any = library_class(type(self))
        copy = theirs.__new__(theirs)
        own = {name: value for name, value in self.__dict__.items() if not name.startswith("_saccade")}
        copy.__dict__.update(own, _modules=dict(self.__dict__["_modules"]))
        return copy


def unless_traced(forward):
    """A ``forward`` that is the library's own under ``torch.fx``, whose graphs cannot have our decisions in them."""

    @functools.wraps(forward)
    def either(self, *arguments, **options):
        if is_fx_symbolic_tracing():  # also of what no input goes into: parameters are proxies then
            theirs = library_class(type(self))
            noted(f"{theirs.__name__} under torch.fx", "tracing")
            return theirs.forward(self, *arguments, **options)
        return forward(self, *arguments, **options)

    return either


def library_class(ours):
    """The library's class that one of ours stands for."""
    return next(one for one in ours.__mro__ if one is not Stand and not issubclass(one, Stand))
