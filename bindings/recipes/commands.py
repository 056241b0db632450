"""The recipes' commands: options, and what to install; a recipe is imported when its command runs."""

from pathlib import Path

import typer

from saccade.recipes import judging
from saccade.recipes.options import (
    BATCH,
    CLASSES,
    DEVICE,
    EPOCHS,
    HELD_OUT,
    LEAST_AREA,
    LOG_EVERY,
    MIRROR,
    MODEL,
    OUT,
    PARTS,
    PRECISION,
    RATE,
    RECOMPUTE,
    SAVE_EVERY,
    SEED,
    SET,
    SHARD,
    SOURCE,
    STEPS,
    WARM_UP,
    WORKERS,
)
from saccade.recipes.progress import one_sentence


def add(app):
    """Add the recipes' commands to the application."""
    app.add_typer(_palette(), name="palette")
    app.add_typer(_pretrain(), name="pretrain")
    _finetune(app)
    _generate(app)
    judging.add(app)
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
        parts: int = PARTS, shard: bool = SHARD, recompute: bool = RECOMPUTE, learning_rate: float = RATE,
        warm_up: int = WARM_UP, precision: str = PRECISION, seed: int = typer.Option(0, help=SEED),
        held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE, log_every: int = LOG_EVERY,
        save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Predict pixels from pixels: ImageGPT."""
        with one_sentence("saccade pretrain imagegpt"):
            from saccade.recipes import pretrain_imagegpt

            length = dict(steps=steps, epochs=epochs, batch=batch)
            saving = dict(parts=parts, shard=shard, recompute=recompute)
            settings = _settings(changes, learning_rate, warm_up, precision=precision, seed=seed, **length, **saving)
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
        parts: int = PARTS, shard: bool = SHARD, recompute: bool = RECOMPUTE, learning_rate: float = RATE,
        warm_up: int = WARM_UP, precision: str = PRECISION, seed: int = typer.Option(0, help=SEED),
        held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE, log_every: int = LOG_EVERY,
        save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Name pictures, or tell hidden patches' colours: ViT and Scaling ViT."""
        with one_sentence("saccade pretrain vit"):
            from saccade.recipes import pretrain_vit

            length = dict(steps=steps, epochs=epochs, batch=batch)
            saving = dict(parts=parts, shard=shard, recompute=recompute)
            settings = _settings(changes, learning_rate, warm_up, precision=precision, seed=seed, **length, **saving)
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
        objective: str = typer.Option(None, help="contrastive, bag-of-words or caption; what to learn from pairs."),
        tokenizer: str = typer.Option(None, help="clip (OpenAI's), bytes, or a file of merges."),
        image_column: str = typer.Option(None, help="Of a table: where a row names its picture; image if not given."),
        caption_column: str = typer.Option(None, help="Of a table: where its caption stands; caption if not given."),
        gather: bool = typer.Option(False, help="Under torchrun: all embeddings at once; fewer messages, more memory."),
        out: Path = OUT, changes: list[str] = SET, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH,
        parts: int = PARTS, shard: bool = SHARD, recompute: bool = RECOMPUTE, learning_rate: float = RATE,
        warm_up: int = WARM_UP, precision: str = PRECISION, seed: int = typer.Option(0, help=SEED),
        held_out: str = HELD_OUT, workers: int = WORKERS, device: str = DEVICE, log_every: int = LOG_EVERY,
        save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Tell which caption belongs to which picture: CLIP and SigLIP."""
        with one_sentence("saccade pretrain clip"):
            from saccade.recipes import pretrain_clip

            length = dict(steps=steps, epochs=epochs, batch=batch)
            saving = dict(parts=parts, shard=shard, recompute=recompute)
            settings = _settings(changes, learning_rate, warm_up, precision=precision, seed=seed, **length, **saving)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            columns = {"image_column": image_column, "caption_column": caption_column}
            columns = {name: column for name, column in columns.items() if column is not None}
            own = dict(preset=preset, start=start, objective=objective, tokenizer=tokenizer, source_options=columns)
            pretrain_clip.run(source, out, gather=gather, **own, **settings, **running)

    return group


def _settings(changes, learning_rate, warm_up, **training):
    """What the options of a pretrain command change in a preset."""
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
        layer: int = typer.Option(None, help="Of an ImageGPT: the head reads this layer's features, not the last's."),
        keep_head: bool = typer.Option(False, help="Go on with a ViT's own head, for the same classes."),
        dropout: float = typer.Option(0.0, help="Of a ViT."),
        least_area: float = LEAST_AREA, mirror: bool = MIRROR,
        out: Path = OUT, steps: int = STEPS, epochs: float = EPOCHS, batch: int = BATCH, parts: int = PARTS,
        shard: bool = SHARD, recompute: bool = RECOMPUTE, learning_rate: float = RATE, warm_up: int = WARM_UP,
        precision: str = PRECISION, seed: int = typer.Option(0, help=SEED), held_out: str = HELD_OUT,
        workers: int = WORKERS, device: str = DEVICE,
        log_every: int = LOG_EVERY, save_every: int = SAVE_EVERY,
    ):  # fmt: skip
        """Train all of a model, with a new head, to name classes: ViT, CLIP's ViT, ImageGPT."""
        with one_sentence("saccade finetune"):
            from saccade.recipes import finetune

            length = dict(steps=steps, epochs=epochs, batch=batch)
            saving = dict(parts=parts, shard=shard, recompute=recompute)
            settings = _settings([], learning_rate, warm_up, precision=precision, seed=seed, **length, **saving)
            running = dict(
                workers=workers, device=device, log_every=log_every, save_every=save_every, held_out=held_out
            )
            cut = dict(image_size=image_size, layer=layer, keep_head=keep_head, dropout=dropout)
            del settings["model"]
            finetune.run(model, source, out, **cut, least=least_area, mirror=mirror, **settings, **running)


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
