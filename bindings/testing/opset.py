"""``Ordinary``: an op set for the models that computes as ordinary programs do, errors included; ``judge`` with it."""

import numpy as np

from saccade import reference
from saccade.families import GRADIENTS
from saccade.testing import gate, ordinary
from saccade.testing.ways import ways


class Ordinary:
    """The op set of ``saccade.testing.ordinary`` along one ``Way``, each result rounded to its dtype: what whole models
    are held to. What has no gradient is the reference's."""

    def __init__(self, way):
        self.way = way

    def __getattr__(self, name):
        if name not in GRADIENTS:
            return getattr(reference, name)

        def compute(*arguments, **options):
            options = {key: value for key, value in options.items() if value is not None}
            outputs, _ = getattr(ordinary, name)(self.way, arguments, options, None)
            first, *others = (np.asarray(x).astype(self.way.dtype, copy=False) for x in outputs)
            return (first, *others) if others else first

        return compute


def judge(actual, compute, parameters, *inputs, repeats=4):
    """The ``gate.Judgement`` of what a composition of operations gave.

    Args:
        actual: the array that came.
        compute: ``compute(parameters, *inputs, ops)`` -> the array, with any op set.
        parameters: NumPy arrays of one dtype by name.
        inputs: NumPy arrays; floating ones are of that dtype.
        repeats: of the ordinary ways, with rounding errors drawn anew.
    """

    def wide(x):
        return np.asarray(x, np.float64) if x.dtype.kind not in "biu" else x

    true = compute({name: wide(x) for name, x in parameters.items()}, *map(wide, inputs), reference)
    dtype = next(iter(parameters.values())).dtype
    usual = [compute(parameters, *inputs, Ordinary(way)) for way in ways(dtype, repeats)]
    return gate.judge_one("output", actual, true, usual)
