"""``saccade accuracy``: how many pictures a model's own classifier names right.

A masked ImageGPT sees pictures masked, as in training, and what most of several masks say counts (Chen et al. 2020).
"""

import numpy as np
import torch
from rich.console import Console

from saccade.recipes.data import open_source
from saccade.recipes.features import BATCH, Extractor
from saccade.recipes.loading import once
from saccade.recipes.palettes import reporting
from saccade.recipes.progress import progress_bar
from saccade.recipes.zeroshot import ranks_of


def majority(votes, rng):
    """What most of a row's votes (n, masks) are; of several as frequent, one at random."""
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    drawn = np.where(counts == counts.max(1, keepdims=True), rng.random(votes.shape), -1)
    return votes[np.arange(len(votes)), drawn.argmax(1)]


def run(model, source, *, top=(1, 5), masks=1, seed=0, workers=0, device=None, console=None):
    """Name the pictures of a source.

    Args:
        model: file of a ViT or an ImageGPT with a classifier, as ``pretrain vit`` and ``finetune`` write.
        source: of pictures with the classes that the model was trained to name.
        top: how many of the best guesses may hold the right one, for each accuracy.
        masks: of each picture, for a masked ImageGPT; "top" is the mean over them.
        seed: of ties between masks.
        workers, device, console: as for the other recipes.

    Returns:
        {"top": {k: accuracy}, "ensemble": accuracy of the majority of masks, None for one, "pictures"}.
    """
    console, extractor = console or Console(), Extractor(model, device)
    pictures, names = open_source(source), extractor.facts.get("classes")
    count = getattr(extractor.config, "classes", None)
    if not count:
        raise ValueError(f"{model} has no classifier: saccade finetune gives it one")
    own = pictures.classes or ()
    if len(own) != count or (names is not None and list(own) != list(names)):
        raise ValueError(f"{source} has the classes {list(own)}, expected {names or f'{count} of them'} as {model} has")
    logits, labels = _logits(extractor, pictures, masks, workers, console)
    n, masks, classes = logits.shape
    ranks = ranks_of(logits.reshape(n * masks, classes), np.repeat(labels, masks))
    found = {k: float((ranks < k).mean()) for k in top if k <= classes}
    said = ", ".join(f"top-{k} {100 * share:.1f} %" for k, share in found.items())
    ensemble = None
    if masks > 1:
        ensemble = float((majority(logits.argmax(2), np.random.default_rng(seed)) == labels).mean())
        said += f"; the majority of {masks} masks {100 * ensemble:.1f} %"
    console.print(f"{n} pictures of {classes} classes: {said}")
    return {"top": found, "ensemble": ensemble, "pictures": n}


def _logits(extractor, pictures, masks, workers, console):
    """(logits (n, masks, classes), labels (n,)) of all pictures."""
    prepare, found, labels = extractor.preparing(masks), [], []
    with progress_bar("Naming pictures", console) as progress, torch.no_grad():
        jobs, skipped = progress(pictures.in_order()), reporting(console)
        for *inputs, label in once(pictures, jobs, prepare, BATCH, skipped=skipped, workers=workers):
            found.append(extractor.logits(inputs))
            labels.append(label)
    if not labels:
        raise ValueError(f"{pictures.path}: none of its pictures can be used")
    return np.concatenate(found), np.concatenate(labels)
