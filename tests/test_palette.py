"""The palette: hand-worked numbers, the same bits from numba as from the definition, files and errors."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given

from saccade.kernels.numba import palette as kernels, palette_counts, threads
from saccade.palette import GRID, Palette
from saccade.reference import palette as definition
from saccade.testing.inputs import assign_inputs


@given(assign_inputs())
def test_kernels_give_the_same_bits_as_the_definition(inputs):
    (pixels, centers), _ = inputs
    colors, counts = definition.unique_colors(pixels)
    for mine, true in zip(kernels.unique_colors(pixels), (colors, counts), strict=True):
        assert np.array_equal(mine, true)
    assignment = definition.assign(colors, centers)
    assert np.array_equal(kernels.assign(colors, centers), assignment)
    moved = definition.update(colors, counts, assignment, centers)
    assert np.array_equal(kernels.update(colors, counts, assignment, centers), moved)
    assert kernels.inertia(colors, counts, assignment, centers) == definition.inertia(
        colors, counts, assignment, centers
    )
    for mine, true in zip(kernels.fit(colors, counts, centers), definition.fit(colors, counts, centers), strict=True):
        assert np.array_equal(mine, true)
    k = min(len(colors), 5)
    assert np.array_equal(
        kernels.initial_centers(colors, counts, k, 3), definition.initial_centers(colors, counts, k, 3)
    )


@given(assign_inputs())
def test_assignment_is_the_lowest_index_among_the_nearest(inputs):
    (pixels, centers), _ = inputs
    for color, chosen in zip(pixels[:20].tolist(), definition.assign(pixels[:20], centers), strict=True):
        distances = [sum((GRID * a - b) ** 2 for a, b in zip(color, c, strict=True)) for c in centers.tolist()]
        assert distances.index(min(distances)) == chosen


@given(assign_inputs())
def test_a_step_never_raises_the_cost(inputs):
    (pixels, centers), _ = inputs
    colors, counts = definition.unique_colors(pixels)
    cost = np.inf
    for _ in range(4):
        assignment = definition.assign(colors, centers)
        now = definition.inertia(colors, counts, assignment, centers)
        # rounding a mean to the grid moves it by at most half a unit per channel
        assert now <= cost + 3 * (0.5 / GRID) ** 2
        cost, centers = now, definition.update(colors, counts, assignment, centers)


def _edges():
    """Every corner of the cube and of cells, and the colours beside them."""
    levels = np.array([0, 7, 8, 31, 32, 127, 128, 255], np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)


@pytest.mark.parametrize("k", [1, 2, 64, 65, 512])
@pytest.mark.parametrize("kind", ["anywhere", "on colours", "twice", "close together", "at a corner"])
def test_centres_that_cells_leave_out_are_nearest_to_none_of_their_colours(k, kind):
    rng = np.random.default_rng(k)
    centers = rng.integers(0, 255 * GRID + 1, (k, 3))
    if kind == "on colours":
        centers = GRID * rng.integers(0, 256, (k, 3))
    elif kind == "twice":
        centers = np.tile(centers[: -(-k // 2)], (2, 1))[:k]
    elif kind == "close together":
        centers = 100 * GRID + rng.integers(0, 3, (k, 3))
    elif kind == "at a corner":
        centers = 255 * GRID - rng.integers(0, 40 * GRID, (k, 3))
    colors = np.concatenate([_edges(), rng.integers(0, 256, (2000, 3)), _edges()[:7]]).astype(np.uint8)
    found = definition.assign(colors, centers)
    assert np.array_equal(kernels.assign(colors, centers), found)
    assert np.array_equal(kernels.encode(colors, kernels.table(centers)), found)


def test_a_tie_at_the_corner_of_a_cell_goes_to_the_lowest_index():
    """Where the least distance of one centre to a cell is the largest of another, at the same colour."""
    centers = GRID * np.array([[11, 11, 11], [3, 3, 3]])
    colors = np.array([[7, 7, 7], [6, 7, 7], [8, 7, 7]], np.uint8)
    for module in (definition, kernels):
        assert module.assign(colors, centers).tolist() == [0, 1, 0]


def test_many_pixels_are_counted_the_same_way(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (70_000, 3)).astype(np.uint8)
    pixels[:50_000] //= 32  # some colours often
    expected = definition.unique_colors(pixels)
    for largest in (palette_counts._LARGEST, 1):
        monkeypatch.setattr(palette_counts, "_LARGEST", largest)
        for mine, true in zip(kernels.unique_colors(pixels), expected, strict=True):
            assert np.array_equal(mine, true) and mine.dtype == true.dtype


def test_update_by_hand():
    colors = np.array([[0, 0, 0], [1, 0, 0], [10, 20, 30]], np.uint8)
    counts = np.array([2, 1, 5])
    centers = np.array([[0, 0, 0], [5, 5, 5], [9, 9, 9]], np.int32) * GRID
    moved = definition.update(colors, counts, np.array([0, 0, 2]), centers)
    # a third of 4096 is 1365.33; the empty centre stays; the third has one colour
    assert moved.tolist() == [[1365, 0, 0], [5 * GRID] * 3, [10 * GRID, 20 * GRID, 30 * GRID]]
    assert definition.inertia(colors, counts, np.array([0, 0, 2]), centers) == (1 + 5 * (1 + 121 + 441)) / 8


def test_inertia_does_not_overflow():
    colors, centers = np.array([[255, 255, 255]], np.uint8), np.zeros((1, 3), np.int32)
    counts, assignment = np.array([2**40]), np.zeros(1, np.int32)
    for module in (definition, kernels):
        assert module.inertia(colors, counts, assignment, centers) == 3 * 255**2


def test_any_number_of_threads_gives_the_same_palette():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    before = threads.get_threads()
    try:
        threads.set_threads(1)
        one = Palette.fit(images, 32, iterations=5)
        threads.set_threads(3)
        three = Palette.fit(images, 32, iterations=5)
    finally:
        threads.set_threads(before)
    assert np.array_equal(one.centers, three.centers) and one.inertia == three.inertia


def test_fit_is_as_good_as_scikit_learn_from_the_same_start():
    from skimage.data import astronaut
    from sklearn.cluster import KMeans

    pixels = astronaut()[::4, ::4].reshape(-1, 3)
    start = np.random.default_rng(0).choice(np.unique(pixels, axis=0), 16, replace=False)
    mine = Palette.fit(pixels, 16, initial=start, iterations=20)
    theirs = KMeans(16, init=start.astype(float), n_init=1, max_iter=20, tol=0, algorithm="lloyd")
    with warnings.catch_warnings():  # it warns that 20 iterations were not enough, which is what was asked for
        warnings.simplefilter("ignore")
        theirs.fit(pixels.astype(float))
    assert abs(mine.inertia / (theirs.inertia_ / len(pixels)) - 1) < 1e-3


def test_encode_decode_and_files(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    palette = Palette.fit(images, 16)
    tokens = palette.encode(images)
    assert tokens.shape == (2, 5, 7) and palette.decode(tokens).shape == images.shape
    assert np.array_equal(palette.encode(images[:, ::-1]), tokens[:, ::-1])
    palette.save(tmp_path / "kmeans_centers.npy")
    assert np.load(tmp_path / "kmeans_centers.npy").dtype == np.float32
    loaded = Palette.load(tmp_path / "kmeans_centers.npy")
    assert np.array_equal(loaded.centers, palette.centers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kmeans_centers.npy"]


def test_every_grid_point_survives_a_file(tmp_path):
    """float32 in [−1, 1] is fine enough for the grid: the extremes and a large sample."""
    grid = np.unique(np.concatenate([np.arange(3000), np.random.default_rng(0).integers(0, 255 * GRID, 60000)]))
    grid = np.concatenate([grid, 255 * GRID - np.arange(3000)])[: len(grid) // 3 * 3]
    palette = Palette(grid.reshape(-1, 3) / GRID)
    palette.save(tmp_path / "p.npy")
    assert np.array_equal(Palette.load(tmp_path / "p.npy").centers, palette.centers)


def test_errors_name_the_value(tmp_path):
    images = np.zeros((2, 2, 3), np.uint8)
    palette = Palette([[0, 0, 0], [255, 255, 255]])
    for call, words in (
        (lambda: Palette.fit(images, 2), "1 distinct colours, expected 2 or more"),
        (lambda: Palette.fit(images.astype(float), 2), "float64"),
        (lambda: Palette.fit(images[..., :2], 2), r"\(2, 2, 2\)"),
        (lambda: Palette.fit(images[:0], 2), r"\(0, 2, 3\)"),
        (lambda: Palette.fit(images, 0), "colors=0"),
        (lambda: Palette.fit(images, 3, initial=[[0, 0, 0]]), "1 initial centers"),
        (lambda: Palette([[0, 0, 300]]), "outside 0…255"),
        (lambda: palette.decode(np.array([2])), "token 2, expected 0…1"),
        (lambda: palette.decode(np.array([-1])), "token -1"),
        (lambda: palette.decode(np.array([0.5])), "float64"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            call()


def test_bad_files_are_refused(tmp_path):
    file = tmp_path / "bad.npy"
    for content, words in (
        (np.array([{"a": 1}], object), "not a plain .npy file"),
        (np.zeros((4, 2), np.float32), r"\(4, 2\)"),
        (np.zeros((4, 3), np.int64), "int64"),
        (np.full((4, 3), 2.0), "outside"),
        (np.full((4, 3), np.nan), "outside"),
    ):
        np.save(file, content, allow_pickle=True)
        with pytest.raises(ValueError, match=words):
            Palette.load(file)
    for garbage in (b"", b"\x93NUMPY", b"not an array at all"):
        file.write_bytes(garbage)
        with pytest.raises(ValueError, match=r"not a plain \.npy file"):
            Palette.load(file)


def test_tensors_are_encoded_where_they_lie():
    rng = np.random.default_rng(0)
    images, palette = rng.integers(0, 256, (2, 5, 3)).astype(np.uint8), Palette(rng.integers(0, 256, (7, 3)))
    tensor = torch.from_numpy(images)
    tokens = palette.encode(tensor)
    assert tokens.dtype == torch.int32 and np.array_equal(tokens.numpy(), palette.encode(images))
    assert palette.encode(tensor[:0]).shape == (0, 5)
    with pytest.raises(TypeError, match="expected uint8"):
        palette.encode(tensor.float())


def test_centres_that_float32_cannot_tell_apart_are_told_apart():
    rng = np.random.default_rng(0)
    for _ in range(50):
        far = rng.integers(100 * GRID, 255 * GRID, 3)
        centers = np.clip(far + rng.integers(-2, 3, (40, 3)), 0, 255 * GRID).astype(np.int32)
        colors = rng.integers(0, 60, (20, 3)).astype(np.uint8)
        assert np.array_equal(kernels.assign(colors, centers), definition.assign(colors, centers))
