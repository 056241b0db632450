"""How the tensors of a layout correspond to a model's parameters, said once for both directions.

A link is a tensor of theirs and its parts along the first axis, each a view of a parameter of ours. Reading assigns
the tensor to the views, writing concatenates them, so that what is read and written again has the same bits.
"""

import difflib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

LISTED_NEAREST = 20
READERS = 4


@dataclass
class Names:
    """A layout's tensors for one config.

    ``links`` are ``{theirs: [(ours, view), …]}``, ``constants`` what theirs has and ours does not, (shape, dtype) by
    name, all 0 (dtype None: the parameters' own), and ``zeros`` the parameters of ours that theirs does not have.
    """

    links: dict
    constants: dict = field(default_factory=dict)
    zeros: tuple = ()


def whole(x):
    """The parameter as it is."""
    return x


def transposed(x):
    """(out, in) as (in, out)."""
    return x.T


def row(x):
    """With a first axis of 1."""
    return x[None]


def token(x):
    """(e,) as (1, 1, e)."""
    return x[None, None]


def share(i, n, view=whole):
    """The i-th of n equal shares along the first axis, then ``view``."""
    return lambda x: view(x[i * len(x) // n : (i + 1) * len(x) // n])


def linear(ours, theirs, view=whole):
    """A weight, through ``view``, and a bias."""
    return {f"{theirs}.weight": [(f"{ours}.weight", view)], f"{theirs}.bias": [(f"{ours}.bias", whole)]}


def packed(ours, theirs):
    """Several of theirs that lie one after the other in one of ours."""
    links, n = {}, len(theirs)
    for i, name in enumerate(theirs):
        links |= {f"{name}.{kind}": [(f"{ours}.{kind}", share(i, n))] for kind in ("weight", "bias")}
    return links


def norm(ours, theirs):
    """A norm's gain and bias."""
    return {f"{theirs}.weight": [(f"{ours}.scale", whole)], f"{theirs}.bias": [(f"{ours}.bias", whole)]}


def under(ours, theirs, links):
    """The links with prefixes before the names of both sides."""
    return {theirs + name: [(ours + parameter, view) for parameter, view in parts] for name, parts in links.items()}


def existing(links, layout):
    """Of links that say where a parameter would lie, those of the parameters that the layout has."""
    return {theirs: parts for theirs, parts in links.items() if all(ours in layout for ours, _ in parts)}


def shapes(names, layout):
    """The shape of each of their tensors: the views of arrays that take no memory."""
    found = {theirs: shape for theirs, (shape, _) in names.constants.items()}
    for theirs, parts in names.links.items():
        views = [view(np.broadcast_to(np.int8(0), layout[ours][0])).shape for ours, view in parts]
        found[theirs] = (sum(shape[0] for shape in views), *views[0][1:]) if len(views) > 1 else views[0]
    return found


def common(dtypes):
    """The narrowest dtype that holds all of them; NumPy knows none for float16 and bfloat16."""
    different = {np.dtype(dtype) for dtype in dtypes}
    if len(different) == 1:
        return different.pop()
    return np.dtype(np.float64 if np.dtype(np.float64) in different else np.float32)


def fill(names, layout, source, dtypes):
    """The parameters. What lies in a mapped file as it is to lie in memory stays there; what is packed, turned or
    widened is copied: from a mapped file several tensors at once, from others, which are read first, one at a time.

    Args:
        names: the ``Names``.
        layout: our names and shapes.
        source: a ``Source``.
        dtypes: our name -> dtype.
    """
    parameters = {name: np.zeros(layout[name][0], dtypes[name]) for name in names.zeros}
    copied = []
    for theirs, parts in names.links.items():
        (ours, view), alone = parts[0], len(parts) == 1
        if alone and view is whole and source.dtypes[theirs] == dtypes[ours]:
            parameters[ours] = source.read(theirs)
        else:
            for ours in {ours for ours, _ in parts} - parameters.keys():
                parameters[ours] = np.empty(layout[ours][0], dtypes[ours])
            copied.append((theirs, parts))

    def copy(theirs, parts):
        tensor, start = source.read(theirs), 0
        for ours, view in parts:
            target = view(parameters[ours])
            target[...] = tensor if len(parts) == 1 else tensor[start : start + len(target)]
            start += len(target) if len(parts) > 1 else 0
        source.release(theirs)

    with ThreadPoolExecutor(READERS if source.mapped else 1) as pool:
        list(pool.map(lambda pair: copy(*pair), copied))
    return {name: parameters[name] for name in layout}


def joined(names, parameters, theirs):
    """One of their tensors, from our parameters."""
    if theirs in names.constants:
        shape, dtype = names.constants[theirs]
        return np.zeros(shape, dtype or next(iter(parameters.values())).dtype)
    views = [view(parameters[ours]) for ours, view in names.links[theirs]]
    return views[0] if len(views) == 1 else np.concatenate(views)


def nearest(name, names):
    """The one of ``names`` most like ``name``, in brackets, or nothing."""
    found = difflib.get_close_matches(name, names, n=1)
    return f" (nearest: {found[0]})" if found else ""


def check(where, layout_name, found, expected):
    """Raise ValueError that lists every tensor that is missing, not expected, or of another shape."""
    missing, extra = [n for n in expected if n not in found], [n for n in found if n not in expected]
    wrong = [n for n in expected if n in found and tuple(found[n]) != tuple(expected[n])]
    if not (missing or extra or wrong):
        return
    said = []
    for title, names, others in (("missing", missing, extra), ("not expected", extra, [*missing, *expected])):
        if names:
            listed = [name + nearest(name, others) for name in names[:LISTED_NEAREST]] + names[LISTED_NEAREST:]
            said.append(f"{title}: {', '.join(listed)}")
    if wrong:
        listed = [f"{name} {tuple(found[name])}, expected {tuple(expected[name])}" for name in wrong]
        said.append(f"of another shape: {'; '.join(listed)}")
    raise ValueError(f"{where}: its tensors are not those of {layout_name}; {'; '.join(said)}")
