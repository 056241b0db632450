"""Batches from a source: in an order that can be taken up again, the same for any number of processes that read."""

import numpy as np

from saccade.recipes.cuts import Broken

_GROUP = 16  # samples that travel together from a process that reads


class Loader:
    """Batches without end, in an order drawn from ``seed``.

    Args:
        source: of ``saccade.recipes.data`` or ``shards``.
        prepare: ``prepare(sample, rng)`` gives the arrays of a sample as a tuple; a ``Broken`` that it raises counts.
        batch: how many samples.
        seed: of the order and of ``rng``.
        skipped: a ``saccade.recipes.data.Skipped``.
        place: where to go on; ``place`` of this class is where the batches so far end.
        workers: processes that read; 0 reads in this one.
        rank, ranks: which share of the samples.
    """

    def __init__(self, source, prepare, batch, *, seed, skipped, place=(0, 0), workers=0, rank=0, ranks=1):
        self.source, self.batch, self.skipped = source, batch, skipped
        self.place, self.workers = tuple(place), workers
        self._options = seed, rank, ranks
        self._reader = _Reader(source, prepare, seed)

    def __iter__(self):
        jobs = self.source.jobs(self.place, *self._options)
        samples, epoch = [], self.place[0]
        for place, sample in _read(self._reader, jobs, self.workers):
            if isinstance(sample, Broken):
                self.skipped.add(sample)
                if place[0] > epoch + 1:
                    raise ValueError(f"{self.source.path}: a whole epoch without one good sample; the log says why")
                continue
            epoch = place[0]
            samples.append(sample)
            if len(samples) == self.batch:
                self.place = place
                yield _stacked(samples)
                samples = []


def once(source, jobs, prepare, batch, *, skipped, workers=0):
    """Batches of the samples of ``jobs``, as ``source.in_order()`` gives them; the last may be smaller."""
    samples = []
    placed = (((0, i), job) for i, job in enumerate(jobs))
    for _, sample in _read(_Reader(source, prepare, 0), placed, workers):
        if isinstance(sample, Broken):
            skipped.add(sample)
            continue
        samples.append(sample)
        if len(samples) == batch:
            yield _stacked(samples)
            samples = []
    if samples:
        yield _stacked(samples)


def _stacked(samples):
    return tuple(np.stack(column) for column in zip(*samples, strict=True))


class _Reader:
    """Reads and prepares the sample of a job; the randomness of each comes from the epoch and the sample alone."""

    def __init__(self, source, prepare, seed):
        self.source, self.prepare, self.seed = source, prepare, seed

    def __getitem__(self, job):
        place, job = job
        rng = np.random.default_rng((self.seed, place[0], self.source.identity(job)))
        try:
            return place, self.prepare(self.source.read(job), rng)
        except Broken as broken:
            return place, broken


def _read(reader, jobs, workers):
    if not workers:
        yield from map(reader.__getitem__, jobs)
        return
    import torch
    from torch.utils.data import DataLoader

    # a generator of its own: otherwise it draws from torch's, which is a training run's
    options = dict(num_workers=workers, collate_fn=list, generator=torch.Generator())
    for group in DataLoader(reader, _GROUP, sampler=jobs, **options):
        yield from group
