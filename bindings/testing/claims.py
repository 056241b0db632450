"""What a function promises: the oracle judges that and lists the rest as not judged."""

from dataclasses import dataclass, fields, replace

import ml_dtypes
import numpy as np

from saccade.testing.layouts import LAYOUTS

DTYPES = tuple(map(np.dtype, (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)))

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
        single_tokens: whether there may be a single query or key.
        causal: "end" (query t sees keys s <= t + S − T), "start" (s <= t) or "square" (T = S alone).
        value_dims: whether values may have another last dimension than keys.
        soft_labels: whether a cross entropy takes rows of probabilities besides classes.
        ignored: whether labels may be ``ignore_index``.
        biases: whether bias vectors may be given.
        non_finite: whether NaN and infinities among the inputs show in what depends on them, and there alone.
        exact: whether a palette is the definition's to the last bit; if not, it is held to arithmetic in float32.
        empty_clusters: whether a centre that no colour is nearest to keeps its place; if not, there are fewer centres
            than colours, too.
        given_start: whether a palette's fit begins with the centres that it is given; if not, where its own lie is not
            judged, only that every colour is assigned to the nearest of them.
        most_centers: how many centres a palette may have (any number if None).
        factors: whether logit_scale and logit_bias may be 0-d arrays, which have gradients, besides numbers.
        losses: the dtype of a loss: "wide" (float32; float64 for float64) or the "input"'s.
        gradients: whether it can be differentiated.
        deterministic: whether the same call gives the same bits.
        batch_invariant: whether an item has the same bits whatever else is in the batch.
    """

    dtypes: tuple[str, ...] = tuple(map(str, DTYPES))
    layouts: tuple[str, ...] = LAYOUTS
    options: tuple[str, ...] | None = None
    axes: str = "bhtd"
    head_dims: tuple[int, ...] | None = None
    zero_sized: bool = True
    empty_rows: bool = True
    single_tokens: bool = True
    causal: str = "end"
    value_dims: bool = True
    soft_labels: bool = True
    ignored: bool = True
    biases: bool = True
    non_finite: bool = True
    exact: bool = True
    empty_clusters: bool = True
    given_start: bool = True
    most_centers: int | None = None
    factors: bool = True
    losses: str = "wide"
    gradients: bool = True
    deterministic: bool = True
    batch_invariant: bool = False

    def takes(self, operation, option):
        """Whether a keyword option is known to the function."""
        return option in OPTIONS.get(operation, ()) and (self.options is None or option in self.options)

    def truth(self, operation, arguments, options):
        """The options as the definition says them: a causal mask that is aligned at the start is a mask there."""
        if operation != "attention" or self.causal != "start" or not options.get("causal"):
            return options
        t, s = arguments[0].shape[2], arguments[1].shape[2]
        mask = np.arange(s) <= np.arange(t)[:, None]
        kept = {name: x for name, x in options.items() if name != "causal"}
        return {**kept, "mask": mask & kept["mask"] if "mask" in kept else mask}

    def unclaimed(self, operation):
        """What is not judged because it is not claimed, in words."""
        said = []
        for one in fields(self):
            value, usual = getattr(self, one.name), one.default
            if value == usual or one.name in ("axes", "options", "batch_invariant", "losses"):
                continue
            missing = f": {', '.join(x for x in usual if x not in value)}" if isinstance(usual, tuple) else ""
            said.append(one.name.replace("_", " ") + (missing or f" ({value})"))
        said += [f"the option {name}" for name in OPTIONS.get(operation, ()) if not self.takes(operation, name)]
        return said


def read_claims(table, known):
    """``known`` claims with those of a table of attributes, as TOML has them, in their place.

    Raises:
        ValueError: an attribute is unknown.
    """
    names = [one.name for one in fields(Claims)]
    for name in table:
        if name not in names:
            raise ValueError(f"claims: {name} is unknown, expected one of {', '.join(names)}")
    return replace(known, **{name: tuple(x) if isinstance(x, list) else x for name, x in table.items()})
