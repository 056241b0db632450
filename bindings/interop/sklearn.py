"""scikit-learn's ``KMeans`` that clusters colours by palette: exactly, and the same on every machine.

PaletteKMeans(n_clusters=16).fit(picture.reshape(-1, 3))  # uint8 pixels
"""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

from saccade.interop.counts import count
from saccade.palette import GRID, Palette


class PaletteKMeans(KMeans):
    """``sklearn.cluster.KMeans``, but ``fit`` and ``predict`` of uint8 pixels (n, 3) are those of ``saccade.Palette``.

    Parameters and attributes are those of ``KMeans``. Of uint8 pixels every distinct colour is looked at once, whatever
    the number of its pixels, and distances and sums are exact integers: centres lie on a grid of 1/4096 of a level,
    fitting ends where nothing moves, and ``tol``, ``algorithm`` and ``copy_x`` are of no use. Anything else is
    clustered by ``KMeans`` as before: other data, pixels with weights, fewer colours than clusters, an ``init`` that
    is "random" or a function.
    """

    _palette = None

    def fit(self, X, y=None, sample_weight=None):
        """Fit centres to the rows of ``X``."""
        self._palette = None
        counted, reason = self._counted(X, sample_weight)
        count("sklearn KMeans.fit", reason)
        if counted is None:
            return super().fit(X, y, sample_weight)
        self._validate_params()
        self._check_params_vs_input(np.asarray(counted[0], np.float64))
        random = check_random_state(self.random_state)
        runs = (self._run(*counted, random.randint(2**31 - 1)) for _ in range(self._n_init))
        inertia, centers, self.n_iter_ = min(runs, key=lambda one: one[0])
        self._palette = Palette(centers / GRID)
        self.cluster_centers_ = self._palette.centers
        self.labels_ = self._palette.encode(X)
        self.inertia_ = inertia * len(X)
        self.n_features_in_, self._n_features_out = 3, len(centers)
        self._n_threads = _openmp_effective_n_threads()
        return self

    def predict(self, X):
        """The index of the nearest centre of each row of ``X``."""
        palette, reason = self._palette, "not uint8 pixels (n, 3)"
        if palette is None or not np.array_equal(palette.centers, self.cluster_centers_):
            reason = "centres of KMeans"
        elif _are_pixels(X):
            count("sklearn KMeans.predict")
            return palette.encode(X)
        count("sklearn KMeans.predict", reason)
        return super().predict(X)

    def _counted(self, X, sample_weight):
        """(the distinct colours and their counts, None), or (None, why ``KMeans`` is to do it)."""
        from saccade.kernels.numba.palette import unique_colors

        if not _are_pixels(X):
            return None, "not uint8 pixels (n, 3)"
        if sample_weight is not None:
            return None, "weights"
        if callable(self.init) or (isinstance(self.init, str) and self.init != "k-means++"):
            return None, "init"
        counted = unique_colors(X)
        return (counted, None) if len(counted[0]) >= self.n_clusters else (None, "fewer colours than clusters")

    def _run(self, colors, counts, seed):
        """(inertia, centres on the grid, steps) of Lloyd's algorithm."""
        from saccade.kernels.numba import palette as kernels

        if isinstance(self.init, str):
            centers = kernels.initial_centers(colors, counts, self.n_clusters, seed)
        else:
            centers = np.round(Palette(self.init).centers * GRID).astype(np.int32)
        assignment = kernels.assign(colors, centers)
        for step in range(1, self.max_iter + 1):
            moved = kernels.update(colors, counts, assignment, centers)
            if np.array_equal(moved, centers):
                return kernels.inertia(colors, counts, assignment, centers), centers, step
            centers = moved
            assignment = kernels.assign(colors, centers)
        return kernels.inertia(colors, counts, assignment, centers), centers, self.max_iter


def _are_pixels(X):
    return isinstance(X, np.ndarray) and X.dtype == np.uint8 and X.ndim == 2 and X.shape[1] == 3 and len(X) > 0
