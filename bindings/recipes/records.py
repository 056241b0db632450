"""Hugging Face's data sets: records with a picture, and a label or a caption."""

from saccade.recipes.cuts import Broken, read_picture
from saccade.recipes.data import Listed, Sample, checked_caption

IMAGES, CAPTIONS, LABELS = ("image", "img"), ("caption", "text"), ("label", "labels", "fine_label")


class Records(Listed):
    """A data set of ``datasets``: pictures are decoded here, as those of other sources are.

    Args:
        text: a folder that ``save_to_disk`` wrote, or "hf:owner/name:split", which is downloaded if it is not in the
            cache of ``datasets``.
        image_column: of pictures; one of ``IMAGES`` if None.
        caption_column: of captions; one of ``CAPTIONS`` if None, and none if there is none of those.
    """

    def __init__(self, text, *, image_column=None, caption_column=None):
        try:
            import datasets
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"{text} needs datasets: pip install datasets", name="datasets") from None
        if text.startswith("hf:"):
            name, _, split = text.removeprefix("hf:").partition(":")
            if not (name and split):
                raise ValueError(f"{text!r}, expected hf:owner/name:split, as in hf:uoft-cs/cifar10:train")
            found = datasets.load_dataset(name, split=split)
        else:
            found = datasets.load_from_disk(text)
        if not isinstance(found, datasets.Dataset):
            raise ValueError(f"{text} holds the splits {', '.join(map(str, found))}: name the folder of one")
        self.image = _column(found, text, image_column, IMAGES)
        if self.image is None:
            raise ValueError(f"{text} has the columns {', '.join(found.column_names)}: which of them is the image?")
        self.caption = _column(found, text, caption_column, CAPTIONS)
        self.label = next((name for name in LABELS if hasattr(found.features.get(name), "names")), None)
        self.records = found.cast_column(self.image, datasets.Image(decode=False))
        super().__init__(text, len(found))
        if self.label is not None:
            self.classes = list(found.features[self.label].names)

    def read(self, job):
        record, name = self.records[job], f"{self.path}[{job}]"
        picture = record[self.image] or {}
        source = picture.get("bytes") or picture.get("path")
        if source is None:
            raise Broken(name, "no picture")
        label = record[self.label] if self.label else None
        if label is not None and label < 0:
            raise Broken(name, f"label {label}, expected one of {len(self.classes or ())} classes")
        caption = checked_caption(record[self.caption], name) if self.caption else None
        return Sample(name, read_picture(source, name), label, caption)


def _column(found, text, asked, usual):
    if asked is not None and asked not in found.column_names:
        raise ValueError(f"{text} has the columns {', '.join(found.column_names)}, not {asked!r}")
    return asked or next((name for name in usual if name in found.column_names), None)
