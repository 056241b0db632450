"""``saccade zeroshot``: name pictures by the captions they are nearest to (Radford et al. 2021, section 3.1)."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from saccade.recipes import saved
from saccade.recipes.captions import Captions, tokenizer_of
from saccade.recipes.cuts import Broken, central
from saccade.recipes.data import open_source
from saccade.recipes.loading import once
from saccade.recipes.palettes import reporting
from saccade.recipes.progress import progress_bar
from saccade.torch import CLIP

BATCH = 64
PROMPT = "a photo of a {}."


def openai_templates():
    """The paper's 80 prompts for ImageNet, "{}" in place of the name: read from open_clip's package, not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            'the 80 prompts are in open_clip, which is not installed: pip install "saccade[clip]"'
        )
    file = Path(spec.submodule_search_locations[0]) / "zero_shot_metadata.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    (node,) = (node for node in assigned if ast.unparse(node.targets[0]) == "OPENAI_IMAGENET_TEMPLATES")
    texts = [part for part in ast.walk(node.value) if isinstance(part, ast.JoinedStr)]
    return ["".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else "{}" for part in text.values)
            for text in texts]  # fmt: skip


def templates_of(prompts):
    """Templates from "openai", from a file with one a line, or from one text with "{}" for the name."""
    if prompts == "openai":
        return openai_templates()
    lines = [prompts] if "{}" in prompts else Path(prompts).read_text(encoding="utf-8").splitlines()
    templates = [line for line in lines if line.strip()]
    if wrong := next((line for line in templates if line.count("{}") != 1), None):
        raise ValueError(f"prompt {wrong!r}, expected exactly one {{}} where the name goes")
    if not templates:
        raise ValueError(f"{prompts} holds no prompts")
    return templates


@torch.no_grad()
def classifier(model, tokenize, names, templates, device):
    """One vector a class, (classes, embed): the mean of the embeddings of all its prompts, of length 1 again."""
    rows = []
    for name in names:
        tokens = tokenize([template.replace("{}", name) for template in templates])
        each = torch.cat([model.encode_texts(part.to(device)) for part in tokens.split(BATCH)])
        rows.append(torch.nn.functional.normalize(each.mean(0), dim=0))
    return torch.stack(rows)


def scorer(model, facts, tokenize, names, templates, device):
    """A function from image embeddings (b, embed) to a score for each class, (b, classes): products with
    ``classifier``, or of a model that predicts captions the mean log-likelihood of all prompts of a class."""
    if facts.get("objective") != "caption":
        weight = classifier(model, tokenize, names, templates, device)
        return lambda embeddings: embeddings @ weight.T
    captions = Captions(model, facts["tokenizer"])
    prompts = tokenize([template.replace("{}", name) for name in names for template in templates]).to(device)

    def score(embeddings):
        return captions.log_likelihoods(embeddings, prompts).unflatten(1, (len(names), len(templates))).mean(2)

    return score


def run(model, source, *, prompts=PROMPT, names=None, top=(1, 5), workers=0, device=None, console=None):
    """Name the pictures of a source by its classes.

    Args:
        model: file of a CLIP that a recipe wrote.
        source: of pictures with classes.
        prompts: as ``templates_of`` takes them.
        names: what to call the classes in prompts, in their order; the classes' own names if None, "_" as a space.
        top: how many of the best guesses may hold the right one, for each accuracy.
        workers, device, console: as for the other recipes.

    Returns:
        {"top": {k: accuracy}, "classes": {name: accuracy}, "pictures", "prompts"}.
    """
    console = console or Console()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clip, tokenize, facts = clip_of(model, device)
    pictures, templates = open_source(source), templates_of(prompts)
    if pictures.classes is None:
        raise ValueError(f"{source} has no classes: put each in a folder of its own")
    names = [name.replace("_", " ") for name in pictures.classes] if names is None else list(names)
    if len(names) != len(pictures.classes):
        raise ValueError(f"{len(names)} names, expected {len(pictures.classes)} as {source} has classes")
    score = scorer(clip, facts, tokenize, names, templates, device)
    side, scores, labels = clip.config.image.image_size, [], []

    def prepare(sample, rng):
        if sample.label is None:
            raise Broken(sample.name, "no label")
        return central(sample.picture, side), np.int64(sample.label)

    with progress_bar("Naming pictures", console) as progress, torch.no_grad():
        jobs, skipped = progress(pictures.in_order()), reporting(console)
        for images, label in once(pictures, jobs, prepare, BATCH, skipped=skipped, workers=workers):
            scores.append(score(clip.encode_images(torch.from_numpy(images).to(device))).float().cpu().numpy())
            labels.append(label)
    if not labels:
        raise ValueError(f"{source}: none of its pictures can be used")
    scores, labels = np.concatenate(scores), np.concatenate(labels)
    ranks = ranks_of(scores, labels)
    found = {k: float((ranks < k).mean()) for k in top if k <= len(names)}
    each = {name: float((ranks[labels == i] < 1).mean()) for i, name in enumerate(names) if (labels == i).any()}
    said = ", ".join(f"top-{k} {100 * share:.1f} %" for k, share in found.items())
    console.print(f"{len(labels)} pictures of {len(names)} classes, {len(templates)} prompts each: {said}")
    return {"top": found, "classes": each, "pictures": len(labels), "prompts": templates}


def ranks_of(scores, labels):
    """How many classes score more than the right one; an equal one before it counts as more: (n, k), (n,) -> (n,)."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(1)


def clip_of(path, device):
    """(the CLIP in a file, on a device; a function from texts to its token ids; its facts)."""
    clip, facts = saved.load(path)
    if not isinstance(clip, CLIP):
        raise ValueError(f"{path} is a {type(clip).__name__}, expected a CLIP")
    tokenizer, context = tokenizer_of(facts.get("tokenizer", "clip")), clip.config.text.context
    tokenize = lambda texts: torch.from_numpy(tokenizer.tokenize(texts, context, True).astype(np.int64))  # noqa: E731
    return clip.to(device), tokenize, facts
