"""Checkpoints of other libraries: what is read is theirs, to the bit, and what is written they read."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import twins
from support import assert_close64

from saccade import reference
from saccade.models import clip, imagegpt, load, save, vit
from saccade.weights.files import convert

TWINS = {
    "hf imagegpt": (twins.huggingface_imagegpt, "hf", twins.IMAGEGPT),
    "hf vit": (twins.huggingface_vit, "hf", twins.VIT),
    "hf clip": (twins.huggingface_clip, "hf", twins.CLIP),
    "hf siglip": (twins.huggingface_siglip, "hf", twins.SIGLIP),
    "timm token": (lambda: twins.timm_vit("token"), "timm", replace(twins.VIT, eps=1e-6)),
    "timm mean": (lambda: twins.timm_vit("mean"), "timm", replace(twins.VIT, eps=1e-6, pooling="mean")),
    "timm map": (lambda: twins.timm_vit("map"), "timm", replace(twins.VIT, eps=1e-6, pooling="map")),
    "open_clip vit": (twins.open_clip_twin, "open_clip", twins.CLIP),
    "open_clip resnet": (twins.open_clip_resnet, "open_clip", twins.RESNET_CLIP),
    "open_clip siglip": (twins.open_clip_siglip, "open_clip", None),
}


def the_file(folder):
    (found,) = folder.glob("*.safetensors")
    return found


@pytest.mark.parametrize("name", TWINS)
def test_configs_are_read_and_round_trips_are_exact_to_the_bit(name, tmp_path):
    make, library, expected = TWINS[name]
    model, _, config = make()
    assert expected is None or config == expected
    (tmp_path / "theirs").mkdir(exist_ok=True)
    twins.saved(model, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors", "saccade")
    convert(tmp_path / "ours.safetensors", tmp_path / "back.safetensors", library)
    theirs, back = (
        safetensors.numpy.load_file(x) for x in (the_file(tmp_path / "theirs"), tmp_path / "back.safetensors")
    )
    assert theirs.keys() == back.keys()
    for tensor, x in theirs.items():
        assert (x.dtype, x.shape, x.tobytes()) == (back[tensor].dtype, back[tensor].shape, back[tensor].tobytes())


def test_open_clips_siglip_gives_its_numbers():
    model, parameters, config = twins.open_clip_siglip()
    assert (config.image.gelu, config.text.gelu, config.image.heads) == ("erf", "erf", 3)
    ours = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES), torch.tensor(twins.TEXTS))
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close64(mine, expected.detach())


# --- what is written, they read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagegpt", "vit", "clip", "siglip"])
def test_hugging_face_reads_what_is_converted(name, tmp_path):
    """From our own parameters, whose biases of 0 Hugging Face's ImageGPT wants to see."""
    config = {
        "imagegpt": replace(twins.IMAGEGPT, bias=False),
        "vit": replace(twins.VIT, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7)),
        "clip": twins.CLIP,
        "siglip": twins.SIGLIP,
    }[name]
    parameters = drawn(config)
    save(tmp_path / "ours.safetensors", parameters, config)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs", "hf")
    kind = {"imagegpt": "ImageGPTForCausalImageModeling", "vit": "ViTForImageClassification"}
    cls = getattr(twins.transformers, kind.get(name, {"clip": "CLIPModel", "siglip": "SiglipModel"}.get(name)))
    model, report = cls.from_pretrained(tmp_path / "theirs", output_loading_info=True, dtype=torch.float64)
    assert not any(report.values()), report
    with torch.no_grad():
        if name == "imagegpt":
            theirs = model(input_ids=twins.shifted(twins.PALETTE_TOKENS)).logits
            ours = imagegpt.forward(parameters, twins.PALETTE_TOKENS, config, reference)
        elif name == "vit":
            theirs = model(twins.channels_first((twins.IMAGES - config.mean) / config.std)).logits
            ours = vit.forward(parameters, twins.IMAGES, config, reference)
        else:
            theirs = model(torch.tensor(twins.TEXTS), twins.channels_first(twins.IMAGES)).logits_per_image
            image, text, factor, *bias = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
            ours = factor * image @ text.T + sum(bias)
    assert_close64(ours, theirs)
    again, config_again = load(tmp_path / "theirs")
    assert all(np.array_equal(again[name], x) for name, x in parameters.items())
    if name == "vit":
        assert config_again == config


@pytest.mark.parametrize("gelu", ["erf", "tanh", "sigmoid"])
@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
def test_timm_reads_what_is_converted(pooling, gelu, tmp_path):
    import timm

    config = replace(twins.VIT, pooling=pooling, gelu=gelu, eps=1e-6, mean=(0.5,) * 3, std=(0.5,) * 3)
    parameters = drawn(config, np.float32)
    save(tmp_path / "ours.safetensors", parameters, config)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs", "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).double().eval()
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES * 2 - 1))
    parameters = {name: x.astype(np.float64) for name, x in parameters.items()}
    assert_close64(vit.forward(parameters, twins.IMAGES, config, reference), theirs)
    assert load(tmp_path / "theirs")[1] == config


@pytest.mark.parametrize("config", [twins.CLIP, twins.RESNET_CLIP], ids=["vit", "resnet"])
def test_open_clip_reads_what_is_converted(config, tmp_path):
    import open_clip

    parameters = drawn(config)
    save(tmp_path / "ours.safetensors", parameters, config)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs", "open_clip")
    table = json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.CLIP(**table).double().eval()
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "theirs" / "open_clip_model.safetensors"))
    images = twins.IMAGES if config is twins.CLIP else twins.TALLER_IMAGES
    with torch.no_grad():
        theirs = model(twins.channels_first(images), torch.tensor(twins.TEXTS))
    ours = clip.forward(parameters, images, twins.TEXTS, config, reference)
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close64(mine, expected)


def test_a_clip_goes_from_hugging_face_to_open_clip_and_back(tmp_path):
    model, parameters, _ = twins.huggingface_clip()
    twins.saved(model, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "open_clip", "open_clip")
    convert(tmp_path / "open_clip", tmp_path / "back", "hf")
    first, last = (safetensors.numpy.load_file(tmp_path / x / "model.safetensors") for x in ("hf", "back"))
    assert first.keys() == last.keys() and all(np.array_equal(first[name], last[name]) for name in first)


def drawn(config, dtype=np.float64, seed=0):
    """Parameters with nothing at 0 or 1, where a mistake would hide; variances are positive."""
    from saccade.models.variants import module_of

    rng = np.random.default_rng(seed)
    return {
        name: (0.3 * rng.standard_normal(shape) + name.endswith("scale")).astype(dtype)
        if not name.endswith("variance")
        else rng.uniform(0.5, 1.5, shape).astype(dtype)
        for name, (shape, _) in module_of(config).layout(config).items()
    }


def test_what_older_files_hold_besides_is_left_out(tmp_path):
    model, parameters, _ = twins.huggingface_imagegpt()
    twins.saved(model, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors |= {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 16, 16), np.uint8) for i in range(2)}
    tensors |= {f"transformer.h.{i}.attn.masked_bias": np.array(-1e9, np.float32) for i in range(2)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    again, _ = load(tmp_path)
    assert all(np.array_equal(again[name], x) for name, x in parameters.items())


def test_a_classifier_of_pixels_has_no_head_for_colours(tmp_path):
    model, parameters, config = twins.huggingface_imagegpt("ForImageClassification", num_labels=5)
    assert config.classes == 5 and not parameters["head.weight"].any()
    twins.saved(model, tmp_path)
    convert(tmp_path, tmp_path / "x.safetensors", "hf")
    back = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert back.keys() - theirs.keys() == {"lm_head.weight"}
    assert all(np.array_equal(back[name], x) for name, x in theirs.items())


# --- dtypes, shards and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_dtypes_are_as_stored_or_as_asked(dtype, tmp_path):
    config = replace(twins.VIT, eps=1e-6)
    parameters = drawn(config, dtype)
    save(tmp_path / "x.safetensors", parameters, config)
    again, config_again = load(tmp_path / "x.safetensors")
    assert config_again == config
    assert all((x.dtype, x.tobytes()) == (dtype, again[name].tobytes()) for name, x in parameters.items())
    wide, _ = load(tmp_path / "x.safetensors", dtype=np.float64)
    assert all(np.array_equal(wide[name], x.astype(np.float64)) for name, x in parameters.items())
    with torch.no_grad():
        theirs = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert all(theirs[name].double().numpy().tobytes() == x.tobytes() for name, x in wide.items())


def test_where_dtypes_differ_all_become_the_one_that_holds_them(tmp_path):
    parameters = drawn(twins.CLIP, np.float32) | {"logit_scale": np.asarray(2.5, np.float16)}
    parameters["text.embed.weight"] = parameters["text.embed.weight"].astype(ml_dtypes.bfloat16)
    save(tmp_path / "x.safetensors", parameters, twins.CLIP)
    again, _ = load(tmp_path / "x.safetensors")
    assert {x.dtype for x in again.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(again[name], x.astype(np.float32)) for name, x in parameters.items())
    with pytest.raises(ValueError, match="dtype=dtype\\('int8'\\), expected one of float64"):
        load(tmp_path / "x.safetensors", dtype="int8")


def test_shards_are_read_as_one(tmp_path):
    model, parameters, _ = twins.huggingface_clip()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again, _ = load(tmp_path)
    assert all(np.array_equal(again[name], x) for name, x in parameters.items())
    index = tmp_path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["logit_scale"] = "../x.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"'\.\./x\.safetensors' is no file of its folder"):
        load(tmp_path)


def test_what_is_mapped_may_be_written_to_and_outlives_its_file(tmp_path):
    """Also where tensors lie askew in the file, as safetensors allows: those are copied."""
    config = twins.VIT
    parameters = {name: x.astype(np.float32) for name, x in drawn(config, np.float64).items()}
    path = tmp_path / "x.safetensors"
    save(path, parameters, config)
    before = path.read_bytes()
    length = int.from_bytes(before[:8], "little")
    askew = tmp_path / "askew.safetensors"
    askew.write_bytes((length + 1).to_bytes(8, "little") + before[8 : 8 + length] + b" " + before[8 + length :])
    for file in (path, askew):
        found, _ = load(file)
        assert all(np.array_equal(found[name], x) and found[name].flags.aligned for name, x in parameters.items())
        held = file.read_bytes()
        for x in found.values():
            x += 1
        assert file.read_bytes() == held and np.array_equal(load(file)[0]["head.weight"], parameters["head.weight"])
    found, _ = load(path)
    save(path, {name: 0 * x for name, x in parameters.items()}, config)
    assert all(np.array_equal(found[name], x) for name, x in parameters.items())


MEMORY = """
import resource, sys
import numpy as np
import saccade.torch
from saccade.models import load
from saccade.weights import archives, files, huggingface_clip, safe
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
{call}
print(peak() - before)
"""
CALLS = {
    "load": "load(sys.argv[1])",
    "load a state dictionary": "load(sys.argv[1])",
    "convert": "files.convert(sys.argv[1], sys.argv[1] + '/out.safetensors', 'open_clip')",
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder of a CLIP in Hugging Face's layout, its size in bytes, that of its largest tensor)."""
    folder = tmp_path_factory.mktemp("large")
    whole = clip.variant("ViT-B/32")
    config = replace(whole, image=replace(whole.image, depth=3), text=replace(whole.text, depth=2))
    parameters = drawn(config, np.float16)
    save(folder / "ours.safetensors", parameters, config)
    file = convert(folder / "ours.safetensors", folder / "hf", "hf")
    return file.parent, file.stat().st_size, max(x.nbytes for x in parameters.values())


@pytest.mark.parametrize("name", CALLS)
def test_a_file_and_one_tensor_fit_in_memory(name, large, tmp_path):
    """Packed and transposed tensors, too: more than the file and its largest tensor is never held."""
    folder, size, largest = large
    if "state" in name:
        torch.save(safetensors.torch.load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
        shutil.copy(folder / "config.json", tmp_path)
        folder = tmp_path
    program = MEMORY.format(call=CALLS[name])
    done = subprocess.run([sys.executable, "-P", "-c", program, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= size + largest + 2**24, (int(done.stdout), size, largest)
