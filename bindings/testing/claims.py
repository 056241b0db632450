"""What a function promises: the oracle judges that and lists the rest as not judged."""

from dataclasses import dataclass

from saccade.testing.strategies import DTYPES, LAYOUTS

OPTIONS = {
    "attention": ("mask", "bias", "causal", "key_lengths", "scale", "return_lse"),
    "qkv_attention": ("causal", "key_lengths", "scale"),
    "varlen_attention": ("causal", "scale"),
    "patch_embed": ("mean", "std"),
    "layer_norm": ("eps", "residual"),
    "rms_norm": ("eps", "residual"),
    "gelu": ("kind",),
    "mlp": ("kind",),
    "l2_normalize": ("eps",),
    "conv2d": ("stride", "padding"),
    "batch_norm": ("eps",),
    "average_pool": ("size",),
    "softmax_cross_entropy": ("ignore_index", "label_smoothing", "reduction"),
    "sigmoid_cross_entropy": ("reduction",),
    "linear_cross_entropy": ("ignore_index", "label_smoothing", "reduction"),
}


@dataclass(frozen=True)
class Claims:
    """What is promised. Everything, unless said otherwise.

    Attributes:
        dtypes: names of the dtypes that are taken.
        layouts: how arrays may lie in memory (names in ``strategies.LAYOUTS``).
        options: keyword options that are known (all of ``OPTIONS`` if None). The others are left at their defaults.
        axes: "bhtd", or "bthd" for attention functions whose tokens come before their heads.
        head_dims: head dimensions that are taken (any if None).
        zero_sized: whether arrays with no elements are taken.
        empty_rows: whether a query that may see no key gives output 0, log-sum-exp −inf and gradients 0.
        causal: "end" (query t sees keys s <= t + S − T), "start" (s <= t) or "square" (T = S alone).
        value_dims: whether values may have another last dimension than keys.
        soft_labels: whether a cross entropy takes rows of probabilities besides classes.
        biases: whether bias vectors may be given.
        factors: whether logit_scale and logit_bias may be 0-d arrays, which have gradients, besides numbers.
        batch_invariant: whether an item has the same bits whatever else is in the batch.
    """

    dtypes: tuple[str, ...] = tuple(map(str, DTYPES))
    layouts: tuple[str, ...] = LAYOUTS
    options: tuple[str, ...] | None = None
    axes: str = "bhtd"
    head_dims: tuple[int, ...] | None = None
    zero_sized: bool = True
    empty_rows: bool = True
    causal: str = "end"
    value_dims: bool = True
    soft_labels: bool = True
    biases: bool = True
    factors: bool = True
    batch_invariant: bool = False
