"""The recipes' commands: options, and what to install; a recipe is imported when its command runs."""

import json
from pathlib import Path

import typer

from saccade.files import replacing
from saccade.recipes.progress import one_sentence

SOURCE = "A folder of pictures, a .csv, .tsv or .jsonl of captions, a .npy or .npz, or tar shards."
SEED = "Seed of everything that is drawn."
# the options of every pretrain command
OUT = typer.Option("run", help="Folder of the run; the same command goes on where an interrupted one stopped.")
SET = typer.Option([], "--set", help="Change a size of the preset's model, as in width=256; may be repeated.")
STEPS = typer.Option(None, help="Of the optimiser.")
EPOCHS = typer.Option(None, help="Instead of steps.")
BATCH = typer.Option(None, help="Samples a step, over all ranks.")
PARTS = typer.Option(1, help="Compute a batch in so many parts, to save memory; the loss is that of the whole.")
RATE = typer.Option(None, help="The learning rate after warm-up.")
WARM_UP = typer.Option(None, help="Steps of warm-up.")
PRECISION = typer.Option("float32", help="float32, or bfloat16 or float16 computation with float32 parameters.")
LEAST_AREA = typer.Option(0.05, help="Share of a picture that a random cut shows at least; 1: no cuts.")
MIRROR = typer.Option(True, help="Mirror half of the pictures.")
HELD_OUT = typer.Option(None, help="Like the source: what the model is judged on at every checkpoint.")
WORKERS = typer.Option(0, help="Processes that read pictures.")
DEVICE = typer.Option(None, help="cpu or cuda; a GPU if there is one.")
LOG_EVERY = typer.Option(10, help="Steps.")
# and of those that judge a model
MODEL = typer.Argument(help="What a pretrain command wrote: run/model.safetensors.")
CLASSES = "With a folder of pictures for each class, or arrays with labels: "
JSON = typer.Option(None, "--json", help="Write the results to this file.")
SAVE_EVERY = typer.Option(1000, help="Steps from checkpoint to checkpoint.")


def add(app):
    """Add the recipes' commands to the application."""
    app.add_typer(_palette(), name="palette")
    app.add_typer(_pretrain(), name="pretrain")
    _finetune(app)
    _generate(app)
    _evaluate(app)
    _visualize(app)


def _group(text):
    return typer.Typer(help=text, no_args_is_help=True)


def _palette():
    group = _group("Fit a palette of colours to pictures; turn pictures into tokens, and back.")

    @group.command(epilog="Example: saccade palette fit photos --out kmeans_centers.npy --colors 512")
    def fit(
        source: str = typer.Argument(help=SOURCE),
        out: Path = typer.Option("kmeans_centers.npy", help="The file to write, in ImageGPT's own form."),
        colors: int = typer.Option(512, help="How many colours."),
        size: int = typer.Option(None, help="Cut and resize pictures to this side first; every pixel if not given."),
        iterations: int = typer.Option(100, help="At most so many steps of k-means."),
        seed: int = typer.Option(0, help=SEED),
    ):
        """Fit a palette to all pixels, exactly: the same on every machine."""
        with one_sentence("saccade palette fit"):
            from saccade.recipes import palettes

            palettes.fit(source, out, colors=colors, side=size, iterations=iterations, seed=seed)

    @group.command(epilog="Example: saccade palette encode photos --palette kmeans_centers.npy --out tokens --size 32")
    def encode(
        folder: Path = typer.Argument(help="Of pictures."),
        palette: Path = typer.Option("kmeans_centers.npy", help="What palette fit wrote."),
        out: Path = typer.Option("tokens", help="Folder for the tokens: a.jpg becomes a.jpg.npy."),
        size: int = typer.Option(None, help="Cut and resize pictures to this side first."),
    ):
        """Replace every pixel by the number of the nearest colour."""
        with one_sentence("saccade palette encode"):
            from saccade.recipes import palettes

            palettes.encode(folder, palette, out, side=size)

    @group.command(epilog="Example: saccade palette decode tokens --palette kmeans_centers.npy --out decoded")
    def decode(
        folder: Path = typer.Argument(help="Of .npy files of tokens."),
        palette: Path = typer.Option("kmeans_centers.npy", help="What palette fit wrote."),
        out: Path = typer.Option("decoded", help="Folder for the pictures: a.jpg.npy becomes a.jpg.png."),
    ):
        """Turn tokens into pictures."""
        with one_sentence("saccade palette decode"):
            from saccade.recipes import palettes

            palettes.decode(folder, palette, out)

    return group


def _pretrain():
    group = _group("Train a model from nothing, under a paper's hyperparameters or your own; also under torchrun.")

    @group.command(
        epilog="Example: saccade pretrain imagegpt photos --palette kmeans_centers.npy --preset igpt-tiny --out run"
    )
    def imagegpt(
        source: str = typer.Argument(help=SOURCE),
        palette: Path = typer.Option("kmeans_centers.npy", help="What saccade palette fit wrote."),
        preset: str = typer.Option("igpt-s", help="igpt-s, igpt-m, igpt-l, igpt-xl, igpt-tiny."),
        objective: str = typer.Option("autoregressive", help="autoregressive, or bert with 15 % of pixels masked."),
        out: Path = OUT, changes: list[str] = SET, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH,
        parts: int = PARTS, learning_rate: float = RATE, warm_up: int = WARM_UP, precision: str = PRECISION,
        seed: int = typer.Option(0, help=SEED), held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE,
        log_every: int = LOG_EVERY, save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Predict pixels from pixels: ImageGPT."""
        with one_sentence("saccade pretrain imagegpt"):
            from saccade.recipes import pretrain_imagegpt

            settings = _settings(changes, steps, epochs, batch, parts, learning_rate, warm_up, precision, seed)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            pretrain_imagegpt.run(
                source, out, palette=palette, preset=preset, objective=objective, **settings, **running
            )

    @group.command(epilog="Example: saccade pretrain vit photos --preset vit-tiny --epochs 30 --out run")
    def vit(
        source: str = typer.Argument(help=SOURCE + " Its folders are the classes."),
        preset: str = typer.Option("vit-b16-in21k", help="As scaling-vit-g14 or vit-tiny; a wrong one lists all."),
        objective: str = typer.Option(None, help="supervised, or masked: tell hidden patches' mean colours."),
        classes: int = typer.Option(None, help="How many; for shards, which do not say."),
        least_area: float = LEAST_AREA, mirror: bool = MIRROR,
        out: Path = OUT, changes: list[str] = SET, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH,
        parts: int = PARTS, learning_rate: float = RATE, warm_up: int = WARM_UP, precision: str = PRECISION,
        seed: int = typer.Option(0, help=SEED), held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE,
        log_every: int = LOG_EVERY, save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Name pictures, or tell hidden patches' colours: ViT and Scaling ViT."""
        with one_sentence("saccade pretrain vit"):
            from saccade.recipes import pretrain_vit

            settings = _settings(changes, steps, epochs, batch, parts, learning_rate, warm_up, precision, seed)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            cut = dict(least=least_area, mirror=mirror)
            pretrain_vit.run(
                source, out, preset=preset, objective=objective, classes=classes, **cut, **settings, **running
            )

    @group.command(epilog="Example: saccade pretrain clip captions.csv --preset clip-tiny --epochs 30 --out run")
    def clip(
        source: str = typer.Argument(help=SOURCE + " It must have captions."),
        preset: str = typer.Option("clip-vit-b32", help="As siglip-vit-b16 or clip-tiny; a wrong one lists all."),
        start: str = typer.Option(None, "--continue", help="A CLIP to go on from, as at a higher resolution."),
        tokenizer: str = typer.Option(None, help="clip (OpenAI's), bytes, or a file of merges."),
        image_column: str = typer.Option(None, help="Of a table: where a row names its picture; image if not given."),
        caption_column: str = typer.Option(None, help="Of a table: where its caption stands; caption if not given."),
        out: Path = OUT, changes: list[str] = SET, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH,
        parts: int = PARTS, learning_rate: float = RATE, warm_up: int = WARM_UP, precision: str = PRECISION,
        seed: int = typer.Option(0, help=SEED), held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE,
        log_every: int = LOG_EVERY, save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Tell which caption belongs to which picture: CLIP and SigLIP."""
        with one_sentence("saccade pretrain clip"):
            from saccade.recipes import pretrain_clip

            settings = _settings(changes, steps, epochs, batch, parts, learning_rate, warm_up, precision, seed)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            columns = {"image_column": image_column, "caption_column": caption_column}
            columns = {name: column for name, column in columns.items() if column is not None}
            own = dict(preset=preset, start=start, tokenizer=tokenizer, source_options=columns)
            pretrain_clip.run(source, out, **own, **settings, **running)

    return group


def _settings(changes, steps, epochs, batch, parts, learning_rate, warm_up, precision, seed):
    """What the options of a pretrain command change in a preset."""
    training = dict(steps=steps, epochs=epochs, batch=batch, parts=parts, precision=precision, seed=seed)
    optimization = dict(peak=learning_rate, warm_up=warm_up)
    given = [{name: x for name, x in one.items() if x is not None} for one in (training, optimization)]
    return {"model": dict(map(_change, changes)), "training": given[0], "optimization": given[1]}


def _change(text):
    name, _, value = text.partition("=")
    if not name.replace(".", "").isidentifier() or not value:
        raise ValueError(f"--set {text}, expected NAME=VALUE as in width=256")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _finetune(app):
    @app.command(epilog="Example: saccade finetune run/model.safetensors photos --image-size 64 --out tuned")
    def finetune(
        model: Path = MODEL,
        source: str = typer.Argument(help=CLASSES + "trained on it."),
        image_size: int = typer.Option(None, help="Another side for a ViT: its positions are interpolated."),
        keep_head: bool = typer.Option(False, help="Go on with a ViT's own head, for the same classes."),
        dropout: float = typer.Option(0.0, help="Of a ViT."),
        least_area: float = LEAST_AREA, mirror: bool = MIRROR,
        out: Path = OUT, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH, parts: int = PARTS,
        learning_rate: float = RATE, warm_up: int = WARM_UP, precision: str = PRECISION,
        seed: int = typer.Option(0, help=SEED), held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE,
        log_every: int = LOG_EVERY, save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Train all of a model, with a new head, to name classes: ViT, CLIP's ViT, ImageGPT."""
        with one_sentence("saccade finetune"):
            from saccade.recipes import finetune

            settings = _settings([], steps, epochs, batch, parts, learning_rate, warm_up, precision, seed)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            cut = dict(image_size=image_size, keep_head=keep_head, dropout=dropout, least=least_area, mirror=mirror)
            del settings["model"]
            finetune.run(model, source, out, **cut, **settings, **running)


def _generate(app):
    @app.command(epilog="Example: saccade generate run/model.safetensors --complete photos --top-k 40 --out drawn.png")
    def generate(
        model: Path = MODEL,
        out: Path = typer.Option("drawn.png", help="The pictures side by side."),
        count: int = typer.Option(16, help="How many pictures, or how many to complete."),
        complete: str = typer.Option(None, help="Pictures to complete: " + SOURCE.lower()),
        given: float = typer.Option(0.5, help="The share of rows that the model sees of those."),
        draws: int = typer.Option(3, help="Completions of each."),
        temperature: float = typer.Option(1.0, help="1 draws from the model itself, 0 takes the likeliest."),
        top_k: int = typer.Option(None, help="Draw from so many likeliest colours alone."),
        top_p: float = typer.Option(None, help="Draw from the fewest colours that have this share of the probability."),
        seed: int = typer.Option(0, help=SEED),
        zoom: int = typer.Option(4, help="The side of a pixel."),
        device: str = DEVICE,
    ):  # fmt: skip
        """Draw pictures, from nothing or from the upper part of given ones."""
        with one_sentence("saccade generate"):
            from saccade.recipes import generate

            sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
            shown = dict(count=count, complete=complete, given=given, draws=draws, zoom=zoom, device=device)
            generate.run(model, out, **sampling, **shown)


def _evaluate(app):
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
        picture: Path = typer.Option(None, help="Plot of accuracy by layer, a .png."),
        seed: int = typer.Option(0, help=SEED),
        workers: int = WORKERS, device: str = DEVICE, json_file: Path = JSON,
    ):  # fmt: skip
        """What does each layer know? A linear classifier by L-BFGS on every layer's features."""
        with one_sentence("saccade probe"):
            from saccade.recipes import probe

            options = dict(layers=layer or None, seed=seed, picture=picture, workers=workers, device=device)
            _keep(json_file, probe.run(model, train, test, **options))

    @app.command(epilog="Example: saccade evaluate run/model.safetensors --data digits=train:test --out evaluation")
    def evaluate(
        models: list[str] = typer.Argument(help="Checkpoints that recipes wrote."),
        data: list[str] = typer.Option(help="NAME=TRAIN:TEST, sources with the same classes; may be repeated."),
        out: Path = typer.Option("evaluation", help="Folder; an interrupted command goes on in it."),
        shots: list[int] = typer.Option([1, 5, 10], help="Examples of each class; may be repeated."),
        seeds: int = typer.Option(3, help="How often examples are drawn."),
        prompts: str = typer.Option("a photo of a {}.", help="Of a CLIP: one, a file of them, or openai."),
        workers: int = WORKERS, device: str = DEVICE,
    ):  # fmt: skip
        """Judge models on data sets: zero-shot, few-shot and by linear probes, on one page."""
        with one_sentence("saccade evaluate"):
            from saccade.recipes import evaluate as recipe

            options = dict(shots=shots, seeds=seeds, prompts=prompts, workers=workers, device=device)
            recipe.run(models, dict(map(_named, data)), out, **options)


def _named(text):
    """("digits", ("train", "test")) of "digits=train:test"."""
    name, _, pair = text.partition("=")
    train, _, test = pair.partition(":")
    if not (name and train and test) or ":" in test:
        raise ValueError(f"--data {text!r}, expected NAME=TRAIN:TEST")
    return name, (train, test)


def _visualize(app):
    @app.command(epilog="Example: saccade visualize classes/model.safetensors cat.jpg dog.jpg --out inside.html")
    def visualize(
        model: str = typer.Argument(help="A checkpoint of a ViT or CLIP, or hf:owner/name."),
        pictures: list[Path] = typer.Argument(None, help="Attention is shown on each."),
        out: Path = typer.Option("inside.html", help="The page."),
        text: list[str] = typer.Option([], help="For a CLIP's similarity matrix; may be repeated."),
        variant: str = typer.Option(None, help="What the file does not say of itself, as in clip-ViT-B/32."),
    ):
        """Look inside a vision transformer: filters, positions, distances and rollouts of attention."""
        with one_sentence("saccade visualize"):
            from saccade.recipes import visualize as recipe

            recipe.run(model, pictures or [], out, texts=text, variant=variant)


def _keep(path, result):
    if path is not None:
        with replacing(path) as file:
            file.write(json.dumps(result, indent=1).encode())
