"""In which precision a definition computes, and where it rounds."""

from typing import Any

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float16 = np.dtype(np.float16)


def compute_dtype(dtype):
    """The dtype sums are taken in: float32 for float16 and bfloat16, otherwise the dtype itself.

    >>> compute_dtype(np.float16)
    dtype('float32')
    """
    dtype = np.dtype(dtype)
    return np.dtype(np.float32) if dtype in (bfloat16, float16) else dtype


def upcast(*arrays) -> Any:
    """The arrays in their compute dtype; None stays None. One array in, one array out."""
    raised = tuple(None if x is None else np.asarray(x, compute_dtype(np.asarray(x).dtype)) for x in arrays)
    return raised[0] if len(raised) == 1 else raised


def rounded(x, like) -> Any:
    """``x`` rounded once to the dtype of ``like``; None stays None."""
    return None if x is None else np.asarray(x).astype(np.asarray(like).dtype, copy=False)


def einsum(subscripts, first, second):
    """``np.einsum`` by BLAS where that can, and silent as ``np.einsum`` is where infinities cancel to NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.einsum(subscripts, first, second, optimize=True)
