"""WebDataset: samples in tar files, read from beginning to end, from a disk or from URLs.

Members of an archive that share a name up to its first dot are one sample: the picture (jpg, jpeg, png or webp), its
caption (txt) and its label (cls, a number).
"""

import random
import zlib
from pathlib import Path, PurePosixPath

from saccade.recipes.cuts import Broken, read_picture
from saccade.recipes.data import Sample, checked_caption

PICTURES = ("jpg", "jpeg", "png", "webp")
SHUFFLED = 1000  # samples among which the next is drawn, after the shards themselves are shuffled


class Shards:
    """Samples of tar files.

    Args:
        urls: paths or http URLs, one text with braces as in "train-{000..127}.tar" or a list.
    """

    classes = None

    def __init__(self, urls):
        try:
            import braceexpand
            import webdataset  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'tar shards need {error.name}: pip install "saccade[train]"') from None
        self.path = urls
        self.urls = list(braceexpand.braceexpand(urls)) if isinstance(urls, str) else list(urls)
        for url in self.urls:
            scheme = url.partition("://")[0] if "://" in url else None
            if scheme not in (None, "http", "https") or url.startswith("pipe:"):
                raise ValueError(f"shard {url!r}: expected a path or an http or https URL")
            if scheme is None and not Path(url).is_file():
                raise FileNotFoundError(f"shard {url!r} does not exist")

    def jobs(self, place, seed, rank=0, ranks=1):
        """As ``saccade.recipes.data.Listed.jobs``; each of ``ranks`` takes its share of the shards.

        To go on from a place, what comes before it in its epoch is read again, but not decoded.
        """
        from webdataset.filters import shuffle

        if len(self.urls) < ranks:
            raise ValueError(f"{len(self.urls)} shards, expected at least one for each of {ranks=}")
        epoch, start = place
        while True:
            rng = random.Random(f"{seed} {epoch}")
            order = rng.sample(self.urls, len(self.urls))[rank::ranks]
            shuffled = shuffle(SHUFFLED, initial=SHUFFLED, rng=rng)(self._samples(order))
            for i, job in enumerate(shuffled):
                if i >= start:
                    yield (epoch, i + 1), job
            epoch, start = epoch + 1, 0

    def in_order(self):
        """The job of every sample, once."""
        return self._samples(self.urls)

    def identity(self, job):
        """A number of the sample's own, for what is drawn for it."""
        return zlib.crc32(_name(job).encode())

    def read(self, job):
        """The ``Sample`` of a job; raises ``Broken``."""
        if isinstance(job, Broken):
            raise job
        name = _name(job)
        own = {suffix.rpartition(".")[2]: data for suffix, data in job.items() if isinstance(data, bytes)}
        picture = next((own[kind] for kind in PICTURES if kind in own), None)
        if picture is None:
            raise Broken(name, f"{', '.join(own) or 'nothing'} in the sample, expected one of {', '.join(PICTURES)}")
        caption = label = None
        if "txt" in own:
            caption = checked_caption(own["txt"].decode("utf-8", errors="surrogateescape"), name)
        if "cls" in own:
            if not own["cls"].strip().isdigit():
                raise Broken(name, f"label {own['cls'][:20]!r}, expected a number")
            label = int(own["cls"])
        return Sample(name, read_picture(picture, name), label, caption)

    def _samples(self, urls):
        """Samples as dictionaries of bytes, and ``Broken`` for what could not be read; at least one of a shard."""
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        for url in urls:
            broken, found = [], False

            def inside(member, url=url, broken=broken):
                path = PurePosixPath(member)
                if not path.is_absolute() and ".." not in path.parts:
                    return True
                broken.append(Broken(f"{url}/{member}", "its path leads out of the archive: refused"))
                return False

            def failed(error, url=url, broken=broken):
                broken.append(Broken(url, f"{type(error).__name__}: {error.args[0] if error.args else error}"))
                return True

            try:
                with gopen(url) as file:
                    stream = _Watched(file)
                    members = tar_file_expander([{"url": url, "stream": stream}], failed, inside)
                    for sample in group_by_keys(members, handler=failed):
                        yield sample
                        found = True
                    if found and not stream.ends():
                        broken.append(Broken(url, "no end of archive: what came after is lost"))
            except OSError as error:
                failed(error)
            yield from broken
            if not (found or broken):
                yield Broken(url, "no samples in the archive")


def _name(job):
    return job.name if isinstance(job, Broken) else f"{job['__url__']}/{job['__key__']}"


class _Watched:
    """A stream that knows how it ended: Python's tarfile takes an archive cut between two members for a whole one."""

    def __init__(self, file):
        self.file, self.tail = file, b""

    def read(self, size):
        data = self.file.read(size)
        self.tail = (self.tail + data[-1024:])[-1024:]
        return data

    def ends(self):
        """Whether the rest of the stream ends with the two empty blocks of an archive."""
        while self.read(1 << 16):
            pass
        return self.tail == bytes(1024)
