"""Who computes: providers by their names.

A provider is a function of a ``Problem`` that returns ``(forward, backward)``, two functions without arguments:
``forward()`` gives the operation's outputs, ``backward()`` runs forward and backward and gives the gradients, one for
each name in ``saccade.families.GRADIENTS[operation]`` (None where there is none). ``backward`` is None where
gradients are not on offer. A provider that does not apply returns ``(None, "the reason")``.

    def provider(problem):
        inputs = problem.arrays("torch")
        return lambda: my_attention(*inputs.arguments, **inputs.options), None

Known are saccade's own, every peer of ``saccade.testing.peers``, other libraries' whole models
(``saccade.bench.model_peers``), and peers made of plain torch under ``torch.compile``, which the oracle judges as they
are and the case judges compiled. Others come as "module:function" or by the entry point group ``saccade.providers``.
"""

import importlib
import importlib.metadata
import os
import shutil
from functools import partial
from typing import Any

import numpy as np

import saccade
from saccade import reference
from saccade.bench import model_peers
from saccade.bench.problem import Problem
from saccade.families import GRADIENTS
from saccade.testing.claims import Claims
from saccade.testing.peers import PEERS
from saccade.testing.subject import differentiable, names_of

GROUP = "saccade.providers"
NEEDS_GPU, ON_CPU = "it needs a GPU", "it computes on processors"
MEANT_COMPILED = ("torch-flex-attention",)  # whose authors say that only compiled it is fast
COMPILED = {
    f"{name}-compiled": name
    for name in (
        "torch-split-sdpa", "torch-layer-norm", "torch-rms-norm", "torch-gelu", "torch-conv2d-patches",
        "torch-cross-entropy", "torch-linear-cross-entropy", "torch-clip-loss", "torch-siglip-loss",
    )
}  # fmt: skip


def provider(name):
    """The provider of a name.

    Raises:
        ValueError: there is none, or it cannot be imported.
    """
    if name in OWN:
        return OWN[name]
    if name in model_peers.NAMES:
        return partial(model_peers.of_peer, name)
    if name in PEERS or name in COMPILED:
        return partial(_of_peer, COMPILED.get(name, name), name in COMPILED or name in MEANT_COMPILED)
    entries = {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}
    try:
        if name in entries:
            return entries[name].load()
        module, _, attribute = name.partition(":")
        if attribute:
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"bench: provider {name!r} cannot be imported: {error}") from error
    known = ", ".join([*OWN, *PEERS, *COMPILED, *model_peers.NAMES, *entries])
    raise ValueError(f"bench: provider={name!r}, expected module:function or one of {known}")


def claims_of(name, provider):
    """What a provider promises: a peer's own claims, its attribute ``claims``, or the ordinary inputs of a model."""
    if name in OWN:
        return Claims()
    usual = Claims(value_dims=False, soft_labels=False, ignored=False, non_finite=False, deterministic=False)
    name = COMPILED.get(name, name)
    return PEERS[name].claims if name in PEERS else getattr(provider, "claims", usual)


def may_apply(name, operation):
    """Whether a provider is not known to be another operation's."""
    name = COMPILED.get(name, name)
    if name in model_peers.NAMES or operation == "model":
        return operation == "model" and name not in PEERS
    return name not in PEERS or PEERS[name].operation == operation


def known(operation, device="cpu"):
    """The names of all providers that may apply to an operation on a device."""
    own = ("saccade", "saccade-torch", "reference") if device == "cpu" else ("saccade-torch", "saccade-cupy")
    peers = [name for name in (*PEERS, *COMPILED, *model_peers.NAMES) if may_apply(name, operation)]
    return [*own, *peers, *(one.name for one in importlib.metadata.entry_points(group=GROUP))]


def _of_arrays(functions, palette, arrays, problem):
    """A backend's functions of NumPy or CuPy arrays, its gradients by ``name_forward`` and ``name_backward``."""
    if (arrays == "cupy") != (problem.device == "cuda"):
        return None, NEEDS_GPU if arrays == "cupy" else ON_CPU
    if problem.operation == "model":
        return model_peers.of_arrays(functions, arrays, problem)
    inputs, name = problem.arrays(arrays), problem.operation
    if name == "fit":
        fit = importlib.import_module(palette).fit
        return lambda: fit(*inputs.arguments, **inputs.options), None
    function, forward = getattr(functions, name), getattr(functions, f"{name}_forward")
    backward = getattr(functions, f"{name}_backward")

    def gradients():
        _, saved = forward(*inputs.arguments, **inputs.options)
        return backward(saved, *inputs.cotangents)

    return lambda: function(*inputs.arguments, **inputs.options), gradients


def _face_of_torch(problem):
    if problem.operation == "fit":
        return None, "palettes are NumPy's"
    if problem.operation == "model":
        return model_peers.of_torch(model_peers.ours, problem)
    return _by_torch(getattr(saccade, problem.operation), problem, problem.arrays("torch"))


def _by_torch(function, problem, inputs):
    """A function of tensors, its gradients by autograd."""
    import torch

    moving = [x is not None for x in differentiable(problem.operation, problem.arguments, problem.options)]
    names = names_of(problem.operation)
    leaves = [name for name, moves in zip(GRADIENTS[problem.operation], moving, strict=True) if moves]

    def forward():
        with torch.inference_mode():
            return function(*inputs.arguments, **inputs.options)

    def backward():
        given = dict(zip(names, inputs.arguments, strict=False)) | inputs.options
        kept = {name: given[name].detach().requires_grad_() for name in leaves}
        given |= kept
        by_position = [given.pop(name) for name in names if name in given]
        out = function(*by_position, **given)
        outputs = out if isinstance(out, tuple) else (out,)
        cotangents = [g.to(y.dtype) for g, y in zip(inputs.cotangents, outputs, strict=True)]
        found = iter(torch.autograd.grad(outputs, [kept[name] for name in leaves], cotangents))
        return tuple(next(found) if moves else None for moves in moving)

    return forward, backward


def _by_jax(function, problem, inputs):
    import jax  # pyright: ignore[reportMissingImports]

    moving = [x is not None for x in differentiable(problem.operation, problem.arguments, problem.options)]
    call = jax.jit(lambda *x: function(*x, **inputs.options))

    @jax.jit
    def pulled(arguments, cotangents):
        outputs, pull = jax.vjp(lambda *x: call(*x), *arguments)
        (cotangent,) = cotangents
        return pull(cotangent.astype(outputs.dtype))

    def backward():
        found = iter(jax.block_until_ready(pulled(inputs.arguments, inputs.cotangents)))
        return tuple(next(found) if moves else None for moves in moving)

    return lambda: jax.block_until_ready(call(*inputs.arguments)), backward


def _of_peer(name, compiled, problem):
    peer, claims = PEERS[name], PEERS[name].claims
    if peer.operation != problem.operation:
        return None, f"it is {peer.operation}"
    if not peer.installed:
        return None, f"{peer.package.replace(' ', ' or ')} is not installed"
    if peer.device is not None and problem.device == "cpu":
        return None, NEEDS_GPU
    if problem.device != "cpu" and peer.arrays != "torch":
        return None, ON_CPU
    if problem.operation != "fit" and problem.dtype not in claims.dtypes:
        return None, f"it takes no {problem.dtype}"
    if problem.operation == "fit" and len(problem.arguments[2]) > (claims.most_centers or np.inf):
        return None, f"it makes no more than {claims.most_centers} centres"
    for option in problem.options:
        if problem.operation != "fit" and not claims.takes(problem.operation, option):
            return None, f"it knows no {option}"
    if problem.operation == "attention" and problem.options.get("causal") and claims.causal != "end":
        lengths = {x.shape[2] for x in problem.arguments[:2]}
        if len(lengths) > 1:
            return None, "its causal mask is aligned at the start"
    width = problem.arguments[problem.operation == "embedding"].shape[-1]
    if claims.head_dims is not None and width not in claims.head_dims:
        return None, f"it takes no head dimension {width}"
    function = peer.function()
    inputs = problem.arrays(peer.arrays, claims.axes)
    if peer.arrays == "jax":
        return _by_jax(function, problem, inputs)
    if peer.arrays == "torch":
        if compiled and problem.timed:
            import torch

            if shutil.which(os.environ.get("CXX", "g++")) is None:
                return None, "it is meant to be compiled, and there is no C++ compiler"
            function = torch.compile(function)
        forward, backward = _by_torch(function, problem, inputs)
        return forward, backward if claims.gradients else None
    return lambda: function(*inputs.arguments, **inputs.options), None


OWN = {
    "saccade": partial(_of_arrays, saccade, "saccade.kernels.numba.palette", "numpy"),
    "saccade-torch": _face_of_torch,
    "saccade-cupy": partial(_of_arrays, saccade, "saccade.kernels.cupy.palette", "cupy"),
    "reference": partial(_of_arrays, reference, "saccade.reference.palette", "numpy"),
}


def function_of(provider, operation, device="cpu"):
    """(the function, its vjp) that a provider amounts to, on NumPy arrays: what the oracle judges.

    A problem for which the provider does not apply raises ValueError with the reason.
    """

    def applied(arguments, options, cotangents=()) -> tuple[Any, Any, Any]:
        problem = Problem(operation, arguments, options, cotangents, device=device)
        forward, backward = provider(problem)
        if forward is None:
            raise ValueError(f"it does not apply: {backward}")
        return problem, forward, backward

    def function(*arguments, **options):
        problem, forward, _ = applied(arguments, options)
        first, *others = (np.array(y) for y in problem.outputs(forward()))
        return (first, *others) if others else first

    def vjp(arguments, options, cotangents):
        problem, _, backward = applied(arguments, options, cotangents)
        return tuple(None if y is None else np.array(y) for y in problem.gradients_of(backward()))

    return function, vjp
