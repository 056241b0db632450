"""Checkpoints that tell too little, contradict themselves, or are not what they should be: one clear error each."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from test_weights import drawn
from test_weights_google import image_arrays
from test_weights_torch import archive as script, tensor

from saccade.models import clip, load, save, vit
from saccade.weights.files import convert

TINY = vit.ViTConfig(width=8, depth=1, heads=2, hidden=8, image_size=8, patch_size=4, classes=3)
CLIP = clip.CLIPConfig(
    embed=6,
    image=clip.image_config(width=8, depth=1, heads=2, hidden=8, image_size=8, patch_size=4),
    text=clip.TextConfig(width=8, depth=1, heads=2, hidden=8, vocabulary=11, context=4),
)
CLIP_TOLD = dict(gelu="sigmoid", eps=1e-5, heads=2)


@pytest.fixture
def file(tmp_path):
    """A function that writes a config's random parameters in a library's layout, in a folder or a file."""

    def write(config, library, name="x"):
        save(tmp_path / "ours.safetensors", drawn(config, np.float32), config)
        return convert(tmp_path / "ours.safetensors", tmp_path / name, library)

    return write


# --- what shapes do not tell -----------------------------------------------------------------------------------------


def test_what_nobody_tells_is_asked_for(file):
    with pytest.raises(
        ValueError, match=r"eps, gelu, heads cannot be told .* name a variant, as .* or say it, as eps=…"
    ):
        load(file(TINY, "hf", "x.safetensors"))
    with pytest.raises(ValueError, match=r"image\.gelu, image\.heads cannot be told .* say it, as gelu=…"):
        load(file(CLIP, "open_clip", "y.safetensors"))


def test_keywords_tell_it(file):
    told = dict(heads=2, gelu="tanh", eps=1e-6)
    assert load(file(TINY, "hf", "x.safetensors"), **told)[1] == TINY
    assert load(file(CLIP, "open_clip", "y.safetensors"), gelu="sigmoid", heads=2)[1] == CLIP
    with_towers = dict(image={"heads": 2, "gelu": "sigmoid"}, text={"heads": 4, "gelu": "erf"})
    config = load(file(CLIP, "open_clip", "y.safetensors"), **with_towers)[1]
    assert (config.image.gelu, config.text.gelu, config.text.heads) == ("sigmoid", "erf", 4)
    with pytest.raises(ValueError, match="head: no fact of vit, expected some of bias, causal, channels"):
        load(file(TINY, "hf", "x.safetensors"), head=2)


def test_a_variant_tells_it(file):
    config = replace(vit.variant("Ti/16", classes=3, gelu="erf", image_size=32), depth=12)
    path = file(config, "timm", "x.safetensors")
    assert load(path, variant="vit-Ti/16")[1] == config
    with pytest.raises(ValueError, match="width is 192 by the tensors' shapes but 1024 by variant='vit-L/16'"):
        load(path, variant="vit-L/16")
    with pytest.raises(ValueError, match="'vit-X' is no variant, expected one of imagegpt-S, "):
        load(path, variant="vit-X")
    with pytest.raises(ValueError, match="'clip-RN50' is of another kind than the checkpoint, vit"):
        load(path, variant="clip-RN50")


def test_who_contradicts_whom_is_said(file, tmp_path):
    file(TINY, "hf", "hf")
    with pytest.raises(ValueError, match=r"heads is 2 by config\.json but 4 by a keyword"):
        load(tmp_path / "hf", heads=4)
    with pytest.raises(ValueError, match="heads is 2 by the metadata but 4 by a keyword"):
        load(tmp_path / "ours.safetensors", heads=4)
    table = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(table | {"image_size": 12}))
    with pytest.raises(ValueError, match=r"image_size is 8 by the tensors' shapes but 12 by config\.json"):
        load(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(table | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match="activation 'relu', expected one of gelu, quick_gelu"):
        load(tmp_path / "hf")


def test_images_that_are_not_square_are_told_of(file, tmp_path):
    config = replace(TINY, image_size=(8, 4))
    for library in ("hf", "timm"):
        file(replace(config, gelu="erf"), library, library)
        assert load(tmp_path / library)[1].image_size == (8, 4)


def test_a_text_whose_end_is_not_the_highest_id_is_refused(file, tmp_path):
    file(CLIP, "hf", "hf")
    table = json.loads((tmp_path / "hf" / "config.json").read_text())
    table["text_config"]["eos_token_id"] = 3
    (tmp_path / "hf" / "config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="the end of text is id 3, expected the highest, 10"):
        load(tmp_path / "hf")


def test_what_a_layout_has_no_place_for_is_refused(file):
    with pytest.raises(ValueError, match=r"timm's ViT has no place for pre_logits\.weight, pre_logits\.bias"):
        file(replace(TINY, representation=4), "timm")
    with pytest.raises(ValueError, match=r"Hugging Face's ViT has no place for pool\.probe"):
        file(replace(TINY, pooling="map"), "hf")
    with pytest.raises(ValueError, match="timm has no layout of clip"):
        file(CLIP, "timm")
    with pytest.raises(ValueError, match="layout 'keras', expected one of hf, timm, open_clip, saccade"):
        file(TINY, "keras")
    with pytest.raises(ValueError, match="one GELU, erf or sigmoid, for both towers, not erf, sigmoid"):
        file(replace(CLIP, text=replace(CLIP.text, gelu="erf")), "open_clip", "folder")


def test_save_checks_names_and_shapes_before_it_writes(tmp_path):
    parameters = drawn(TINY) | {"head.bias": np.zeros(4)}
    with pytest.raises(ValueError, match=r"of another shape: head\.bias \(4,\), expected \(3,\)"):
        save(tmp_path / "x.safetensors", parameters, TINY)
    assert not list(tmp_path.iterdir())


# --- tensors that are missing, not expected, of another shape --------------------------------------------------------


def changed(path, change):
    """Rewrite a safetensors file after ``change(tensors)``."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_every_tensor_that_is_wrong_is_listed_with_the_nearest_name(file):
    path = file(CLIP, "hf", "x.safetensors")

    def change(tensors):
        tensors["text_model.final_layernorm.bias"] = tensors.pop("text_model.final_layer_norm.bias")
        del tensors["logit_scale"]
        tensors["vision_model.encoder.layers.0.mlp.fc2.bias"] = np.zeros(7, np.float32)
        tensors["text_projection.weight"] = np.zeros((6, 9), np.float32)
        tensors["visual_projection.bias"] = np.zeros(6, np.float32)

    changed(path, change)
    with pytest.raises(ValueError) as raised:
        load(path, **CLIP_TOLD)
    said = str(raised.value)
    for part in (
        f"{path}: its tensors are not those of Hugging Face's CLIP; missing: ",
        "text_model.final_layer_norm.bias (nearest: text_model.final_layernorm.bias)",
        "logit_scale",
        "not expected: ",
        "visual_projection.bias (nearest: visual_projection.weight)",
        "vision_model.encoder.layers.0.mlp.fc2.bias (7,), expected (8,)",
        "text_projection.weight (6, 9), expected (6, 8)",
    ):
        assert part in said, said
    assert "\n" not in said


def test_a_missing_tensor_that_gives_a_size_is_named(file):
    path = file(TINY, "hf", "x.safetensors")
    changed(path, lambda tensors: tensors.pop("vit.embeddings.patch_embeddings.projection.weight"))
    with pytest.raises(ValueError, match=r"missing: vit\.embeddings\.patch_embeddings\.projection\.weight \(nearest: "):
        load(path)
    changed(path, lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]])
    with pytest.raises(ValueError, match="no layout that saccade knows has tensors such as classifier"):
        load(path)


def test_a_block_that_is_missing_is_listed_whole(file):
    path = file(replace(TINY, depth=3), "timm", "x.safetensors")
    changed(path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("blocks.1.")])
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.norm1\.weight .* not expected: blocks\.2\.attn"):
        load(path, heads=2)


def test_timms_other_pooling_is_refused(file):
    path = file(replace(TINY, pooling="mean"), "timm", "x.safetensors")
    changed(path, lambda tensors: tensors.update({"fc_norm.weight": tensors.pop("norm.weight")}))
    with pytest.raises(ValueError, match=r"pools before its norm \(fc_norm\)"):
        load(path, heads=2)


def test_numbers_that_are_no_weights_are_refused(file):
    path = file(TINY, "timm", "x.safetensors")
    changed(path, lambda tensors: tensors.update({"head.bias": np.zeros(3, np.int32)}))
    with pytest.raises(ValueError, match=r"head\.bias is int32, expected one of float64"):
        load(path, heads=2)


# --- files that are not what they should be --------------------------------------------------------------------------


def header(table, data=b"", length=None):
    text = json.dumps(table).encode() if not isinstance(table, bytes) else table
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def metadata(facts):
    return header({"__metadata__": {"saccade": json.dumps({"kind": "vit", "facts": facts})}})


WHOLE = {"heads": 2, "gelu": "erf", "eps": 1, "width": 8, "depth": 1}
HOSTILE = {
    "empty": b"",
    "text": b"hello world, this is no checkpoint",
    "a header beyond the file": header({}, length=2**40),
    "a header that is no JSON": header(b"{" * 50),
    "a header with a shape beyond the file": header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
    "offsets that overlap": header(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "xy"}, bytes(4)
    ),
    "numbers of 4 bits": header({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
    "metadata of another kind": header({"__metadata__": {"saccade": '{"kind": "gan", "facts": {}}'}}),
    "metadata that is no JSON": header({"__metadata__": {"saccade": "{"}}),
    "metadata without facts": metadata(None),
    "metadata with too many facts": metadata(WHOLE | {"x": 1}),
    "no number of blocks": metadata(WHOLE | {"depth": "many"}),
    "a billion blocks": metadata(WHOLE | {"depth": 10**9}),
    "no width": metadata(WHOLE | {"width": 0}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_error(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError) as raised:
        load(tmp_path / "x.safetensors")
    assert str(tmp_path / "x.safetensors") in str(raised.value) and "\n" not in str(raised.value)


def test_a_header_whose_length_looks_like_a_pickle_is_still_one(tmp_path, length=0x880):
    save(tmp_path / "x.safetensors", drawn(TINY, np.float32), TINY)
    raw = (tmp_path / "x.safetensors").read_bytes()
    old = int.from_bytes(raw[:8], "little")
    padded = raw[8 : 8 + old].ljust(length)
    (tmp_path / "x.safetensors").write_bytes(len(padded).to_bytes(8, "little") + padded + raw[8 + old :])
    assert len(padded) == length
    assert load(tmp_path / "x.safetensors")[1] == TINY


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def npy(x, **options):
    out = io.BytesIO()
    np.save(out, x, **options)
    return out.getvalue()


def test_arrays_of_objects_are_refused_and_not_unpickled(tmp_path):
    path = archive(tmp_path / "x.npz", {"embedding/kernel.npy": npy(np.array([print], object), allow_pickle=True)})
    with pytest.raises(ValueError, match="an array of Python objects, which only a pickle could fill"):
        load(path)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(np.zeros(3))[:-1], "is not of the size that its header says"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9,)"), "is not of the size that its header says"),
        (npy(np.array(["a"])), "an array of <U1"),
        (b"\x93NUMPY\x09\x09" + bytes(100), "malformed"),
        (b"", "malformed"),
    ],
)
def test_malformed_arrays_are_refused(member, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(archive(tmp_path / "x.npz", {"embedding/kernel.npy": member}))


def test_an_archive_that_unfolds_to_many_times_its_size_is_refused(tmp_path):
    content = {"embedding/kernel.npy": npy(np.zeros(10**7, np.int8))}
    with pytest.raises(ValueError, match=r"10000\d+ bytes in a file of"):
        load(archive(tmp_path / "x.npz", content, zipfile.ZIP_DEFLATED))


def test_json_beside_a_checkpoint_is_judged_too(file, tmp_path):
    file(TINY, "hf", "hf")
    for text in ("[1]", "{", '{"a": ' * 10**5, "\x00", '"' + "a" * 2**24 + '"'):
        (tmp_path / "hf" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: "):
            load(tmp_path / "hf")


def test_what_is_not_there_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"a folder with none of model\.safetensors, "):
        load(tmp_path)


# --- a few thousand mutations ----------------------------------------------------------------------------------------


def mutated(raw, rng):
    """One of: bits flipped, bytes overwritten, cut short, a part left out, a part repeated."""
    raw, at = bytearray(raw), int(rng.integers(len(raw)))
    if rng.random() < 0.5:  # headers are where most can go wrong
        at = int(rng.integers(min(len(raw), 3000)))
    length = int(rng.integers(1, 9))
    kind = rng.integers(5)
    if kind == 0:
        raw[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        raw[at : at + length] = rng.choice(np.array([0, 1, 255, 128, 57], np.uint8), length).tobytes()
    elif kind == 2:
        del raw[at:]
    elif kind == 3:
        del raw[at : at + length]
    else:
        raw[at:at] = raw[at : at + length]
    return bytes(raw)


def seeds(folder):
    """(what is mutated, what is loaded, keywords) of a small file of each form."""
    save(folder / "ours.safetensors", drawn(CLIP, np.float32), CLIP)
    hf = convert(folder / "ours.safetensors", folder / "hf.safetensors", "hf")
    tensors = safetensors.numpy.load_file(hf)
    state = {name: torch.from_numpy(x) for name, x in tensors.items()}
    torch.save(state, folder / "new.bin")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    np.savez(folder / "x.npz", **image_arrays())
    script(folder / "script.pt", tensor((2, 3), (3, 1), name=b"visual.proj"))
    data = Path(__file__).parent / "data" / "imagegpt-masked"
    for one in data.iterdir():
        shutil.copy(one, folder)
    convert(folder / "ours.safetensors", folder / "folder", "hf")
    index = folder / "model.ckpt-1000.index"
    return {
        "ours": (folder / "ours.safetensors",) * 2 + ({},),
        "safetensors": (hf, hf, CLIP_TOLD),
        "npz": (folder / "x.npz",) * 2 + ({},),
        "state dictionary": (folder / "new.bin",) * 2 + (CLIP_TOLD,),
        "old state dictionary": (folder / "old.bin",) * 2 + (CLIP_TOLD,),
        "archive": (folder / "script.pt",) * 2 + ({},),
        "index": (index, index, {}),
        "config.json": (folder / "folder" / "config.json", folder / "folder", {}),
    }


@pytest.mark.parametrize(
    "form",
    ["ours", "safetensors", "npz", "state dictionary", "old state dictionary", "archive", "index", "config.json"],
)
def test_mutations_load_or_are_one_error(form, tmp_path):
    path, loaded, told = seeds(tmp_path)[form]
    raw, rng, errors = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        path.write_bytes(mutated(raw, rng))
        try:
            parameters, _ = load(loaded, **told)
            assert all(isinstance(x, np.ndarray) for x in parameters.values())
        except ValueError as error:
            errors += 1
            assert str(tmp_path) in str(error)
    assert errors > 100 or form == "config.json"
