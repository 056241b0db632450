"""Pictures with labels or captions from folders, tables and arrays; shards are in ``saccade.recipes.shards``.

A source hands out jobs, which say where a sample lies, and reads the sample of a job, in any process. A sample that
cannot be read is ``Broken``: it is skipped, counted, and named in the log.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saccade.recipes.cuts import EXTENSIONS, Broken, read_picture


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (h, w, 3), with the label or caption it has."""

    name: str
    picture: np.ndarray
    label: int | None = None
    caption: str | None = None


class Skipped:
    """Counts broken samples and passes the name and reason of each to ``report``."""

    def __init__(self, report):
        self.count, self.report = 0, report

    def add(self, broken):
        """One more."""
        self.count += 1
        self.report(broken.name, broken.reason)


def open_source(path, **options):
    """The source at a path: a folder, a table (.csv, .tsv, .jsonl), arrays (.npy, .npz), tar shards, or records.

    Shards are a .tar file, several as "shard-{000..127}.tar", a folder of them, or URLs of them. Records are a folder
    that Hugging Face's ``datasets`` saved, or "hf:owner/name:split", which it downloads. ``options`` are those of the
    source: ``image_column`` and ``caption_column`` of a ``Table`` and of ``Records``. A source is returned as it is.
    """
    if isinstance(path, Listed):
        return path
    text, path = str(path), Path(path)
    if text.startswith("hf:") or any((path / f"dataset_{kind}.json").is_file() for kind in ("info", "dict")):
        from saccade.recipes.records import Records

        return Records(text, **options)
    if text.endswith(".tar") or (path.is_dir() and any(path.glob("*.tar"))):
        from saccade.recipes.shards import Shards

        return Shards(text if text.endswith(".tar") else [str(p) for p in sorted(path.glob("*.tar"))], **options)
    kinds = {".csv": Table, ".tsv": Table, ".jsonl": Table, ".npy": Arrays, ".npz": Arrays}
    kind = Folder if path.is_dir() else kinds.get(path.suffix)
    if kind is None:
        raise ValueError(f"{text} is no source of pictures: expected a folder or a file {', '.join(kinds)} or .tar")
    return kind(path, **options)


class Listed:
    """A source whose samples are numbered: what folders, tables and arrays share.

    ``classes`` are the names of the labels, None if there are no labels.
    """

    classes: list[str] | None = None

    def __init__(self, path, count):
        self.path, self.count = Path(path), count
        if not count:
            raise ValueError(f"{path} holds no pictures: expected at least one")

    def __len__(self):
        return self.count

    def jobs(self, place, seed, rank=0, ranks=1):
        """(the place after it, its job) of every sample from ``place`` = (epoch, how many before) on, without end.

        Every epoch has an order of its own, drawn from ``seed``, of which each of ``ranks`` takes its share.
        """
        if self.count < ranks:
            raise ValueError(f"{self.path} holds {self.count} pictures, expected at least one for each of {ranks=}")
        epoch, start = place
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(self.count)[rank::ranks]
            for i in range(start, len(order)):
                yield (epoch, i + 1), int(order[i])
            epoch, start = epoch + 1, 0

    def in_order(self):
        """The job of every sample, once."""
        return range(self.count)

    def identity(self, job):
        """A number of the sample's own, for what is drawn for it."""
        return job

    def read(self, job):
        """The ``Sample`` of a job; raises ``Broken``."""
        raise NotImplementedError


class Folder(Listed):
    """Pictures below a folder; each folder in it is a class, in the order of their names, if all pictures lie in one.

    The convention of torchvision's ``ImageFolder``.
    """

    def __init__(self, path):
        files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in EXTENSIONS)
        super().__init__(path, len(files))
        self.files = files
        parts = [file.relative_to(self.path).parts for file in files]
        if all(len(part) > 1 for part in parts):
            self.classes = sorted({part[0] for part in parts})

    def read(self, job):
        file = self.files[job]
        own = file.relative_to(self.path)
        label = None if self.classes is None else self.classes.index(own.parts[0])
        return Sample(str(own), read_picture(file, str(file)), label)


class Table(Listed):
    """Pairs of picture and caption: rows of a .csv or .tsv with a header, or one JSON object a line.

    Args:
        path: the file; pictures are named by paths from its folder.
        image_column: where a row names its picture.
        caption_column: where its caption stands.
    """

    def __init__(self, path, *, image_column="image", caption_column="caption"):
        path = Path(path)
        read = _json_rows if path.suffix == ".jsonl" else _csv_rows
        self.rows = list(read(path, image_column, caption_column))
        super().__init__(path, len(self.rows))

    def read(self, job):
        row = self.rows[job]
        if isinstance(row, Broken):
            raise row
        name, image, caption = row
        return Sample(name, read_picture(self.path.parent / image, name), caption=caption)


class Arrays(Listed):
    """Pictures in a .npy, uint8 (n, h, w, 3 or 1), or under "images" of a .npz, there with "labels" or "captions".

    A .npz may name its classes under "classes".
    """

    def __init__(self, path):
        try:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no file of plain NumPy arrays ({error})") from None
        if isinstance(loaded, np.ndarray):
            arrays = {"images": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
        images = arrays.get("images", np.empty(0))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"{path} holds images {images.dtype} {images.shape}, expected uint8 (n, h, w, 3 or 1)")
        super().__init__(path, len(images))
        self.images, self.labels, self.captions = images, arrays.get("labels"), arrays.get("captions")
        for name in ("labels", "captions"):
            beside = arrays.get(name)
            if beside is not None and beside.shape != (len(images),):
                raise ValueError(f"{path}: {name} {beside.shape}, expected ({len(images)},) as there are images")
        if self.labels is not None:
            if self.labels.dtype.kind not in "iu" or self.labels.min() < 0:
                raise ValueError(f"{path}: labels {self.labels.dtype}, least {self.labels.min()}; expected 0, 1, 2, …")
            numbers = range(int(self.labels.max()) + 1)
            self.classes = [str(name) for name in arrays.get("classes", numbers)]
            if len(self.classes) < len(numbers):
                raise ValueError(f"{path}: {len(self.classes)} classes, but labels up to {numbers[-1]}")

    def read(self, job):
        name = f"{self.path.name}[{job}]"
        picture = np.broadcast_to(self.images[job], (*self.images.shape[1:3], 3))
        label = None if self.labels is None else int(self.labels[job])
        caption = None if self.captions is None else checked_caption(str(self.captions[job]), name)
        return Sample(name, np.ascontiguousarray(picture), label, caption)


def checked_caption(caption, name):
    """The caption if it is text that says something, else ``Broken``."""
    if not isinstance(caption, str):
        raise Broken(name, f"caption {caption!r}, expected text")
    if not caption.strip():
        raise Broken(name, "the caption is empty")
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise Broken(name, "the caption is not UTF-8") from None
    return caption


def _row(name, image, caption):
    """A row of a table, or what is wrong with it."""
    if not isinstance(image, str) or not image.strip():
        return Broken(name, f"picture {image!r}, expected a path")
    try:
        return name, image, checked_caption(caption, name)
    except Broken as broken:
        return broken


def _csv_rows(path, image_column, caption_column):
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = next(rows, [])
        columns = [_column(path, header, name) for name in (image_column, caption_column)]
        while True:
            line = rows.line_num + 1
            name = f"{path.name}:{line}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield Broken(name, f"csv: {error}")
                continue
            if row is None:
                return
            if len(row) == len(header):
                yield _row(name, *(row[column] for column in columns))
            elif row:
                yield Broken(name, f"{len(row)} columns, expected {len(header)}")


def _column(path, header, name):
    if name not in header:
        raise ValueError(f"{path} has the columns {', '.join(header) or 'none'}: which of them is the {name}?")
    return header.index(name)


def _json_rows(path, image_column, caption_column):
    with open(path, "rb") as file:
        for line, text in enumerate(file, 1):
            name = f"{path.name}:{line}"
            try:
                row = json.loads(text.decode())
            except ValueError as error:  # both JSON's and UTF-8's errors
                if text.strip():
                    yield Broken(name, f"{error}")
                continue
            if isinstance(row, dict):
                yield _row(name, row.get(image_column), row.get(caption_column))
            else:
                yield Broken(name, f"{text[:40]!r}, expected a JSON object")
