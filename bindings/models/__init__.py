"""ImageGPT, ViT and CLIP as functions of (parameters, input, op set), and their checkpoints.

    from saccade.models import vit
    config = vit.variant("B/16", classes=1000)
    logits = vit.forward(vit.initialize(config), images, config, saccade)

Each module has a frozen config, ``variant(name)`` for the papers' sizes, ``initialize(config, seed)``, ``forward``,
and the stages by name. ``saccade.torch`` has the same models as ``nn.Module``. ``load`` reads a checkpoint of any
layout in use, ``save`` writes one of ours, ``variants`` has every variant's numbers.
"""

from saccade.models import clip as clip, imagegpt as imagegpt, resnet as resnet, vit as vit


def load(source, *, variant=None, dtype=None, **told):
    """(parameters, config) of a checkpoint: NumPy arrays by name, and an ImageGPTConfig, ViTConfig or CLIPConfig.

    Read are, and known by the names and shapes of their tensors: safetensors in the layouts of saccade, Hugging Face
    (ImageGPT, ViT, CLIP, SigLIP), timm (ViT) and open_clip (CLIP, SigLIP), also in shards; the .npz archives of
    vision_transformer and big_vision (ViT, SigLIP); OpenAI's TensorFlow checkpoints (ImageGPT), by their index or
    the beginning of their names; OpenAI's TorchScript archives (CLIP), and state dictionaries, which torch reads
    (``weights_only``). No code in a file is run.

    Shapes give the sizes. What they cannot tell comes from the file's metadata, ``config.json`` and its like beside
    it, a named variant and keywords; two that contradict each other are a ValueError, as are tensors that are
    missing, not expected or of another shape.

    What a safetensors file holds as it is to lie in memory is mapped, copy on write, as safetensors does for PyTorch:
    arrays may be written to, the file stays as it is, and it must not be overwritten in place while they are in use
    (``save`` and most programs put a new file there instead).

    Args:
        source: a file or folder; or "hf:owner/name", a repository of the Hugging Face Hub, which is downloaded.
        variant: a name from ``saccade.models.variants.VARIANTS``, as "clip-ViT-B/32".
        dtype: of all parameters; as stored if None, and where that differs, the dtype that holds all of them.
        told: fields of the config, as ``heads=12``; of a CLIP's towers as ``image={"heads": 12}``, or for both
            ``gelu="erf"``.
    """
    return _files().load(source, variant=variant, dtype=dtype, **told)


def save(path, parameters, config):
    """Write parameters and config to a safetensors file, from which ``load`` needs nothing else."""
    _files().save(path, parameters, config)


def load_palette(source):
    """The palette of an ImageGPT: ``kmeans_centers.npy`` in the checkpoint's folder, or the clusters of Hugging Face's
    ``preprocessor_config.json``."""
    return _files().load_palette(source)


def _files():
    try:
        from saccade.weights import files
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f'checkpoints need {missing.name}, which is not installed: pip install "saccade[models]"'
        ) from None
    return files
