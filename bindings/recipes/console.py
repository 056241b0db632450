"""What ``saccade classify``, ``embed`` and ``search`` show on a terminal."""

from pathlib import Path

from saccade import images
from saccade.recipes.pictures import PictureModel
from saccade.recipes.retrieval import Embeddings, contact_sheet, embed_folder, ranked_labels, search as nearest


def classify(picture, source, variant, labels, top, out):
    """Print the likeliest labels of a picture; with ``out`` draw them."""
    pixels = images.decode(picture)
    names, shares = PictureModel(source, variant).probabilities(pixels, _labels(labels))
    ranked = sorted(zip(names, shares.tolist(), strict=True), key=lambda pair: -pair[1])[:top]
    for name, share in ranked:
        print(f"{share:.4f}  {name}")
    if out is not None:
        ranked_labels(pixels, ranked, out)
        print(f"drawn in {out}")


def _labels(given):
    if given is None:
        return None
    lines = given.split(",") if "," in given or not Path(given).is_file() else Path(given).read_text().splitlines()
    return [line.strip() for line in lines if line.strip()]


def embed(folder, source, variant, out):
    """Embed a folder of pictures under a progress bar."""
    from rich.progress import track

    failures = []
    source = Path(source).resolve() if Path(source).exists() else source
    found = embed_folder(
        folder,
        PictureModel(source, variant),
        source,
        out,
        progress=lambda names: track(names, "embedding"),
        failed=lambda name, error: failures.append(error),
    )
    for error in failures:
        print(f"left out: {error}")
    print(f"{len(found.files)} pictures in {out}")


def search(path, text, source, variant, top, sheet):
    """Print the pictures nearest to a text, and draw them."""
    found = Embeddings.load(path)
    ranked = nearest(found, PictureModel(source or found.model, variant), text, top)
    for name, cosine in ranked:
        print(f"{cosine:.4f}  {Path(found.folder) / name}")
    contact_sheet(found.folder, ranked, text, sheet)
    print(f"drawn in {sheet}")
