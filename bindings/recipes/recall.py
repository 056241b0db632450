"""``saccade recall``: find the caption of each picture, and the picture of each caption, among all of a source."""

import numpy as np
import torch
from rich.console import Console

from saccade.recipes.cuts import Broken, central
from saccade.recipes.data import open_source
from saccade.recipes.loading import once
from saccade.recipes.palettes import reporting
from saccade.recipes.progress import progress_bar
from saccade.recipes.zeroshot import BATCH, clip_of, ranks_of


def run(model, source, *, top=(1, 5, 10), workers=0, device=None, console=None):
    """Recall of the right one among the best k, by the products of embeddings.

    Captions that occur several times are each other's rivals, as the pairs of a test set are taken in print.

    Args:
        model: file of a CLIP that a recipe wrote.
        source: of pictures with captions.
        top: each k.
        workers, device, console: as for the other recipes.

    Returns:
        {"captions of pictures": {k: recall}, "pictures of captions": {k: recall}, "pairs"}.
    """
    console = console or Console()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clip, tokenize, _ = clip_of(model, device)
    pairs, side, images, texts = open_source(source), clip.config.image.image_size, [], []

    def prepare(sample, rng):
        if sample.caption is None:
            raise Broken(sample.name, "no caption")
        return central(sample.picture, side), tokenize([sample.caption])[0].numpy()

    with progress_bar("Embedding pairs", console) as progress, torch.no_grad():
        jobs, skipped = progress(pairs.in_order()), reporting(console)
        for picture, tokens in once(pairs, jobs, prepare, BATCH, skipped=skipped, workers=workers):
            images.append(clip.encode_images(torch.from_numpy(picture).to(device)).float().cpu().numpy())
            texts.append(clip.encode_texts(torch.from_numpy(tokens).to(device)).float().cpu().numpy())
    if not images:
        raise ValueError(f"{source}: none of its pairs can be used")
    found = recalls(np.concatenate(images), np.concatenate(texts), top)
    for name, each in found.items():
        console.print(f"{name}: " + ", ".join(f"recall@{k} {100 * share:.1f} %" for k, share in each.items()))
    return found | {"pairs": sum(map(len, images))}


def recalls(images, texts, top):
    """Both directions' recall for each k, of embeddings (n, e) whose rows belong together; ``BATCH`` rows at a time."""
    found = {}
    for name, own, others in (("captions of pictures", images, texts), ("pictures of captions", texts, images)):
        starts = range(0, len(own), BATCH)
        ranks = [ranks_of(own[i : i + BATCH] @ others.T, np.arange(len(own))[i : i + BATCH]) for i in starts]
        found[name] = {k: float((np.concatenate(ranks) < k).mean()) for k in top if k <= len(own)}
    return found
