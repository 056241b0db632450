"""Embeddings of a folder of pictures, and the pictures nearest to a text: what CLIP is used for most.

``embed_folder`` writes a .npz with ``files`` (names below ``folder``), ``embeddings`` (n, e), ``stamps`` (each file's
size and time of change), ``folder``, ``model`` and ``fingerprint``; it takes up again what it finds there.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from saccade import images
from saccade.files import replacing
from saccade.weights.sources import malformed

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BATCH = 16
SAVE_SECONDS = 30


@dataclass(frozen=True)
class Embeddings:
    """Vectors of pictures: ``embeddings`` (n, e) of ``files`` below ``folder``, made by ``model``."""

    files: np.ndarray
    embeddings: np.ndarray
    stamps: np.ndarray
    folder: str
    model: str
    fingerprint: str

    def save(self, path):
        """Write all of it to a .npz file."""
        with replacing(path) as file:
            np.savez(file, **{name: np.asarray(value) for name, value in vars(self).items()})

    @classmethod
    def load(cls, path):
        """Read what ``save`` wrote."""
        with malformed(path, ValueError, KeyError, EOFError, OSError), np.load(path, allow_pickle=False) as found:
            fields = {name: found[name] for name in cls.__dataclass_fields__}
        n = len(fields["files"])
        if fields["embeddings"].ndim != 2 or len(fields["embeddings"]) != n or fields["stamps"].shape != (n, 2):
            raise ValueError(f"{path}: {n} files and embeddings of {fields['embeddings'].shape}")
        return cls(**{name: x if x.ndim else str(x) for name, x in fields.items()})


def pictures_in(folder):
    """The names of the pictures in a folder and those below it, sorted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _stamp(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def embed_folder(folder, model, source, out, *, progress=iter, failed=None):
    """Embed every picture of a folder that ``out`` does not have yet, or has of an earlier content.

    Args:
        folder: of pictures, with those below it.
        model: a ``PictureModel``.
        source: where it is from, to be written down.
        out: the .npz file, saved every half minute and when all is done or interrupted.
        progress: wraps the names that are left, as ``rich.progress.track``.
        failed: called with (name, error) for a picture that cannot be read, which is left out.

    Returns:
        The ``Embeddings``.
    """
    folder, names = Path(folder), pictures_in(folder)
    if not names:
        raise ValueError(f"{folder} has no pictures, expected files that end with one of {', '.join(SUFFIXES)}")
    stamps = {name: _stamp(folder / name) for name in names}
    identity = {"folder": str(folder.resolve()), "model": str(source), "fingerprint": model.fingerprint()}
    rows = _known(out, identity["fingerprint"], stamps) if Path(out).exists() else {}

    def save():
        done = [name for name in names if name in rows]
        found = Embeddings(
            files=np.array(done, dtype=np.str_),
            embeddings=np.array([rows[name] for name in done] or np.empty((0, 0)), np.float32),
            stamps=np.array([stamps[name] for name in done], np.int64).reshape(len(done), 2),
            **identity,
        )
        found.save(out)
        return found

    waiting, saved = {}, time.monotonic()
    left = [name for name in names if name not in rows]
    try:
        for name in progress(left):
            try:
                waiting[name] = images.decode(folder / name)
            except (ValueError, OSError) as error:
                if failed is not None:
                    failed(name, error)
            if len(waiting) == BATCH:
                rows |= zip(waiting, model.embed(list(waiting.values())), strict=True)
                waiting = {}
                if time.monotonic() - saved > SAVE_SECONDS:
                    saved = save() and time.monotonic()
        if waiting:
            rows |= zip(waiting, model.embed(list(waiting.values())), strict=True)
    finally:
        found = save()
    return found


def _known(path, fingerprint, stamps):
    """The rows of an earlier run of the same model whose pictures are as they were."""
    earlier = Embeddings.load(path)
    if earlier.fingerprint != fingerprint:
        raise ValueError(f"{path} is of another model, {earlier.model}: expected another name for these")
    rows = zip(earlier.files, earlier.stamps, earlier.embeddings, strict=True)
    return {str(name): row for name, stamp, row in rows if stamps.get(str(name)) == tuple(stamp)}


def search(found, model, text, top):
    """The ``top`` pictures nearest to a text: pairs (name, cosine), the nearest first."""
    if model.fingerprint() != found.fingerprint:
        raise ValueError(f"the embeddings are of another model, {found.model}")
    cosines = found.embeddings @ model.embed_texts([text])[0]
    order = np.argsort(-cosines, kind="stable")[:top]
    return [(str(found.files[i]), float(cosines[i])) for i in order]


def contact_sheet(folder, ranked, title, path):
    """Draw the ranked pictures with their names and cosines, and write a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(len(ranked), 4) or 1
    rows = -(-len(ranked) // columns) or 1
    plot, axes = pyplot.subplots(rows, columns, figsize=(3 * columns, 3.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, cosine) in zip(axes.flat, ranked, strict=False):
        picture = images.decode(Path(folder) / name)
        scale = 256 / max(picture.shape)
        height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
        small = images.preprocess([picture], replace(images.siglip(1), height=height, width=width))[0]
        axis.imshow(small)
        axis.set_title(f"{cosine:.3f}\n{Path(name).name[-28:]}", fontsize=8)
    plot.suptitle(title, wrap=True)
    with replacing(path) as file:
        plot.savefig(file, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(plot)


def ranked_labels(picture, ranked, path):
    """Draw a picture beside its likeliest labels as bars, and write a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), width_ratios=(1, 1.2))
    left.imshow(picture)
    left.axis("off")
    names, shares = [name[:40] for name, _ in ranked], [share for _, share in ranked]
    right.barh(range(len(names)), shares, color="#3b6ea8")
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("probability")
    with replacing(path) as file:
        plot.savefig(file, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(plot)
