"""quantize: pictures of few colours, right to the pixel."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from saccade.interop.pillow import quantize


def photograph():
    from skimage.data import astronaut

    return Image.fromarray(astronaut()[::4, ::4])


def error(image, made):
    return np.square(np.asarray(image.convert("RGB"), float) - np.asarray(made.convert("RGB"), float)).mean()


@pytest.mark.parametrize("colors", [1, 2, 16, 256])
def test_every_pixel_has_the_nearest_of_the_colours(colors):
    image = photograph()
    made = quantize(image, colors)
    levels = np.array(made.getpalette()).reshape(-1, 3)
    assert made.mode == "P" and made.size == image.size and len(levels) <= colors
    distances = np.square(np.asarray(image)[:, :, None].astype(int) - levels).sum(-1)
    assert np.array_equal(np.asarray(made), distances.argmin(-1))


def test_it_is_nearer_than_pillows_own():
    image = photograph()
    theirs = min(error(image, image.quantize(32, method)) for method in (0, 2))
    assert error(image, quantize(image, 32)) < theirs


def test_few_colours_are_kept_and_files_hold_them():
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[2, 3] = 200, 10, 0
    made = quantize(Image.fromarray(pixels), 16)
    file = io.BytesIO()
    made.save(file, "png")
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb_first(mode):
    image = photograph().convert(mode)
    assert error(image.convert("RGB"), quantize(image, 64)) < 100


def test_drop_ins_are_found_by_name_and_import_nothing_unasked():
    program = (
        "import sys, saccade; saccade.interop.report();"
        "print({'torch', 'timm', 'sklearn', 'PIL'} & set(sys.modules));"
        "print(saccade.interop.pillow.quantize.__name__, 'timm' in dir(saccade.interop))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "quantize True"]


def test_bad_calls_are_refused_in_a_sentence():
    image = photograph()
    for colors in (0, 257, 2.0, True):
        with pytest.raises(ValueError, match="an integer from 1 to 256"):
            quantize(image, colors)
    with pytest.raises(TypeError, match=r"ndarray, expected a PIL\.Image\.Image"):
        quantize(np.asarray(image))
