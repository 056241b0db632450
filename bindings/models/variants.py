"""Every variant of every model by name, and what each holds and costs, counted from shapes: nothing is allocated.

A name is the model's and the variant's in its module: "imagegpt-S", "vit-B/16", "clip-ViT-B/32", "siglip-B/16"; a
"-map" at the end of a ViT's says that it pools by attention, as Scaling ViT does, and has no classifier.
"""

import math
from dataclasses import asdict, dataclass

from saccade.models import clip, imagegpt, resnet, vit
from saccade.models.initialization import count

IMAGENET_CLASSES = 1000
_VITS = ("Ti/16", "S/32", "S/16", "B/32", "B/16", "B/8", "L/32", "L/16", "H/14", "g/14", "G/14")
_SCALING_VITS = (
    "s/28", "s/16", "S/32", "Ti/16", "B/32", "S/16", "B/28", "B/16", "L/16", "So400m/14", "g/14", "G/14",
)  # fmt: skip


def _configs():
    found = {f"imagegpt-{name}": imagegpt.variant(name) for name in imagegpt.VARIANTS}
    found |= {"imagegpt-L@48px": imagegpt.variant("L", length=48**2)}
    found |= {"imagegpt-XL@64px": imagegpt.variant("XL", length=64**2)}
    found |= {f"vit-{name}": vit.variant(name, classes=IMAGENET_CLASSES) for name in _VITS}
    found |= {f"vit-{name}-map": vit.variant(name, pooling="map") for name in _SCALING_VITS}
    found |= {f"clip-{name}": clip.variant(name) for name in clip.VARIANTS}
    return found | {f"siglip-{name}": clip.siglip_variant(name) for name in clip.SIGLIP_VARIANTS}


VARIANTS = _configs()


@dataclass(frozen=True)
class Cost:
    """What a model holds, and what one picture costs it (of a CLIP, whose texts are not counted: its image tower).

    ``parameters`` are those that are learned, ``tokens`` what attention sees of a picture, ``flops`` those of the
    products and convolutions of a forward pass, 2 for each multiply-add, ``activations`` the bytes that the blocks
    (and a ResNet's stem) keep for their gradients in float32; attention's weights are never among them.
    """

    parameters: int
    tokens: int
    flops: int
    activations: int


def cost(config):
    """The ``Cost`` of a config of any of the models."""
    model = module_of(config)
    parameters = count(model.layout(config))
    picture = config.image if isinstance(config, clip.CLIPConfig) else config
    if isinstance(picture, resnet.ResNetConfig):
        return Cost(parameters, picture.tokens, _resnet_flops(picture), _resnet_activations(picture))
    if isinstance(picture, imagegpt.ImageGPTConfig):
        n = picture.length
        flops = block_flops(picture, n) + 2 * n * picture.width * picture.colors
        return Cost(parameters, n, flops, _kept(picture, n))
    n, flops = picture.tokens, _vit_flops(picture)
    if isinstance(config, clip.CLIPConfig) and config.projects_images:
        flops += 2 * picture.width * config.embed
    return Cost(parameters, n, flops, _kept(picture, n))


def module_of(config):
    """The module whose config this is: imagegpt, vit, clip or resnet."""
    modules = {imagegpt.ImageGPTConfig: imagegpt, vit.ViTConfig: vit, clip.CLIPConfig: clip}
    return (modules | {resnet.ResNetConfig: resnet})[type(config)]


def table():
    """A dictionary for each variant: its name and what ``cost`` says of it."""
    return [{"name": name, **asdict(cost(config))} for name, config in VARIANTS.items()]


def block_flops(config, n):
    """All blocks' products with weights, and those of attention: query with key and weight with value."""
    e = config.width
    pairs = n * (n + 1) // 2 if config.causal else n * n
    return config.depth * (2 * n * (4 * e * e + 2 * e * config.hidden) + 2 * 2 * pairs * e)


def _vit_flops(config):
    e, n = config.width, config.tokens
    patches = (n - config.prefix) * 2 * config.channels * config.patch_size**2 * e
    head = 0
    if config.pooling == "map":
        head += 2 * (2 * e * e + 2 * n * e * e + 2 * n * e) + 2 * 2 * e * config.hidden
    head += 2 * e * (config.representation or 0)
    head += 2 * (config.representation or e) * (config.classes or 0)
    return patches + block_flops(config, n) + head


def _kept(config, n):
    """Each block keeps two sums, two norms and their statistics, query, key, value, output and normaliser of attention,
    and the MLP's inside before and after its GELU."""
    e, statistics = config.width, 2 if config.norm == "rms" else 4
    return 4 * config.depth * n * (8 * e + 2 * config.hidden + config.heads + statistics)


def _stages(config):
    """(side of the input, of the output, width of the input, inside) of each of a ResNet's blocks."""
    side, c = config.image_size // 4, config.width
    groups = [group for group, blocks in enumerate(config.layers) for _ in range(blocks)]
    for i, group in enumerate(groups):
        inside = config.width * 2**group
        yield side, side // config.stride(i), c, inside
        side, c = side // config.stride(i), resnet.EXPANSION * inside


def _resnet_flops(config):
    sizes = {name: math.prod(shape) for name, (shape, _) in resnet.layout(config).items()}
    multiplied = sum((config.image_size // 2) ** 2 * sizes[f"stem.conv{i}.weight"] for i in (1, 2, 3))
    for i, (before, after, _, _) in enumerate(_stages(config)):
        for name, side in (("conv1", before), ("conv2", before), ("conv3", after), ("downsample", after)):
            multiplied += side**2 * sizes.get(f"blocks.{i}.{name}.weight", 0)
    multiplied += sizes["pool.q.weight"] + config.tokens * sizes["pool.kv.weight"] + sizes["pool.out.weight"]
    return 2 * (multiplied + 2 * config.tokens * config.features)


def _resnet_activations(config):
    """Convolutions keep their inputs, batch norms theirs, rectifiers their outputs, each once."""
    half = config.image_size // 2
    kept = config.image_size**2 * config.channels + half**2 * 4 * config.width
    for before, after, c, inside in _stages(config):
        kept += before**2 * (c + 4 * inside) + after**2 * resnet.EXPANSION * inside
        if after != before:
            kept += after**2 * inside
        if after != before or c != resnet.EXPANSION * inside:
            kept += after**2 * (resnet.EXPANSION * inside + (c if after != before else 0))
    return 4 * kept
