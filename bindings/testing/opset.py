"""``Ordinary``: an op set for the models that computes as ordinary programs do, errors included."""

import numpy as np

from saccade import reference
from saccade.testing import gate, ordinary


class Ordinary:
    """The op set of ``saccade.testing.ordinary`` along one ``Way``, each result rounded to its dtype: what whole models
    are held to. What has no gradient is the reference's."""

    def __init__(self, way):
        self.way = way

    def __getattr__(self, name):
        if name not in gate.GRADIENTS:
            return getattr(reference, name)

        def compute(*arguments, **options):
            options = {key: value for key, value in options.items() if value is not None}
            outputs, _ = getattr(ordinary, name)(self.way, arguments, options, None)
            first, *others = (np.asarray(x).astype(self.way.dtype) for x in outputs)
            return (first, *others) if others else first

        return compute
