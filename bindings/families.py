"""Which file an operation lives in, the same in the reference and in every backend, and what it has gradients for."""

FAMILIES = {
    "attention": ("attention", "qkv_attention", "varlen_attention"),
    "patches": ("patch_embed",),
    "layers": ("linear", "embedding", "layer_norm", "rms_norm", "gelu", "mlp", "l2_normalize"),
    "convolution": ("conv2d", "batch_norm", "average_pool"),
    "losses": ("softmax_cross_entropy", "sigmoid_cross_entropy", "linear_cross_entropy", "clip_loss", "siglip_loss"),
}
# The arguments that ``f_backward`` has gradients for, in its order.
GRADIENTS = {
    "attention": ("query", "key", "value", "bias"),
    "qkv_attention": ("qkv",),
    "varlen_attention": ("query", "key", "value"),
    "patch_embed": ("images", "weight", "bias"),
    "linear": ("x", "weight", "bias"),
    "embedding": ("weight",),
    "layer_norm": ("x", "scale", "bias", "residual"),
    "rms_norm": ("x", "scale", "residual"),
    "gelu": ("x",),
    "mlp": ("x", "weight_in", "bias_in", "weight_out", "bias_out"),
    "l2_normalize": ("x",),
    "conv2d": ("x", "weight", "bias"),
    "batch_norm": ("x", "scale", "bias"),
    "average_pool": ("x",),
    "softmax_cross_entropy": ("logits",),
    "sigmoid_cross_entropy": ("logits",),
    "linear_cross_entropy": ("hidden", "weight"),
    "clip_loss": ("image_embeddings", "text_embeddings", "logit_scale"),
    "siglip_loss": ("image_embeddings", "text_embeddings", "logit_scale", "logit_bias"),
}
# Functions of integers, without gradients.
PALETTE = ("assign", "update", "fit")


def family_of(function):
    """The file of an operation, or of its ``_forward`` or ``_backward``, or of a palette's function."""
    operation = function.removesuffix("_forward").removesuffix("_backward")
    if operation in PALETTE:
        return "palette"
    return next(family for family, operations in FAMILIES.items() if operation in operations)
