"""The recipes' commands that judge models; a recipe is imported when its command runs."""

import json
from pathlib import Path

import typer

from saccade.files import replacing
from saccade.recipes.options import BATCH, CLASSES, DEVICE, JSON, MASKS, MODEL, RATE, SEED, SOURCE, WARM_UP, WORKERS
from saccade.recipes.progress import one_sentence


def add(app):
    """Add these commands to the application."""

    @app.command(epilog="Example: saccade fewshot run/model.safetensors train test --shots 5 --shots 10")
    def fewshot(
        model: Path = MODEL,
        train: str = typer.Argument(help=CLASSES + "examples are drawn from it."),
        test: str = typer.Argument(help=CLASSES + "judged on all of it."),
        shots: list[int] = typer.Option([1, 5, 10, 25], help="Examples of each class; may be repeated."),
        penalty: list[float] = typer.Option([1024.0], help="Of the least squares; may be repeated."),
        seeds: int = typer.Option(3, help="How often examples are drawn."),
        layer: int = typer.Option(None, help="Whose features; the last if not given, ImageGPT's middle."),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """How few examples of each class suffice? Least squares from frozen features, in closed form."""
        with one_sentence("saccade fewshot"):
            from saccade.recipes import fewshot

            options = dict(shots=shots, penalties=penalty, seeds=seeds, layer=layer, workers=workers, device=device)
            _keep(json_file, fewshot.run(model, train, test, **options))

    @app.command(epilog='Example: saccade zeroshot run/model.safetensors test --prompts "a photo of a {}."')
    def zeroshot(
        model: Path = MODEL,
        source: str = typer.Argument(help=CLASSES + "their names go into the prompts."),
        prompts: str = typer.Option("a photo of a {}.", help="One, a file of them, or openai: the paper's 80."),
        names: Path = typer.Option(None, help="File with what to call each class, one a line, in their order."),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """Name pictures that a CLIP was not trained to name, by prompts."""
        with one_sentence("saccade zeroshot"):
            from saccade.recipes import zeroshot

            called = None if names is None else names.read_text(encoding="utf-8").splitlines()
            options = dict(prompts=prompts, names=called, workers=workers, device=device)
            _keep(json_file, zeroshot.run(model, source, **options))

    @app.command(epilog="Example: saccade recall run/model.safetensors captions.csv")
    def recall(
        model: Path = MODEL,
        source: str = typer.Argument(help=SOURCE + " It must have captions."),
        top: list[int] = typer.Option([1, 5, 10], help="Among so many best; may be repeated."),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """Find the caption of each picture and the picture of each caption: recall among the best k."""
        with one_sentence("saccade recall"):
            from saccade.recipes import recall as recipe

            _keep(json_file, recipe.run(model, source, top=top, workers=workers, device=device))

    @app.command(epilog="Example: saccade probe run/model.safetensors train test --picture layers.png")
    def probe(
        model: Path = MODEL,
        train: str = typer.Argument(help=CLASSES + "fitted to it; a fifth is held out to choose by."),
        test: str = typer.Argument(help=CLASSES + "judged on it."),
        layer: list[int] = typer.Option(None, help="May be repeated; all if not given."),
        solver: str = typer.Option("lbfgs", help="lbfgs, or sgd where there are many pictures."),
        masks: int = MASKS,
        picture: Path = typer.Option(None, help="Plot of accuracy by layer, a .png."),
        seed: int = typer.Option(0, help=SEED),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """What does each layer know? A linear classifier on every layer's features."""
        with one_sentence("saccade probe"):
            from saccade.recipes import probe

            options = dict(layers=layer or None, solver=solver, masks=masks, seed=seed, picture=picture)
            _keep(json_file, probe.run(model, train, test, **options, workers=workers, device=device))

    @app.command(epilog="Example: saccade accuracy tuned/model.safetensors test --masks 5")
    def accuracy(
        model: Path = MODEL,
        source: str = typer.Argument(help=CLASSES + "those that the model names."),
        top: list[int] = typer.Option([1, 5], help="Among so many best; may be repeated."),
        masks: int = MASKS,
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """How many pictures does a model's own classifier name right?"""
        with one_sentence("saccade accuracy"):
            from saccade.recipes import accuracy as recipe

            _keep(json_file, recipe.run(model, source, top=top, masks=masks, workers=workers, device=device))

    @app.command(epilog="Example: saccade evaluate run/model.safetensors --data digits=train:test --out evaluation")
    def evaluate(
        models: list[str] = typer.Argument(help="Checkpoints that recipes wrote."),
        data: list[str] = typer.Option(help="NAME=TRAIN:TEST, sources with the same classes; may be repeated."),
        out: Path = typer.Option("evaluation", help="Folder; an interrupted command goes on in it."),
        shots: list[int] = typer.Option([1, 5, 10], help="Examples of each class; may be repeated."),
        seeds: int = typer.Option(3, help="How often examples are drawn."),
        prompts: str = typer.Option("a photo of a {}.", help="Of a CLIP: one, a file of them, or openai."),
        baseline: str = typer.Option(None, help="The model whose linear probe is what zero-shot is compared with."),
        workers: int = WORKERS, device: str = DEVICE,
    ):  # fmt: skip
        """Judge models on data sets: zero-shot, few-shot and by linear probes, on one page."""
        with one_sentence("saccade evaluate"):
            from saccade.recipes import evaluate as recipe

            options = dict(shots=shots, seeds=seeds, prompts=prompts, workers=workers, device=device)
            recipe.run(models, dict(map(_named, data)), out, baseline=baseline, **options)

    @app.command(epilog="Example: saccade efficiency short/model.safetensors long/model.safetensors --source test")
    def efficiency(
        models: list[str] = typer.Argument(help="What saccade pretrain clip wrote, of one objective or several."),
        source: str = typer.Option(help=CLASSES + "their names go into the prompts."),
        out: Path = typer.Option("efficiency.html", help="The page."),
        prompts: str = typer.Option("a photo of a {}.", help="One, a file of them, or openai: the paper's 80."),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """Which objective learns faster? Zero-shot accuracy against pictures seen in training."""
        with one_sentence("saccade efficiency"):
            from saccade.recipes import efficiency as recipe

            options = dict(prompts=prompts, workers=workers, device=device)
            _keep(json_file, recipe.run(models, source, out, **options))

    @app.command(epilog="Example: saccade scaling train test --width 32 --width 64 --share 0.1 --share 1 --out scaling")
    def scaling(
        source: str = typer.Argument(help=CLASSES + "trained on parts of it."),
        test: str = typer.Argument(help=CLASSES + "judged on it."),
        out: Path = typer.Option("scaling", help="Folder; an interrupted command goes on in it."),
        width: list[int] = typer.Option([32, 64], help="Of the models; may be repeated."),
        depth: list[int] = typer.Option([2, 4], help="May be repeated."),
        share: list[float] = typer.Option([0.25, 1.0], help="Of the pictures; may be repeated."),
        steps: list[int] = typer.Option([100, 400], help="Of training; may be repeated."),
        preset: str = typer.Option("vit-tiny", help="Of saccade pretrain vit, for all else."),
        batch: int = BATCH, learning_rate: float = RATE, warm_up: int = WARM_UP, workers: int = WORKERS,
        device: str = DEVICE,
    ):  # fmt: skip
        """How does the error fall with model size, data and compute? Trains a grid of ViTs and fits the power law."""
        with one_sentence("saccade scaling"):
            from saccade.recipes import scaling as recipe

            sizes = dict(widths=width, depths=depth, shares=share, steps=steps, preset=preset)
            how = dict(batch=batch, learning_rate=learning_rate, warm_up=warm_up, workers=workers, device=device)
            recipe.run(source, test, out, **sizes, **how)


def _named(text):
    """("digits", ("train", "test")) of "digits=train:test"."""
    name, _, pair = text.partition("=")
    train, _, test = pair.partition(":")
    if not (name and train and test) or ":" in test:
        raise ValueError(f"--data {text!r}, expected NAME=TRAIN:TEST")
    return name, (train, test)


def _keep(path, result):
    if path is not None:
        with replacing(path) as file:
            file.write(json.dumps(result, indent=1).encode())
