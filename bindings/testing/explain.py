"""A failure in words, as a small picture of where the errors sit, and as a script that shows it without saccade."""

import base64
import textwrap

import numpy as np

SHADES = " .:-=+*#%@"
ROWS, COLUMNS = 8, 32


def described(arguments, options):
    """An input in one line: dtypes, shapes and layouts of arrays, other values as they are."""
    parts = [_described(x) for x in arguments] + [f"{name}={_described(x)}" for name, x in options.items()]
    return ", ".join(parts)


def _described(x):
    if not isinstance(x, np.ndarray):
        return repr(x)
    if x.ndim == 0:
        return f"{x.dtype}({x})"
    dense = x.flags.c_contiguous and x.flags.aligned and x.flags.writeable
    notes = "" if dense else " read-only" if x.flags.c_contiguous and x.flags.aligned else f" strides {x.strides}"
    return f"{x.dtype}{list(x.shape)}{notes}"


def picture(arrays):
    """Where the errors of (what came, the truth) sit: rows of shades, the darkest the largest error; "" for numbers.

    The last two axes are shown, at the worst place of the others, thinned out to at most 8 x 32 places.
    """
    if arrays is None:
        return ""
    actual, true = (np.asarray(x) for x in arrays)
    if not true.ndim or not true.size or actual.shape != true.shape:
        return ""
    with np.errstate(all="ignore"):
        error = np.abs(actual.astype(np.float64) - true.astype(np.float64))
    wrong = np.where(np.isnan(error), np.inf, error)
    wrong = np.where(np.isfinite(true.astype(np.float64)) | (actual.astype(true.dtype) != true), wrong, 0)
    at = np.unravel_index(np.argmax(wrong), wrong.shape)
    flat = wrong[at[:-2]] if wrong.ndim > 1 else wrong[None]
    small = _thinned(_thinned(flat, ROWS, 0), COLUMNS, 1)
    finite = small[np.isfinite(small)]
    top = finite.max(initial=0.0)
    scaled = np.where(np.isfinite(small), small / (top or 1.0), 1.0)
    lines = ["|" + "".join(SHADES[round(float(x) * (len(SHADES) - 1))] for x in row) + "|" for row in scaled]
    where = "" if wrong.ndim < 3 else f" at {tuple(map(int, at[:-2]))} of the leading axes"
    darkest = "not finite" if not np.isfinite(small).all() else f"{top:.2e}"
    return "\n".join([f"error over the last axes {list(flat.shape)}{where}, darkest {darkest}:", *lines])


def _thinned(x, most, axis):
    parts = np.array_split(np.arange(x.shape[axis]), min(most, x.shape[axis]))
    return np.stack([np.take(x, part, axis).max(axis) for part in parts], axis)


def script(report, failure):
    """A program that shows the failure with NumPy and the function's framework alone."""
    from saccade.testing.subject import names_of

    differentiated = (
        failure.what.startswith("gradient of ") and report.arrays == "torch" and failure.call[2] is not None
    )
    lines = [
        f'"""{report.function} is not {report.operation}.',
        "",
        *textwrap.wrap(failure.says, 110),
        '"""',
        "",
        "import base64",
        "",
        *(["import ml_dtypes"] if "bfloat16" in described(*failure.call[:2]) else []),
        "import numpy as np",
        *([f"import {report.arrays}"] if report.arrays != "numpy" else []),
        "",
        _import_of(report.function),
        "",
        "",
        "def array(memory, dtype, shape, strides, offset):",
        "    return np.ndarray(shape, dtype, bytearray(base64.b64decode(memory)), offset, strides)",
        "",
        "",
        *_TO[report.arrays],
        "",
        "arguments = [",
        *(f"    {_source(x)}," for x in failure.call[0]),
        "]",
        f"options = {{{', '.join(f'{name!r}: {_source(x)}' for name, x in failure.call[1].items())}}}",
    ]
    lines += [
        "arguments = [put(x) for x in arguments]",
        "options = {name: put(x) for name, x in options.items()}",
        *(_WATCHED if differentiated else []),
        "out = function(*arguments, **options)",
        'print("result:", out)',
    ]
    if differentiated:
        name = failure.what.removeprefix("gradient of ")
        names = names_of(report.operation)
        where = f"arguments[{names.index(name)}]" if name in names else f"options[{name!r}]"
        lines += [
            f"cotangents = [{', '.join(_source(x) for x in failure.call[2])}]",
            "outputs = out if isinstance(out, tuple) else (out,)",
            "torch.autograd.backward(outputs, [put(g).to(y.dtype) for g, y in zip(cotangents, outputs)])",
            f'print("{failure.what}:", {where}.grad)',
        ]
    if failure.arrays is not None:
        lines += [
            f'print("{failure.what}, as it came to the oracle:", {_source(failure.arrays[0])})',
            f'print("truth:", {_source(np.asarray(failure.arrays[1], np.float64))})',
        ]
    return "\n".join(lines) + "\n"


_WATCHED = [
    "for x in [*arguments, *options.values()]:",
    "    if isinstance(x, torch.Tensor) and x.is_floating_point():",
    "        x.requires_grad_()",
]
_TO = {
    "numpy": ["def put(x):", "    return x", ""],
    "torch": [
        "def put(x):",
        "    if not isinstance(x, np.ndarray):",
        "        return x",
        '    if str(x.dtype) == "bfloat16":',
        "        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)",
        "    return torch.from_numpy(x)",
        "",
    ],
    "cupy": ["def put(x):", "    return cupy.asarray(x) if isinstance(x, np.ndarray) else x", ""],
    "jax": ["def put(x):", "    return jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x", ""],
}


def _import_of(function):
    from saccade.testing import peers

    if function in peers.PEERS:
        return peers.source(function)
    module, _, name = function.partition(":")
    if not name:
        return f"function = ...  # here goes {function}"
    if "." in name:
        first, _, rest = name.partition(".")
        return f"from {module} import {first}\n\nfunction = {first}.{rest}"
    return f"from {module} import {name} as function"


def _source(x):
    if not isinstance(x, np.ndarray):
        return repr(x)
    whole = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    offset = x.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    if not whole.flags.c_contiguous or not 0 <= offset <= whole.nbytes:
        x = whole = np.ascontiguousarray(x)
        offset = 0
    memory = base64.b64encode(whole.tobytes()).decode()
    dtype = "ml_dtypes.bfloat16" if str(x.dtype) == "bfloat16" else f'"{x.dtype}"'
    return f'array("{memory}", {dtype}, {x.shape}, {x.strides}, {offset})'
