"""PaletteKMeans: scikit-learn's own checks of estimators, and exact palettes of pixels."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from saccade import Palette, interop
from saccade.interop.sklearn import PaletteKMeans


@pytest.fixture(autouse=True)
def counts():
    interop.reset()
    yield
    interop.reset()


# which KMeans fails, too
OF_KMEANS = {
    f"check_sample_weight_equivalence_on_{kind}_data": "starts are drawn among samples, not among their weights"
    for kind in ("dense", "sparse")
}


@pytest.mark.filterwarnings("ignore")  # which the checks provoke
@parametrize_with_checks([PaletteKMeans(n_clusters=3)], expected_failed_checks=lambda _: OF_KMEANS)
def test_it_is_an_estimator(estimator, check):
    check(estimator)


def pixels(n=2000):
    rng = np.random.default_rng(0)
    return np.clip(rng.choice([30, 120, 220], (n, 1)) + 20 * rng.standard_normal((n, 3)), 0, 255).astype(np.uint8)


def test_pixels_are_clustered_as_a_palette():
    x = pixels()
    start = x[:5].astype(float)
    made = PaletteKMeans(5, init=start).fit(x)
    palette = Palette.fit(x, 5, initial=start, iterations=300)
    assert np.array_equal(made.cluster_centers_, palette.centers)
    assert np.array_equal(made.labels_, palette.encode(x)) and made.labels_.dtype == np.int32
    assert np.array_equal(made.predict(x[:7]), made.labels_[:7])
    assert made.inertia_ == pytest.approx(palette.inertia * len(x), rel=1e-12)
    assert 1 < made.n_iter_ < 300
    assert interop.report() == {"sklearn KMeans.fit": {"taken over": 1}, "sklearn KMeans.predict": {"taken over": 1}}
    theirs = KMeans(5, init=start, tol=0).fit(x)
    assert made.inertia_ == pytest.approx(theirs.inertia_, rel=1e-3)
    away = np.linalg.norm(x[:9, None].astype(float) - made.cluster_centers_, axis=2)
    np.testing.assert_allclose(made.transform(x[:9].astype(float)), away, rtol=1e-12)


def test_a_seed_gives_the_same_bits_and_more_starts_are_no_worse():
    x = pixels()
    one, again = (PaletteKMeans(8, random_state=3).fit(x) for _ in range(2))
    assert np.array_equal(one.cluster_centers_, again.cluster_centers_)
    assert PaletteKMeans(8, random_state=3, n_init=4).fit(x).inertia_ <= one.inertia_


@pytest.mark.parametrize(
    ("reason", "options", "x", "more"),
    [
        ("not uint8 pixels (n, 3)", {}, pixels().astype(float), {}),
        ("weights", {}, pixels(), {"sample_weight": np.ones(2000)}),
        ("init", {"init": "random", "n_init": 1}, pixels(), {}),
    ],
)
def test_the_rest_is_scikit_learns_to_the_bit(reason, options, x, more):
    made = PaletteKMeans(4, random_state=0, **options).fit(x, **more)
    theirs = KMeans(4, random_state=0, **options).fit(x, **more)
    assert np.array_equal(made.cluster_centers_, theirs.cluster_centers_)
    assert np.array_equal(made.predict(x), theirs.predict(x))
    assert interop.report()["sklearn KMeans.fit"] == {reason: 1}
    assert interop.report()["sklearn KMeans.predict"] == {"centres of KMeans": 1}


def test_fewer_colours_than_clusters_is_scikit_learns_warning():
    x = np.repeat(np.array([[0, 0, 0], [255, 0, 0]], np.uint8), 5, 0)
    with pytest.warns(ConvergenceWarning):
        PaletteKMeans(3).fit(x)
    assert interop.report() == {"sklearn KMeans.fit": {"fewer colours than clusters": 1}}


def test_fitted_anew_it_forgets_and_changed_centres_count():
    x = pixels()
    made = PaletteKMeans(4, random_state=0).fit(x)
    made.cluster_centers_ = made.cluster_centers_ + 1.5
    assert np.array_equal(made.predict(x), ((x[:, None] - made.cluster_centers_) ** 2).sum(-1).argmin(1))
    made.fit(x.astype(float))
    assert made._palette is None
    assert clone(made).get_params() == PaletteKMeans(4, random_state=0).get_params()
    with pytest.raises(ValueError, match="n_clusters"):
        PaletteKMeans(0).fit(x)
