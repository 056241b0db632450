"""Which file an operation lives in, the same in the reference and in every backend."""

FAMILIES = {
    "attention": ("attention", "qkv_attention", "varlen_attention"),
    "patches": ("patch_embed",),
    "layers": ("linear", "embedding", "layer_norm", "rms_norm", "gelu", "mlp", "l2_normalize"),
    "convolution": ("conv2d", "batch_norm", "average_pool"),
    "losses": ("softmax_cross_entropy", "sigmoid_cross_entropy", "linear_cross_entropy", "clip_loss", "siglip_loss"),
}
# Functions of integers, without gradients.
PALETTE = ("assign", "update", "fit")


def family_of(function):
    """The file of an operation, or of its ``_forward`` or ``_backward``, or of a palette's function."""
    operation = function.removesuffix("_forward").removesuffix("_backward")
    if operation in PALETTE:
        return "palette"
    return next(family for family, operations in FAMILIES.items() if operation in operations)
