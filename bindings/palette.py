"""A palette of colours for pictures: fit, encode, decode, save and load."""

import numpy as np

from saccade.arrays import dtype_name, framework_of
from saccade.files import replacing

GRID = 4096


class Palette:
    """k colours that stand for all others: ImageGPT's "9-bit" colours when k = 512.

    Centres lie on a grid of 1/4096 of a level, so that fitting and encoding are exact (``saccade.reference.palette``).
    """

    def __init__(self, centers):
        """A palette of given centres, (k, 3) in 0 … 255; they are rounded to the grid."""
        centers = np.asarray(centers, np.float64)
        if centers.ndim != 2 or centers.shape[1] != 3 or not len(centers):
            raise ValueError(f"Palette: {centers.shape=}, expected (k, 3) with k of at least 1")
        if not ((centers >= 0) & (centers <= 255)).all():
            raise ValueError("Palette: centers outside 0…255 or not finite, expected levels of red, green and blue")
        self._grid_centers = np.round(centers * GRID).astype(np.int32)
        self.inertia, self._table = None, None

    def __getstate__(self):
        return {**self.__dict__, "_table": None}  # 32 MB that are quickly made anew

    @property
    def centers(self):
        """The colours, (k, 3) float64 in 0 … 255."""
        return self._grid_centers / GRID

    def __len__(self):
        return len(self._grid_centers)

    @classmethod
    def fit(cls, images, colors=512, *, initial=None, iterations=100, seed=0):
        """k-means over the pixels of ``images``, uint8 (…, 3).

        Args:
            images: at least ``colors`` distinct colours; CuPy arrays are counted and clustered on their GPU.
            colors: k.
            initial: (k, 3) centres to start from, in 0 … 255; drawn by k-means++ from ``seed`` if None.
            iterations: at most so many of Lloyd's steps; fewer if nothing moves.
            seed: of the start.

        Returns:
            A palette whose ``inertia`` is the mean squared distance per pixel, in levels².
        """
        images = _checked_images("Palette.fit", images)
        counted = _kernels_of(images).unique_colors(images)
        return cls._fit(_kernels_of(images), counted, colors, initial, iterations, seed)

    @classmethod
    def fit_histogram(cls, histogram, colors=512, *, initial=None, iterations=100, seed=0):
        """As ``fit``, from pixels that ``count_colors`` counted: of more pictures than are at hand at a time.

        Histograms may be added, also those of several machines: the palette is that of all pixels, bit for bit.
        """
        from saccade.kernels.numba import palette as kernels

        return cls._fit(kernels, kernels.counted_colors(histogram), colors, initial, iterations, seed)

    @classmethod
    def _fit(cls, kernels, counted, colors, initial, iterations, seed):
        distinct, counts = counted
        if isinstance(colors, bool) or not isinstance(colors, (int, np.integer)) or not 1 <= colors <= 65536:
            raise ValueError(f"Palette.fit: {colors=}, expected an integer from 1 to 65536")
        if initial is None:
            if len(distinct) < colors:
                raise ValueError(
                    f"Palette.fit: the images have {len(distinct)} distinct colours, expected {colors} or more"
                )
            start = kernels.initial_centers(distinct, counts, colors, seed)
        else:
            start = cls(initial)._grid_centers
            if len(start) != colors:
                raise ValueError(f"Palette.fit: {len(start)} initial centers, expected {colors=}")
        centers, assignment = kernels.fit(distinct, counts, start, iterations=iterations)
        palette = cls(np.array(centers.tolist()) / GRID)
        palette.inertia = kernels.inertia(distinct, counts, assignment, centers)
        return palette

    def encode(self, images):
        """The index of the nearest colour of each pixel, uint8 (…, 3) -> int32 (…); the lowest among equals.

        A tensor gives a tensor, computed where it lies. The first pictures in NumPy's arrays wait for a table of all
        2²⁴ colours, 32 MB, which the palette keeps.
        """
        images = _checked_images("Palette.encode", images, ("cupy", "torch"), empty=True)
        if framework_of(images) == "torch":
            from saccade.torch.palette import assign

            return assign(images, self._grid_centers)
        if framework_of(images) == "cupy":
            return _kernels_of(images).encode(images, self._grid_centers)
        from saccade.kernels.numba import palette as kernels

        if self._table is None:
            self._table = kernels.table(self._grid_centers)
        return kernels.encode(images, self._table)

    def decode(self, tokens):
        """The colours of tokens, integers (…) -> uint8 (…, 3), rounded half to even."""
        tokens = tokens if framework_of(tokens) == "cupy" else np.asarray(tokens)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"Palette.decode: {tokens.dtype=}, expected integers")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            worst = tokens.max() if tokens.max() >= len(self) else tokens.min()
            raise ValueError(f"Palette.decode: token {worst}, expected 0…{len(self) - 1}")
        return _kernels_of(tokens).decode(tokens, np.round(self.centers).astype(np.uint8))

    def save(self, path):
        """Write ImageGPT's own form, ``kmeans_centers.npy``: float32 (k, 3) in [−1, 1]."""
        with replacing(path) as file:
            np.save(file, (self.centers / 127.5 - 1).astype(np.float32), allow_pickle=False)

    @classmethod
    def load(cls, path):
        """Read ImageGPT's own form; centres are rounded to the grid."""
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"Palette.load: {path} is not a plain .npy file of numbers ({error})") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 2 or values.shape[1] != 3:
            found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise ValueError(f"Palette.load: {path} holds {found}, expected floating point (k, 3)")
        if not (np.abs(values) <= 1).all():
            raise ValueError(f"Palette.load: {path} holds values outside [−1, 1], expected ImageGPT's kmeans_centers")
        return cls((values.astype(np.float64) + 1) * 127.5)


def count_colors(images, histogram=None):
    """Add every pixel of uint8 (…, 3) to ``histogram``, (2²⁴,) int64 by 24-bit value; a new one if None."""
    from saccade.kernels.numba import palette as kernels

    histogram = np.zeros(1 << 24, np.int64) if histogram is None else histogram
    if histogram.shape != (1 << 24,) or histogram.dtype != np.int64:
        raise ValueError(f"count_colors: histogram {histogram.dtype} {histogram.shape}, expected int64 ({1 << 24},)")
    return kernels.count_colors(_checked_images("count_colors", images, kept=()), histogram)


def _kernels_of(images):
    if framework_of(images) == "cupy":
        from saccade.kernels.cupy import palette
    else:
        from saccade.kernels.numba import palette
    return palette


def _checked_images(operation, images, kept=("cupy",), empty=False):
    """Pixels, of frameworks other than those ``kept`` as NumPy's."""
    images = images if framework_of(images) in kept else np.asarray(images)
    if dtype_name(images) != "uint8":
        raise TypeError(f"{operation}: {images.dtype=}, expected uint8")
    if images.ndim < 1 or images.shape[-1] != 3 or (0 in images.shape and not empty):
        raise ValueError(f"{operation}: {images.shape=}, expected (…, 3)" + " with at least one pixel" * (not empty))
    return images
