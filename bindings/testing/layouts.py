"""Ways for an array to lie in memory."""

import numpy as np

LAYOUTS = ("dense", "reversed axes", "every other", "sliced", "misaligned", "broadcast", "read-only")
GUARD = 0xA5  # what fills the memory around a view


def laid_out(values, layout):
    """The same values as ``values``, in memory the way ``layout`` says (a name in ``LAYOUTS``).

    Views lie in memory that is otherwise filled with ``GUARD`` bytes; "broadcast" repeats the first of the leading
    axis, with stride 0.
    """
    if layout == "reversed axes" and values.ndim:
        return np.ascontiguousarray(values.T).T
    if layout == "every other" and values.ndim:
        wide = _guarded((*values.shape[:-1], 2 * values.shape[-1] + 1), values.dtype)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "sliced" and values.ndim:
        wide = _guarded(tuple(n + 3 for n in values.shape), values.dtype)
        inside = wide[tuple(slice(1, n + 1) for n in values.shape)]
        inside[...] = values
        return inside
    if layout == "misaligned":
        buffer = np.full(values.nbytes + 1, GUARD, np.uint8)
        view = buffer[1:].view(values.dtype).reshape(values.shape)
        view[...] = values
        return view
    if layout == "broadcast" and values.ndim and values.shape[0] > 1:
        return np.broadcast_to(values[:1], values.shape)
    if layout == "read-only":
        values = values.copy()
        values.flags.writeable = False
    return values


def _guarded(shape, dtype):
    x = np.empty(shape, dtype)
    x.reshape(-1).view(np.uint8)[:] = GUARD
    return x
