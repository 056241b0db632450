"""Pictures: what files hold, and each family's preprocessing against the code that it comes from."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import twins
from hypothesis import given, strategies as st
from PIL import Image

from saccade import Palette, images
from saccade.kernels.numba import images as numba_images
from saccade.models.clip import MEAN, STD
from saccade.reference import images as reference_images

RNG = np.random.default_rng(0)
SIZES = [(50, 71), (71, 50), (64, 64), (20, 33), (200, 40)]


def smooth(height, width):
    """A picture with soft and sharp places."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 120 * np.sin(x / 7 + y / 3), 255 * (x > y), 127 + 100 * np.cos(x * y / 50)], -1)
    return np.clip(waves + RNG.integers(-20, 20, waves.shape), 0, 255).astype(np.uint8)


def file_of(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


# --- decoding --------------------------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb():
    rgb = smooth(8, 6)
    image = Image.fromarray(rgb)
    assert np.array_equal(images.decode(file_of(image)), rgb)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(images.decode(file_of(image.convert("L"))), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(images.decode(file_of(image.convert("P"))), np.asarray(image.convert("P").convert("RGB")))
    assert np.array_equal(images.decode(file_of(image.convert("1"))), np.asarray(image.convert("1").convert("RGB")))
    cmyk = images.decode(file_of(image.convert("CMYK"), "TIFF"))
    assert np.array_equal(cmyk, np.asarray(image.convert("CMYK").convert("RGB")))


def test_transparency_is_dropped():
    rgba = np.dstack([smooth(8, 6), RNG.integers(0, 256, (8, 6))]).astype(np.uint8)
    assert np.array_equal(images.decode(file_of(Image.fromarray(rgba))), rgba[..., :3])
    both = Image.fromarray(rgba).convert("LA")
    assert np.array_equal(images.decode(file_of(both))[..., 0], np.asarray(both)[..., 0])


def test_sixteen_bits_keep_their_upper_eight():
    levels = RNG.integers(0, 2**16, (8, 6)).astype(np.uint16)
    decoded = images.decode(file_of(Image.fromarray(levels)))
    assert np.array_equal(decoded, np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, 2))
    assert np.array_equal(images.decode(file_of(Image.fromarray(levels), "TIFF")), decoded)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    upright = smooth(8, 6)
    turned = {  # what a camera that was held so stores
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = file_of(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    assert np.array_equal(images.decode(stored), upright)


def test_paths_files_and_bytes_are_read(tmp_path):
    (tmp_path / "x.png").write_bytes(file_of(Image.fromarray(smooth(4, 5))))
    expected = images.decode((tmp_path / "x.png").read_bytes())
    assert np.array_equal(images.decode(tmp_path / "x.png"), expected)
    assert np.array_equal(images.decode(str(tmp_path / "x.png")), expected)
    with open(tmp_path / "x.png", "rb") as file:
        assert np.array_equal(images.decode(file), expected)
    with pytest.raises(FileNotFoundError):
        images.decode(tmp_path / "y.png")


def png_header(width, height):
    """The beginning of a PNG file of that size, and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 10**6) + b"IDAT"


@pytest.mark.parametrize("side", [9_500, 32_000, 10**6])
def test_pictures_too_large_are_refused_before_they_are_decoded(side):
    with pytest.raises(ValueError, match="pixels"):
        images.decode(png_header(side, side))
    small = file_of(Image.fromarray(smooth(4, 5)))
    with pytest.raises(ValueError, match="the picture: 5 x 4 pixels, expected at most 19"):
        images.decode(small, max_pixels=19)


def test_what_is_no_picture_is_one_error(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.jpg: no picture of a format that Pillow knows"):
        images.decode(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="floating-point levels"):
        images.decode(file_of(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_mutated_pictures_decode_or_are_one_error(form):
    raw, rng, errors = file_of(Image.fromarray(smooth(24, 17)), form), np.random.default_rng(1), 0
    for _ in range(150):
        changed, at = bytearray(raw), int(rng.integers(len(raw)))
        if rng.random() < 0.5:
            changed[at] ^= 1 << int(rng.integers(8))
        else:
            del changed[at:]
        try:
            assert images.decode(bytes(changed), max_pixels=10**6).dtype == np.uint8
        except ValueError:
            errors += 1
    assert errors > 20


# --- preprocessing ---------------------------------------------------------------------------------------------------


def assert_within_a_level(ours, theirs):
    """uint8 (h, w, 3) against pixels in 0…255, (3, h, w) of torch or (h, w, 3)."""
    theirs = np.asarray(theirs, np.float64)
    theirs = theirs.transpose(1, 2, 0) if theirs.shape[0] == 3 else theirs
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(np.float64) - theirs).max() <= 1 + 1e-3


def levels(pixels, mean, std):
    """Normalised pixels (3, h, w) back in 0…255."""
    return (np.asarray(pixels, np.float64) * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255


@pytest.mark.parametrize("size", SIZES)
def test_clips_is_open_clips(size):
    import open_clip

    image = smooth(*size)
    theirs = open_clip.image_transform(32, is_train=False, mean=MEAN, std=STD)(Image.fromarray(image))
    assert_within_a_level(images.preprocess([image], images.clip(32))[0], levels(theirs, MEAN, STD))


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "CLIPImageProcessorPil"])
@pytest.mark.parametrize("size", [(50, 70), (70, 50), (64, 64)])
def test_clips_is_hugging_faces(name, size):
    """At sizes of which an even number of rows is cut off: elsewhere theirs cuts half a pixel beside OpenAI's."""
    image = smooth(*size)
    processor = getattr(twins.transformers, name)(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    theirs = processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    assert_within_a_level(images.preprocess([image], images.clip(30))[0], levels(theirs, MEAN, STD))


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorPil", "SiglipImageProcessorPil"])
@pytest.mark.parametrize("size", SIZES)
def test_vits_and_siglips_are_hugging_faces(name, size):
    image = smooth(*size)
    processor = getattr(twins.transformers, name)(size={"height": 32, "width": 32})
    theirs = processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    how = images.siglip(32) if "Siglip" in name else images.vit_hugging_face(32)
    assert_within_a_level(images.preprocess([image], how)[0], levels(theirs, [0.5] * 3, [0.5] * 3))


@pytest.mark.parametrize("crop", [0.9, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_vits_is_timms(size, crop):
    import timm

    image = smooth(*size)
    options = dict(input_size=(3, 32, 32), interpolation="bicubic", crop_pct=crop, mean=(0.5,) * 3, std=(0.5,) * 3)
    theirs = timm.data.create_transform(**options, is_training=False)(Image.fromarray(image))
    ours = images.preprocess([image], images.vit_timm(32, crop))[0]
    assert_within_a_level(ours, levels(theirs, [0.5] * 3, [0.5] * 3))


def test_googles_is_what_tensorflow_gives():
    """``tf.image.resize`` of TensorFlow 2.21, kept in a file; and torch's, at more sizes."""
    stored = np.load(Path(__file__).parent / "data" / "tensorflow_resize.npz")
    for height, width in ((5, 7), (20, 31)):
        how = images.Preprocessing(height, width, keep_ratio=False, method="point_bilinear")
        assert_within_a_level(images.preprocess([stored["image"]], how)[0], stored[f"{height}x{width}"])
    for size in SIZES:
        image = smooth(*size)
        theirs = torch.nn.functional.interpolate(
            torch.tensor(image).permute(2, 0, 1)[None].double(), (32, 32), mode="bilinear"
        )
        assert_within_a_level(images.preprocess([image], images.vit_google(32))[0], theirs[0])


@pytest.mark.parametrize("size", SIZES)
def test_imagegpts_tokens_are_hugging_faces(size):
    """Two pixels a level apart may be nearest to different colours, but not if the colours lie far apart."""
    image, centers = (
        smooth(*size),
        np.array([[20, 20, 20], [230, 40, 40], [40, 220, 60], [60, 60, 235], [235, 235, 225]]),
    )
    processor = twins.transformers.ImageGPTImageProcessorPil(
        clusters=centers / 127.5 - 1, size={"height": 8, "width": 8}
    )
    theirs = processor(images=Image.fromarray(image), return_tensors="np")["input_ids"][0]
    ours = Palette(centers).encode(images.preprocess([image], images.imagegpt(8))[0]).ravel()
    assert np.array_equal(ours, theirs)


SIDES = st.integers(1, 70)


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from(["bicubic", "bilinear"]), st.integers(0, 9))
def test_resized_pictures_are_pillows_bit_by_bit(old, new, method, seed):
    made = np.random.default_rng(seed).integers(0, 256, (2, *old, 3)).astype(np.uint8)
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[method]
    theirs = np.stack([np.asarray(Image.fromarray(one).resize(new[::-1], resample)) for one in made])
    assert np.array_equal(reference_images.resize(made, *new, method=method), theirs)
    assert np.array_equal(numba_images.resize(made, *new, method=method), theirs)
    assert np.array_equal(numba_images.resize(made[:, ::-1, ::-1], *new, method=method)[0, -1, -1], np.asarray(
        Image.fromarray(np.ascontiguousarray(made[0, ::-1, ::-1])).resize(new[::-1], resample))[-1, -1])  # fmt: skip


def test_a_large_picture_is_pillows_bit_by_bit():
    """More weights than a small one has, and more rows than are taken at a time."""
    made = np.random.default_rng(0).integers(0, 2, (1, 1001, 1403, 3)).astype(np.uint8) * 255
    theirs = np.asarray(Image.fromarray(made[0]).resize((32, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(numba_images.resize(made, 24, 32)[0], theirs)


@pytest.mark.parametrize(
    "how", [images.clip(16), images.siglip(16), images.vit_google(16)], ids=["clip", "siglip", "vit"]
)
def test_images_of_one_size_may_come_in_one_array(how):
    made = np.stack([smooth(40, 30), smooth(40, 30)[::-1], smooth(40, 30)[:, ::-1]])
    assert np.array_equal(images.preprocess(made, how), images.preprocess(list(made), how))
    assert images.preprocess(made[:0], how).shape == (0, 16, 16, 3)


def test_what_is_no_image_is_refused():
    for wrong in (np.zeros((3, 3, 3)), np.zeros((3, 3), np.uint8), np.zeros((0, 3, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(h, w, 3\)"):
            images.preprocess([wrong], images.clip(4))
    assert images.preprocess([], images.clip(4)).shape == (0, 4, 4, 3)
