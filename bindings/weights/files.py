"""Load, save and convert checkpoints."""

import json
from pathlib import Path

import numpy as np

from saccade.files import replacing
from saccade.models.clip import CLIPConfig
from saccade.models.variants import module_of
from saccade.weights import facts, google, huggingface, huggingface_clip, links, open_clip, openai, safe, sources, timm
from saccade.weights.layout import Found

# Those that can be written, too, by library; a library has at most one that holds a given config.
LAYOUTS = {
    "hf": (huggingface.IMAGEGPT, huggingface.VIT, huggingface_clip.CLIP, huggingface_clip.SIGLIP),
    "timm": (timm.VIT,),
    "open_clip": (open_clip.CLIP, open_clip.SIGLIP),
}
READABLE = (
    *(layout for layouts in LAYOUTS.values() for layout in layouts), google.VIT, google.SIGLIP, openai.IMAGEGPT,
)  # fmt: skip
METADATA = "saccade"
FLOATING = ("float64", "float32", "float16", "bfloat16")


def load(path, *, variant=None, dtype=None, **told):
    """See ``saccade.models.load``."""
    source = sources.open_source(path)
    config, names, layout = understand(source, variant, told)
    dtypes = parameter_dtypes(source, names, layout)
    if dtype is None:
        dtype = links.common(dtypes.values())
    dtype = np.dtype(dtype)
    if dtype.name not in FLOATING:
        raise ValueError(f"saccade.models.load: {dtype=}, expected one of {', '.join(FLOATING)}")
    return links.fill(names, layout, source.read, dict.fromkeys(layout, dtype)), config


def load_palette(path):
    """See ``saccade.models.load_palette``."""
    from saccade.palette import Palette

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "kmeans_centers.npy").is_file():
        return Palette.load(folder / "kmeans_centers.npy")
    clusters = sources.read_beside(folder / "x").get("preprocessor_config.json", {}).get("clusters")
    if clusters is None:
        raise ValueError(f"{folder}: neither kmeans_centers.npy nor clusters in a preprocessor_config.json")
    with sources.malformed(folder / "preprocessor_config.json", ValueError, TypeError):
        return Palette((np.asarray(clusters, np.float64) + 1) * 127.5)


def understand(source, variant=None, told=None):
    """(config, names, our layout) of a source whose tensors are all there, and of the right shapes."""
    told = told or {}
    if METADATA in source.metadata:
        theirs, who, usual = None, [("the metadata", _own_facts(source))], {}
        kind = json.loads(source.metadata[METADATA])["kind"]
    else:
        theirs = recognise(source)
        kind, usual = theirs.kind, theirs.usual
        who = [("the tensors' shapes", theirs.sizes(Found(source.shapes, source.where)))]
        who += theirs.said(source)
    resnet = any("image.layers" in some for _, some in who)
    if variant is not None:
        who.append((f"variant={variant!r}", facts.variant_facts(source.where, kind, variant)))
    who.append(("a keyword", facts.keyword_facts(source.where, kind, told, resnet)))
    usual = {fact: x for fact, x in usual.items() if not (resnet and fact == "image.gelu")}
    config = facts.complete(source.where, kind, who, usual)
    towers = [config, *(getattr(config, tower) for tower in ("image", "text") if hasattr(config, tower))]
    if any(getattr(tower, "depth", 0) > len(source.shapes) for tower in towers):
        raise ValueError(f"{source.where}: more blocks than its {len(source.shapes)} tensors")
    with sources.malformed(source.where, ZeroDivisionError):
        layout = module_of(config).layout(config)
    if theirs is None:
        names, title, found = _own_names(layout), f"a {type(config).__name__} of saccade", source.shapes
    else:
        names = tensors(theirs, config, layout, Found(source.shapes, source.where))
        title = theirs.title
        found = {name: shape for name, shape in source.shapes.items() if not theirs.ignored(name)}
    links.check(source.where, title, found, links.shapes(names, layout))
    return config, names, layout


def recognise(source):
    """The layout whose names a source has."""
    for layout in READABLE:
        if any(name in source.shapes for name in layout.mark):
            return layout
    some = ", ".join(list(source.shapes)[:4]) or "nothing"
    raise ValueError(f"{source.where}: no layout that saccade knows has tensors such as {some}")


def tensors(theirs, config, layout, found=None):
    """A layout's ``Names`` for a config; ValueError if it has no place for one of the parameters."""
    names = theirs.names(config, found)
    names.links = links.existing(names.links, layout)
    placed = {ours for parts in names.links.values() for ours, _ in parts} | set(names.zeros)
    if homeless := [name for name in layout if name not in placed]:
        raise ValueError(f"{theirs.title} has no place for {', '.join(homeless)}")
    return names


def _own_names(layout):
    return links.Names({name: [(name, links.whole)] for name in layout})


def _own_facts(source):
    with sources.malformed(source.where, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        said = json.loads(source.metadata[METADATA])
        if said["kind"] not in facts.KINDS:
            raise ValueError(f"kind {said['kind']!r}")
        return dict(said["facts"])


def parameter_dtypes(source, names, layout):
    """Our name -> dtype: that of the tensors it is made of, or the one that holds all of them."""
    found = {}
    for theirs, parts in names.links.items():
        dtype = source.dtypes[theirs]
        if dtype.name not in FLOATING:
            raise ValueError(f"{source.where}: {theirs} is {dtype.name}, expected one of {', '.join(FLOATING)}")
        for ours, _ in parts:
            found[ours] = links.common((found.get(ours, dtype), dtype))
    return {name: found.get(name, np.dtype(np.float32)) for name in layout}


def save(path, parameters, config):
    """See ``saccade.models.save``."""
    layout = module_of(config).layout(config)
    links.check(
        path,
        f"a {type(config).__name__}",
        {n: x.shape for n, x in parameters.items()},
        links.shapes(_own_names(layout), layout),
    )
    said = {"kind": facts.kind_of(config), "facts": facts.facts_of(config)}
    entries = {name: (x.shape, x.dtype) for name, x in parameters.items()}
    safe.write(path, entries, parameters.__getitem__, {METADATA: json.dumps(said)})


def convert(path, out, library, *, variant=None, **told):
    """Write a checkpoint in another library's layout, every number with the bits that it had.

    Args:
        path: what ``load`` takes.
        out: a .safetensors file; or a folder, for the file that the library looks for with its config beside it.
        library: "hf", "timm", "open_clip", or "saccade".
        variant, told: as for ``load``.
    """
    source = sources.open_source(path)
    config, names, layout = understand(source, variant, told)
    out = Path(out)
    as_folder = out.suffix != ".safetensors"
    if library == "saccade":
        target, theirs = out / "model.safetensors" if as_folder else out, None
    else:
        theirs = layout_for(library, config)
        file = "open_clip_model.safetensors" if library == "open_clip" else "model.safetensors"
        target = out / file if as_folder else out
        written = tensors(theirs, config, layout)
        beside = theirs.beside(config) if as_folder else {}
    parameters = links.fill(names, layout, source.read, parameter_dtypes(source, names, layout))
    target.parent.mkdir(parents=True, exist_ok=True)
    if theirs is None:
        save(target, parameters, config)
        return target
    own = next(iter(parameters.values())).dtype
    entries = {}
    for name, shape in links.shapes(written, layout).items():
        parts = written.links.get(name)
        dtypes = [parameters[ours].dtype for ours, _ in parts] if parts else [written.constants[name][1] or own]
        entries[name] = shape, links.common(dtypes)
    safe.write(target, entries, lambda name: links.joined(written, parameters, name), {"format": "pt"})
    for name, table in beside.items():
        with replacing(out / name) as file:
            file.write(json.dumps(table, indent=1).encode())
    return target


def layout_for(library, config):
    """The library's layout of models of that config."""
    if library not in LAYOUTS:
        raise ValueError(f"convert: layout {library!r}, expected one of {', '.join((*LAYOUTS, 'saccade'))}")
    kind = facts.kind_of(config)
    siglip = isinstance(config, CLIPConfig) and config.logit_bias is not None
    found = [one for one in LAYOUTS[library] if one.kind == kind and ("SigLIP" in one.title) == siglip]
    if not found:
        raise ValueError(f"convert: {library} has no layout of {'SigLIP' if siglip else kind}")
    return found[0]
