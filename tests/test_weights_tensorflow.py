"""TensorFlow's checkpoints: files that TensorFlow 2.21 wrote (``data/imagegpt``), and what is wrong with others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from saccade import Palette
from saccade.models import imagegpt, load, load_palette
from saccade.weights import checksum, tensorflow

HERE = Path(__file__).parent / "data" / "imagegpt"
E, HEADS, COLORS, LENGTH = 8, 2, 5, 4


def written():
    """The numbers that TensorFlow was given."""
    shapes = {"wte": (COLORS, E), "sos": (E,), "wpe": (LENGTH, E), "wtet": (COLORS, E), "ln_f/g": (E,)}
    shapes["clf/wclf"] = (3, E)
    for i in range(2):
        shapes |= {f"h{i}/ln_1/g": (E,), f"h{i}/ln_2/g": (E,)}
        shapes |= {f"h{i}/mlp/c_fc/w": (1, E, 4 * E), f"h{i}/mlp/c_proj/w": (1, 4 * E, E)}
        shapes |= {f"h{i}/attn/{name}_proj": (HEADS, E // HEADS, E) for name in "qkvc"}
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in sorted(shapes)}


def test_every_tensor_is_what_tensorflow_was_given():
    source = tensorflow.TensorFlow(HERE / "model.ckpt-1000.index")
    expected = {f"model/{name}": x for name, x in written().items()}
    expected |= {"model/wte/adam_m": np.zeros((COLORS, E), np.float32), "global_step": np.int64(1000)}
    assert source.shapes.keys() == expected.keys()
    for name, x in expected.items():
        found = source.read(name)
        assert found.dtype == x.dtype and np.array_equal(found, x), name


@pytest.mark.parametrize("path", [HERE, HERE / "model.ckpt-1000", HERE / "model.ckpt-1000.index"])
def test_an_imagegpt_is_read_by_folder_prefix_or_index(path):
    parameters, config = load(path)
    sizes = dict(width=E, depth=2, heads=HEADS, colors=COLORS, length=LENGTH, classes=3)
    assert config == imagegpt.ImageGPTConfig(**sizes)
    theirs = written()
    x = np.random.default_rng(0).standard_normal(E).astype(np.float32)
    query = np.einsum("hde,e->hd", theirs["h1/attn/q_proj"], x).ravel()
    assert np.allclose(parameters["blocks.1.attention.qkv.weight"][:E] @ x, query)
    value = np.einsum("hde,e->hd", theirs["h1/attn/v_proj"], x).ravel()
    assert np.allclose(parameters["blocks.1.attention.qkv.weight"][2 * E :] @ x, value)
    out = np.einsum("hde,hd->e", theirs["h0/attn/c_proj"], x.reshape(HEADS, -1))
    assert np.allclose(parameters["blocks.0.attention.out.weight"] @ x, out)
    hidden = x @ theirs["h0/mlp/c_fc/w"][0]
    assert np.allclose(parameters["blocks.0.mlp.fc1.weight"] @ x, hidden)
    assert np.allclose(parameters["blocks.0.mlp.fc2.weight"] @ hidden, hidden @ theirs["h0/mlp/c_proj/w"][0])
    for ours, name in (("embed.sos", "sos"), ("head.weight", "wtet"), ("classifier.weight", "clf/wclf")):
        assert np.array_equal(parameters[ours], theirs[name])


def test_without_a_start_of_sequence_the_objective_is_masked():
    parameters, config = load(HERE.with_name("imagegpt-masked"))
    sizes = dict(width=E, depth=1, heads=HEADS, colors=COLORS, length=LENGTH)
    assert config == imagegpt.ImageGPTConfig(**sizes, objective="masked") and not config.causal
    assert parameters.keys() == imagegpt.layout(config).keys()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 64, 1000])
def test_checksums_are_castagnolis(length):
    assert checksum.crc32c(b"123456789") == 0xE3069283  # the catalogues' own example
    data = np.random.default_rng(length).integers(0, 256, length + 3).astype(np.uint8)
    rest = 0xFFFFFFFF
    for byte in data[3:]:
        rest ^= int(byte)
        for _ in range(8):
            rest = (rest >> 1) ^ (checksum.POLYNOMIAL if rest & 1 else 0)
    assert checksum.crc32c(data[3:]) == rest ^ 0xFFFFFFFF  # at a place that no word of eight bytes begins at


def copied(folder):
    for file in HERE.iterdir():
        shutil.copy(file, folder)
    return folder / "model.ckpt-1000.index"


def test_every_flipped_bit_of_a_tensor_is_seen(tmp_path):
    index = copied(tmp_path)
    shard = index.with_name("model.ckpt-1000.data-00000-of-00002")
    raw = bytearray(shard.read_bytes())
    for at in range(0, len(raw), 331):
        raw[at] ^= 1 << at % 8
        shard.write_bytes(raw)
        source = tensorflow.TensorFlow(index)
        with pytest.raises(ValueError, match="do not have their checksum"):
            for name in source.shapes:
                source.read(name)
        raw[at] ^= 1 << at % 8


def test_every_flipped_bit_of_the_index_is_seen(tmp_path):
    index = copied(tmp_path)
    raw = bytearray(index.read_bytes())
    for at in range(0, len(raw) - tensorflow.FOOTER, 7):
        raw[at] ^= 1 << at % 8
        index.write_bytes(raw)
        with pytest.raises(ValueError, match=r"checksum|malformed|truncated|no index"):
            load(index)
        raw[at] ^= 1 << at % 8


def test_what_is_missing_or_truncated_is_named(tmp_path):
    index = copied(tmp_path)
    shard = index.with_name("model.ckpt-1000.data-00001-of-00002")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="data-00001-of-00002: truncated"):
        load(index)
    shard.unlink()
    with pytest.raises(ValueError, match="data-00001-of-00002 is missing"):
        load(index)
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no index of a TensorFlow checkpoint"):
        load(index)


def test_the_palette_is_read_beside_a_checkpoint(tmp_path):
    palette = Palette(np.random.default_rng(0).integers(0, 256, (5, 3)))
    copied(tmp_path)
    with pytest.raises(ValueError, match=r"neither kmeans_centers\.npy nor"):
        load_palette(tmp_path / "model.ckpt-1000")
    palette.save(tmp_path / "kmeans_centers.npy")
    assert np.array_equal(load_palette(tmp_path / "model.ckpt-1000").centers, palette.centers)
    assert np.array_equal(load_palette(tmp_path).centers, palette.centers)
    clusters = (palette.centers / 127.5 - 1).tolist()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters}))
    assert np.array_equal(load_palette(tmp_path / "hf").centers, palette.centers)
