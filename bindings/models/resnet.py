"""CLIP's ResNet: images b h w c -> features (b, embed).

Radford et al. 2021, section 2.3.1, after He et al. 2016: three convolutions in the stem, average pools where others
stride (so that nothing is left out), and attention pooling instead of the mean. Stages and their parameters:

    stem        conv<1…3>.weight (e', c', 3, 3), norm<1…3>.…
    blocks.<i>  conv<1…3>.weight, norm<1…3>.…, and where the shape changes downsample.weight, downsample_norm.…
    pool        positions (n + 1, e), q.weight, q.bias, kv.weight (2e, e), kv.bias, out.weight (embed, e), out.bias

A norm is a batch norm: scale, bias, mean, variance, all (e,). The latter two are statistics that training counts and
nothing differentiates: buffers of the modules in ``saccade.torch``.
"""

from dataclasses import dataclass

from saccade.models import initialization as initial
from saccade.models.transformer import runner, under

EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of ``layers`` blocks in each of its four groups; ``width`` is that of the first group's inside.

    ``embed`` is the width of the features, ``heads`` those of the attention pooling, ``eps`` of the batch norms.
    """

    layers: tuple
    width: int
    embed: int
    heads: int
    image_size: int = 224
    channels: int = 3
    eps: float = 1e-5
    mean: tuple | None = None
    std: tuple | None = None

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"ResNetConfig: {self.layers=}, expected four numbers of blocks")
        if self.heads < 1 or self.features % self.heads or self.width % 2:
            raise ValueError(f"ResNetConfig: {self.width=} and {self.heads=}, expected an even width that divides")
        if self.image_size % 32 or self.image_size < 1:
            raise ValueError(f"ResNetConfig: {self.image_size=}, expected a multiple of 32")

    @property
    def depth(self):
        """How many blocks there are."""
        return sum(self.layers)

    @property
    def features(self):
        """The width of the last block's output."""
        return 8 * EXPANSION * self.width

    @property
    def tokens(self):
        """How many tokens the attention pooling sees: the last block's pixels and their mean."""
        return (self.image_size // 32) ** 2 + 1

    def stride(self, i):
        """By how much block i shrinks its input."""
        first = [sum(self.layers[:group]) for group in (1, 2, 3)]
        return 2 if i in first else 1


def batch_norm(parameters, x, ops, config):
    """With the statistics that training left: b h w c -> b h w c."""
    scale, bias, mean, variance = (parameters[name] for name in ("scale", "bias", *initial.STATISTICS))
    return ops.batch_norm(x, mean, variance, scale, bias, eps=config.eps)


def _convolved(parameters, x, ops, config, number, normalize, **options):
    x = ops.conv2d(x, parameters[f"conv{number}.weight"], **options)
    return normalize(under(parameters, f"norm{number}"), x, ops, config)


def stem(parameters, images, ops, config, *, normalize=batch_norm):
    """Normalised pixels through three convolutions and a pool: b h w c -> b h/4 w/4 width."""
    b, h, w, c = images.shape
    if (h, w) != (config.image_size,) * 2:
        raise ValueError(f"resnet: {tuple(images.shape)=}, expected (b, {config.image_size}, {config.image_size}, {c})")
    weight = parameters["conv1.weight"]
    # patches of one pixel under the identity: the images' own numbers, divided and normalised
    pixels = ops.identity(c, like=weight).reshape(c, c, 1, 1)
    x = ops.patch_embed(images, pixels, mean=config.mean, std=config.std).reshape(b, h, w, c)
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = ops.relu(_convolved(parameters, x, ops, config, number, normalize, stride=stride, padding=1))
    return ops.average_pool(x, size=2)


def bottleneck(parameters, x, ops, config, *, stride=1, normalize=batch_norm):
    """relu(x + convolutions of 1, 3 and 1 pixels): b h w c -> b h/stride w/stride 4 width."""
    out = ops.relu(_convolved(parameters, x, ops, config, 1, normalize))
    out = ops.relu(_convolved(parameters, out, ops, config, 2, normalize, padding=1))
    if stride > 1:
        x, out = ops.average_pool(x, size=stride), ops.average_pool(out, size=stride)
    out = _convolved(parameters, out, ops, config, 3, normalize)
    if "downsample.weight" in parameters:
        x = ops.conv2d(x, parameters["downsample.weight"])
        x = normalize(under(parameters, "downsample_norm"), x, ops, config)
    return ops.relu(out + x)


def pool(parameters, x, ops, config):
    """Attention of the pixels' mean over the pixels and itself: b h w e -> b embed."""
    b, h, w, e = x.shape
    heads, d = config.heads, e // config.heads
    x_bne = x.reshape(b, h * w, e)
    x_bne = ops.concatenate([ops.mean(x_bne, 1).reshape(b, 1, e), x_bne], 1) + parameters["positions"]
    query = ops.linear(x_bne[:, :1], parameters["q.weight"], parameters["q.bias"])
    query_bh1d = query.reshape(b, 1, heads, d).swapaxes(1, 2)
    key_value = ops.linear(x_bne, parameters["kv.weight"], parameters["kv.bias"]).reshape(b, h * w + 1, 2, heads, d)
    key_bhnd, value_bhnd = (key_value[:, :, i].swapaxes(1, 2) for i in range(2))
    attended = ops.attention(query_bh1d, key_bhnd, value_bhnd).reshape(b, e)
    return ops.linear(attended, parameters["out.weight"], parameters["out.bias"])


STAGES = {"stem": stem, "blocks": bottleneck, "pool": pool}


def compose(run, images, config):
    """The stages in order, each called by ``run(name, input)``."""
    x = run("stem", images)
    for i in range(config.depth):
        x = run(f"blocks.{i}", x, stride=config.stride(i))
    return run("pool", x)


def forward(parameters, images, config, ops, *, stages=None):
    """Features (b, embed) of images b h w c, uint8 or floating point in 0…1; arguments as for ``vit.forward``."""
    return compose(runner(STAGES, parameters, ops, config, stages), images, config)


def _norm_layout(width, scale=initial.ones):
    zeros, ones = initial.zeros, initial.ones
    begun = {"scale": scale, "bias": zeros, "mean": zeros, "variance": ones}
    return {name: ((width,), begin) for name, begin in begun.items()}


def _conv_layout(out, c, size):
    return ((out, c, size, size), initial.uniform((c * size**2) ** -0.5))


def _block_layout(width, c, stride):
    out = EXPANSION * width
    entries = {}
    for number, (rows, columns, size) in enumerate(((width, c, 1), (width, width, 3), (out, width, 1)), 1):
        entries[f"conv{number}.weight"] = _conv_layout(rows, columns, size)
        begin = initial.zeros if number == 3 else initial.ones
        entries |= initial.prefixed(f"norm{number}", _norm_layout(rows, begin))
    if stride > 1 or c != out:
        entries["downsample.weight"] = _conv_layout(out, c, 1)
        entries |= initial.prefixed("downsample_norm", _norm_layout(out))
    return entries


def layout(config):
    """Names, shapes and beginnings, as in the paper's release: each block's last norm begins at 0."""
    width, e = config.width, config.features
    entries, c = {}, config.channels
    for number, out in enumerate((width // 2, width // 2, width), 1):
        entries[f"stem.conv{number}.weight"] = _conv_layout(out, c, 3)
        entries |= initial.prefixed(f"stem.norm{number}", _norm_layout(out))
        c = out
    groups = [group for group, blocks in enumerate(config.layers) for _ in range(blocks)]
    for i, group in enumerate(groups):
        inside = width * 2**group
        entries |= initial.prefixed(f"blocks.{i}", _block_layout(inside, c, config.stride(i)))
        c = EXPANSION * inside
    fan, bias = initial.normal(e**-0.5), initial.uniform(e**-0.5)
    entries["pool.positions"] = ((config.tokens, e), fan)
    for name, rows in (("q", e), ("kv", 2 * e), ("out", config.embed)):
        entries |= {f"pool.{name}.weight": ((rows, e), fan), f"pool.{name}.bias": ((rows,), bias)}
    return entries


def initialize(config, seed=0):
    """Parameters as training begins: NumPy, float32, drawn from ``seed``."""
    return initial.draw(layout(config), seed)
