"""Drop-ins: our kernels inside the libraries that people already use, one module for each.

    from saccade.interop import transformers
    transformers.register()  # attn_implementation="saccade"

Importing a module changes nothing. ``register``, ``activate`` and ``patch`` do, ``unregister``, ``deactivate`` and
``unpatch`` undo just that, and ``registered``, ``activated`` and ``patched`` do both, around a block. They take over
attention where it was measured to be no slower than the library's (``saccade.interop.measured``), or with
``everywhere=True`` wherever they can. Every other call goes where it would have gone, and is counted with the reason:

    print(saccade.interop.report())
"""

import importlib

from saccade.interop.counts import Report as Report, report as report, reset as reset

# Each imports its library when it is first asked for.
_MODULES = ("jax", "onnx", "open_clip", "pillow", "sklearn", "timm", "torch", "transformers")


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"saccade.interop.{name}")
    raise AttributeError(f"module 'saccade.interop' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])
