"""What shapes do not tell of a model, from whoever says it, and the config that all of it makes.

A fact is a field of a config; those of a CLIP's towers are "image.…" and "text.…". Who says what: the shapes, the
file's metadata, the files beside it, a named variant, the keywords. Two who differ are an error; what nobody says is
as the layout's library takes for granted.
"""

from dataclasses import MISSING, asdict, fields

from saccade.models.clip import CLIPConfig, TextConfig
from saccade.models.imagegpt import ImageGPTConfig
from saccade.models.resnet import ResNetConfig
from saccade.models.vit import ViTConfig
from saccade.weights.layout import prefixed

KINDS = {"imagegpt": ImageGPTConfig, "vit": ViTConfig, "clip": CLIPConfig}
MUST_BE_TOLD = ("heads", "gelu", "eps")
# What a variant's name does not settle for a checkpoint: what it was trained with, or on.
_NOT_OF_A_NAME = {
    "imagegpt": ("length", "classes", "objective", "causal", "bias"),
    "vit": ("image_size", "classes", "representation", "pooling", "eps", "gelu", "mean", "std", "head_bias",
            "channels", "embed_norm", "embed_bias", "norm", "causal", "bias"),
    "clip": ("logit_scale", "logit_bias", "image.classes", "image.representation", "image.head_bias"),
}  # fmt: skip


def kind_of(config):
    """The kind whose config this is."""
    found = [kind for kind, cls in KINDS.items() if type(config) is cls]
    if not found:
        raise ValueError(f"a {type(config).__name__}, expected one of {', '.join(c.__name__ for c in KINDS.values())}")
    return found[0]


def facts_of(config):
    """All of a config's fields as facts."""
    table = asdict(config)
    if not isinstance(config, CLIPConfig):
        return table
    image, text = table.pop("image"), table.pop("text")
    return table | prefixed("image", image) | prefixed("text", text)


def variant_facts(where, kind, name):
    """What the name of a variant settles."""
    from saccade.models.variants import VARIANTS

    if name not in VARIANTS:
        raise ValueError(f"{where}: {name!r} is no variant, expected one of {', '.join(VARIANTS)}")
    if kind_of(VARIANTS[name]) != kind:
        raise ValueError(f"{where}: the variant {name!r} is of another kind than the checkpoint, {kind}")
    return {fact: x for fact, x in facts_of(VARIANTS[name]).items() if fact not in _NOT_OF_A_NAME[kind]}


def keyword_facts(where, kind, keywords, resnet):
    """Keywords as facts: ``heads=12``; of a CLIP ``image={"heads": 12}``, or ``gelu="erf"`` for both towers."""
    if kind != "clip":
        known, facts = _names(KINDS[kind]), dict(keywords)
    else:
        towers = {"image": _names(ResNetConfig if resnet else ViTConfig), "text": _names(TextConfig)}
        own, facts = _names(CLIPConfig), {}
        known = own | {f"{tower}.{name}" for tower, names in towers.items() for name in names}
        for name, value in keywords.items():
            if name in towers and isinstance(value, dict):
                facts |= prefixed(name, value)
            elif name in own:
                facts[name] = value
            else:
                facts |= {f"{tower}.{name}": value for tower in towers if name in towers[tower]} or {name: value}
    if unknown := sorted(facts.keys() - known):
        raise ValueError(
            f"{where}: {', '.join(unknown)}: no fact of {kind}, expected some of {', '.join(sorted(known))}"
        )
    return facts


def _names(cls):
    return {field.name for field in fields(cls)} - {"image", "text"}


def complete(where, kind, told, usual):
    """The config.

    Args:
        where: the path, for errors.
        kind: of the model.
        told: pairs (who says so, facts).
        usual: facts for what nobody says.
    """
    facts, by = {}, {}
    for who, some in told:
        for fact, value in some.items():
            if fact in facts and not _same(facts[fact], value):
                raise ValueError(f"{where}: {fact} is {facts[fact]!r} by {by[fact]} but {value!r} by {who}")
            facts.setdefault(fact, value)
            by.setdefault(fact, who)
    facts = {fact: x for fact, x in usual.items() if fact not in facts} | facts
    return build(where, kind, facts)


def _same(x, y):
    return (list(x) if isinstance(x, tuple) else x) == (list(y) if isinstance(y, tuple) else y)


def build(where, kind, facts):
    """The config of a kind from its facts."""
    if kind != "clip":
        return _make(where, KINDS[kind], facts, "")
    image = ResNetConfig if "image.layers" in facts else ViTConfig
    towers = {
        tower: _make(where, cls, _under(tower, facts), f"{tower}.")
        for tower, cls in (("image", image), ("text", TextConfig))
    }
    own = {fact: x for fact, x in facts.items() if "." not in fact}
    return _make(where, CLIPConfig, own | towers, "")


def _under(tower, facts):
    return {fact.removeprefix(f"{tower}."): x for fact, x in facts.items() if fact.startswith(f"{tower}.")}


def _make(where, cls, facts, prefix):
    must = {f.name for f in fields(cls) if f.default is MISSING} | {f.name for f in fields(cls)} & set(MUST_BE_TOLD)
    absent = [prefix + name for name in sorted(must - facts.keys())]
    if absent:
        raise ValueError(
            f"{where}: {', '.join(absent)} cannot be told from the tensors; name a variant, as variant='vit-B/16', or "
            f"say it, as {absent[0].rpartition('.')[2]}=…"
        )
    try:
        return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in facts.items()})
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: {error}") from None
