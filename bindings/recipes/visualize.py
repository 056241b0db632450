"""``saccade visualize``: a look inside a vision transformer, on one page.

The figures of Dosovitskiy et al. 2021 (figures 6, 7 and 14): what its filters see, which positions it takes for
neighbours, how far its heads look, and where in a photograph its attention goes; of a CLIP also which of several
pictures and texts belong together (Radford et al. 2021).
"""

from pathlib import Path

import numpy as np

import saccade
from saccade import images
from saccade.models import clip, vit
from saccade.models.transformer import under
from saccade.recipes import report
from saccade.recipes.pictures import PictureModel
from saccade.reference import attention_rollout, filter_components, mean_attention_distance, position_similarity

FILTERS = 28


def run(source, pictures, out, *, texts=(), variant=None, console=None):
    """Write the page ``out``, a .html file.

    Args:
        source: a checkpoint of a ViT or of a CLIP whose image tower is one, as ``saccade.models.load`` takes it.
        pictures: files; attention is shown on each.
        out: the page.
        texts: for a CLIP's similarity matrix.
        variant: as for ``load``.
        console: a rich console; standard output if None.

    Raises:
        ValueError: the model has no transformer over patches, or texts were given to one that knows none.
    """
    import matplotlib
    from rich.console import Console

    matplotlib.use("Agg")
    console = console or Console()
    model = PictureModel(source, variant)
    if not isinstance(model.tower, vit.ViTConfig):
        raise ValueError(f"{source}: its image tower is a ResNet, expected a vision transformer")
    if texts and not isinstance(model.config, clip.CLIPConfig):
        raise ValueError(f"{source} is a ViT, which knows no texts: expected a CLIP, or no texts")
    decoded = [images.decode(path) for path in pictures]
    pixels = images.preprocess(decoded, model.how)
    parameters = under(model.parameters, "image") if isinstance(model.config, clip.CLIPConfig) else model.parameters
    sections = [
        ("What its filters see", filters(parameters)),
        ("Which positions are alike", positions(parameters, model.tower)),
    ]
    if len(pixels):
        weights = vit.attention_weights(parameters, pixels, model.tower, saccade)
        names = [Path(path).name for path in pictures]
        sections += [
            ("How far its heads look", distances(weights, model.tower)),
            ("Where its attention goes", rollouts(pixels, weights, model.tower, names)),
        ]
        if texts:
            cosines = model.embed(decoded) @ model.embed_texts(list(texts)).T
            sections.append(("What belongs together", similarities(cosines, names, texts)))
    tower = model.tower
    introduction = report.paragraph(
        f"{source}: {tower.depth} blocks of width {tower.width} with {tower.heads} heads, patches of "
        f"{tower.patch_size} x {tower.patch_size}, pictures of {tower.size[0]} x {tower.size[1]}."
    )
    report.write(out, report.page("Inside a vision transformer", introduction, sections))
    console.print(f"Wrote [bold]{Path(out).resolve()}[/bold]")


def filters(parameters, count=FILTERS):
    """The principal components of the filters that embed a patch, as HTML."""
    from matplotlib import pyplot

    weight = parameters["embed.weight"]
    pictures, shares = filter_components(weight, min(count, len(weight), weight[0].size))
    rows, columns = -(-len(pictures) // 7), min(len(pictures), 7)
    plot, axes = pyplot.subplots(rows, columns, figsize=(columns, 1.25 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, share in zip(axes.flat, pictures, shares, strict=False):
        shown = 0.5 + 0.5 * picture / np.abs(picture).max()
        axis.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{100 * share:.0f} %", fontsize=9)
    p = weight.shape[-1]
    caption = f"Principal components of the {len(weight)} filters that embed a patch of {p} x {p}; their variance."
    return report.figure(plot, caption)


def positions(parameters, config):
    """How alike the positions' embeddings are, as HTML."""
    from matplotlib import pyplot

    rows, columns = config.grid
    similarity = position_similarity(parameters["embed.positions"], config.grid, prefix=config.prefix)
    mosaic = np.full((rows, rows + 1, columns, columns + 1), np.nan)
    mosaic[:, :rows, :, :columns] = similarity.transpose(0, 2, 1, 3)
    plot, axis = pyplot.subplots(figsize=(5.6, 5))
    image = axis.imshow(mosaic.reshape(rows * (rows + 1), -1)[:-1, :-1], vmin=-1, vmax=1, cmap="viridis")
    axis.axis("off")
    plot.colorbar(image, ax=axis, label="cosine similarity")
    caption = "Position embeddings: each tile compares the position of one patch with those of all patches."
    return report.figure(plot, caption)


def distances(weights, config):
    """How far each head looks on average, as HTML."""
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(5.5, 3))
    for layer, one in enumerate(weights):
        found = mean_attention_distance(one, config.grid, config.patch_size, prefix=config.prefix)
        axis.plot([layer] * len(found), found, "o", color="#1f4e79", alpha=0.7)
    axis.set_xticks(range(0, len(weights), 1 + len(weights) // 16))
    axis.set_xlabel("layer")
    axis.set_ylabel("mean distance, pixels")
    return report.figure(plot, f"How far each head looks: one dot a head, averaged over {len(weights[0])} pictures.")


def rollouts(pixels, weights, config, names):
    """Attention rolled out over all layers, laid over each picture, as HTML."""
    from matplotlib import pyplot

    total = np.asarray(attention_rollout(weights))
    # from the class token to the patches, or of all patches where there is none
    drawn = total[:, 0, config.prefix :] if config.prefix else total.mean(1)
    plot, axes = pyplot.subplots(len(pixels), 2, figsize=(6, 3 * len(pixels)), squeeze=False)
    for row, picture, one, name in zip(axes, pixels, drawn, names, strict=True):
        light = one.reshape(config.grid) / one.max()
        light = np.kron(light, np.ones((config.patch_size, config.patch_size)))[..., None]
        shown = picture if picture.shape[2] == 3 else np.repeat(picture, 3, 2)
        row[0].imshow(shown)
        row[0].set_title(name, fontsize=9)
        row[1].imshow((shown * light).astype(np.uint8))
        for axis in row:
            axis.axis("off")
    return report.figure(plot, "Attention rollout: brightness is how much the output draws on a patch.")


def similarities(cosines, names, texts):
    """The cosines of pictures (rows) and texts (columns), as HTML."""
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(2 + 0.9 * len(texts), 1.5 + 0.6 * len(names)))
    axis.imshow(cosines, cmap="viridis")
    for i, j in np.ndindex(cosines.shape):
        color = "black" if cosines[i, j] > cosines.mean() else "white"
        axis.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(texts)), texts, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    return report.figure(plot, "Cosine similarity of pictures and texts.")
