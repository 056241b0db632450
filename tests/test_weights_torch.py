"""PyTorch's files: TorchScript archives and state dictionaries, and that nothing in them is run."""

import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import twins

from saccade.models import load
from saccade.weights import archives


def scripted(model, images, path):
    """Save a model as OpenAI released CLIP: traced, with code."""
    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (twins.channels_first(images), torch.tensor(twins.TEXTS))).save(path)
    return path


CLIPS = {
    "vit": (dict(layers=2, width=64, head_width=64, patch_size=8, image_size=16), twins.IMAGES),
    "resnet": (dict(layers=[2, 1, 1, 1], width=8, image_size=64, head_width=64), twins.TALLER_IMAGES),
}


def narrow_headed(vision):
    """A twin whose heads are 64 wide, as all of OpenAI's."""
    import open_clip

    text = dict(context_length=8, vocab_size=49, width=64, heads=1, layers=2)
    made_from = dict(embed_dim=12, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    model = twins.perturbed(open_clip.CLIP(**made_from))
    model.made_from = made_from
    return model, *twins.loaded(model)


@pytest.mark.parametrize("name", CLIPS)
def test_an_archive_is_read_as_the_safetensors_of_the_same_model(name, tmp_path):
    vision, images = CLIPS[name]
    model, expected, config = narrow_headed(vision)
    parameters, found = load(scripted(model, images, tmp_path / "x.pt"))
    assert replace(found, image=replace(found.image, mean=None, std=None)) == config
    assert parameters.keys() == expected.keys()
    assert all(np.array_equal(parameters[key], x) for key, x in expected.items())


@pytest.mark.parametrize("form", ["plain", "old", "trained", "nested model", "half"])
def test_state_dictionaries_are_read(form, tmp_path):
    model, expected, _ = twins.huggingface_vit()
    state = model.half().state_dict() if form == "half" else model.state_dict()
    names = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key"}
    names |= {"attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}
    names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "vit.layers": "vit.encoder.layer"}
    for new, old in names.items():  # as on the disk
        state = {name.replace(new, old): x for name, x in state.items()}
    if form == "trained":
        state = {"state_dict": {f"module.{name}": x for name, x in state.items()}, "epoch": 3}
    if form == "nested model":
        state = {"model": state, "args": {"lr": 0.1}}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old")
    model.config.save_pretrained(tmp_path)
    parameters, _ = load(tmp_path)
    dtype = np.float16 if form == "half" else np.float64
    assert all(np.array_equal(parameters[name], x.astype(dtype)) for name, x in expected.items())


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["pickle", "torch", "archive"])
def test_code_in_a_file_is_not_run(form, tmp_path):
    evil, mark = {"visual.proj": Evil(tmp_path / "ran")}, tmp_path / "ran"
    path = tmp_path / "x.pt"
    if form == "torch":
        torch.save(evil, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(evil, protocol=2))
            archive.writestr("x/code/__torch__.py", "raise SystemExit")
    with pytest.raises(ValueError, match=r"which is not run|calls io\.open"):
        load(path)
    assert not mark.exists()


def archive(path, code, storage=bytes(48)):
    """An archive of a pickle and one storage."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/data.pkl", code)
        made.writestr("x/data/0", storage)
        made.writestr("x/code/__torch__.py", "")
    return path


def tensor(shape, stride, offset=0, storage="FloatStorage", name=b"weight"):
    """The pickle of a module with one tensor."""

    def text(x):
        return b"X" + struct.pack("<I", len(x)) + x

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", x) for x in values) + b"t"

    storage = b"(" + text(b"storage") + b"ctorch\n" + storage.encode() + b"\n" + text(b"0") + text(b"cpu") + b"K\x0ct"
    rebuilt = b"(" + storage + b"QJ" + struct.pack("<i", offset) + numbers(shape) + numbers(stride) + b"\x89}t"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n" + rebuilt + b"R"
    return b"\x80\x02c__torch__\nM\n)\x81}(" + text(name) + made + b"ub."


def test_the_machine_reads_what_it_was_made_for(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    path = archive(tmp_path / "x.pt", tensor((2, 3), (3, 1), offset=4), numbers.tobytes())
    source = archives.TorchScript(path)
    assert source.shapes == {"weight": (2, 3)} and source.dtypes == {"weight": np.dtype(np.float32)}
    assert np.array_equal(source.read("weight"), numbers[4:10].reshape(2, 3))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (tensor((2, 3), (1, 2)), "expected the plain order"),
        (tensor((5, 3), (3, 1)), "reaches beyond its storage of 48 bytes"),
        (tensor((2, 3), (3, 1), offset=-1), "offset=-1"),
        (tensor((2, 3), (3, 1), storage="ComplexStorage"), "a storage"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", r"calls os\.system, which is not run"),
        (b"\x80\x02cos\nsystem\n)\x81}b.", "expected modules alone"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "instruction STACK_GLOBAL"),
        (b"\x80\x02]q\x00h\x00a.", "no module"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "modules in modules without end"),
        (b"\x80\x02" + b"(" * 10, "malformed"),
        (b"\x80\x02h\x05.", "malformed"),
        (b"", "malformed"),
    ],
)
def test_pickles_of_anything_else_are_refused(code, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(archive(tmp_path / "x.pt", code))


def test_a_bomb_is_not_unfolded(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", tensor((5000, 1000), (1000, 1)))
        made.writestr("x/data/0", bytes(20_000_000))
        made.writestr("x/code/__torch__.py", "")
    with pytest.raises(ValueError, match=r"20000.* bytes in a file of "):
        load(tmp_path / "x.pt")


def test_a_flipped_bit_of_an_archive_is_seen(tmp_path):
    path = archive(tmp_path / "x.pt", tensor((12,), (1,)), np.ones(12, np.float32).tobytes())
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.float32(1).tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        archives.TorchScript(path).read("weight")


def test_archives_need_no_torch(tmp_path):
    path = archive(tmp_path / "x.pt", tensor((12,), (1,)))
    program = f"""
import sys
sys.modules["torch"] = None
from saccade.weights.sources import open_source
print(open_source({str(path)!r}).read("weight").sum())
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "0.0", done.stderr
