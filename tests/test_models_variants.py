"""The table of variants: published counts to the digit, costs that other libraries count alike."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import twins
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from saccade.models import clip, imagegpt, resnet, vit
from saccade.models.initialization import count
from saccade.models.variants import VARIANTS, cost, table
from saccade.torch import ImageGPT, ResNet, ViT

PUBLISHED = {
    "imagegpt-S": 76_571_648,
    "imagegpt-M": 455_157_760,
    "imagegpt-L": 1_362_250_752,
    "imagegpt-L@48px": 1_364_216_832,
    "imagegpt-XL@64px": 6_810_875_904,
    "vit-Ti/16": 5_717_416,
    "vit-S/32": 22_878_952,
    "vit-S/16": 22_050_664,
    "vit-B/32": 88_224_232,
    "vit-B/16": 86_567_656,
    "vit-B/8": 86_576_872,
    "vit-L/32": 306_535_400,
    "vit-L/16": 304_326_632,
    "vit-H/14": 632_045_800,
    "vit-g/14": 1_012_611_432,
    "vit-G/14": 1_844_440_680,
    "clip-RN50": 102_007_137,
    "clip-RN101": 119_688_033,
    "clip-RN50x4": 178_300_601,
    "clip-RN50x16": 290_979_217,
    "clip-RN50x64": 623_258_305,
    "clip-ViT-B/32": 151_277_313,
    "clip-ViT-B/16": 149_620_737,
    "clip-ViT-L/14": 427_616_513,
    "clip-ViT-L/14@336px": 427_944_193,
}
HEADLESS = {
    "Ti/16": 5_524_416, "S/32": 22_493_952, "S/16": 21_665_664, "B/32": 87_455_232, "B/16": 85_798_656,
    "B/8": 85_807_872, "L/32": 305_510_400, "L/16": 303_301_632, "H/14": 630_764_800, "g/14": 1_011_202_432,
    "G/14": 1_842_775_680,
}  # fmt: skip
IMAGE_TOWERS = {
    "RN50": 38_316_896, "RN101": 56_259_936, "RN50x4": 87_137_080, "RN50x16": 167_328_912, "RN50x64": 420_380_352,
    "ViT-B/32": 87_849_216, "ViT-B/16": 86_192_640, "ViT-L/14": 303_966_208, "ViT-L/14@336px": 304_293_888,
}  # fmt: skip
# Scaling ViT's table 2, at 224 pixels.
PUBLISHED_GFLOPS = {
    "s/28": 0.7, "s/16": 2.2, "S/32": 2.3, "Ti/16": 2.5, "B/32": 8.7, "S/16": 9.2, "B/28": 11.3, "B/16": 35.1,
    "L/16": 122.9, "g/14": 533.1, "G/14": 965.3,
}  # fmt: skip


def test_variants_have_the_published_numbers_of_parameters():
    rows = {row["name"]: row["parameters"] for row in table()}
    assert {name: rows[name] for name in PUBLISHED} == PUBLISHED
    assert {name: count(vit.layout(vit.variant(name))) for name in HEADLESS} == HEADLESS
    for name, parameters in IMAGE_TOWERS.items():
        layout = clip.layout(clip.variant(name))
        assert count({n: x for n, x in layout.items() if n.startswith("image")}) == parameters


def open_clip_config(name):
    import open_clip

    config = open_clip.get_model_config(name)
    config.pop("custom_text", None)
    return config


def test_siglips_have_open_clips_numbers_of_parameters():
    import open_clip

    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**open_clip_config("ViT-B-16-SigLIP"))
    assert cost(VARIANTS["siglip-B/16"]).parameters == sum(x.numel() for x in theirs.parameters())


def test_the_paper_counts_nearly_the_same_flops():
    for name, published in PUBLISHED_GFLOPS.items():
        ours = cost(vit.variant(name, pooling="map")).flops / 1e9
        assert abs(ours - published) <= 0.05 + 0.011 * published, (name, ours)


def counted(model, *inputs):
    """The products and convolutions that torch counts in a model."""
    with FlopCounterMode(display=False) as counter:
        model.eval().requires_grad_(False)(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("pooling", ["token", "map"])
def test_flops_of_a_vit_are_those_that_torch_counts_in_timms(pooling):
    import timm

    options = dict(class_token=False, global_pool="map") if pooling == "map" else {}
    with torch.device("meta"):
        theirs = timm.create_model("vit_small_patch32_224", num_classes=7, **options)
        expected = counted(theirs, torch.empty(1, 3, 224, 224))
    assert cost(vit.variant("S/32", pooling=pooling, classes=7)).flops == expected


@pytest.mark.parametrize("name", ["RN50", "RN50x4", "ViT-B/32"])
def test_flops_of_a_clip_are_those_that_torch_counts_in_open_clips(name):
    import open_clip

    config = clip.variant(name)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip_config(name.replace("/", "-")))
        expected = counted(theirs.visual, torch.empty(1, 3, config.image.image_size, config.image.image_size))
    if name.startswith("RN"):  # theirs pools with every token's query, and uses the first result
        n, e = config.image.tokens, config.image.features
        expected -= 2 * (n - 1) * (e * e + 2 * n * e + e * config.embed)
    assert cost(config).flops == expected


def test_flops_of_an_imagegpt_are_those_that_torch_counts_in_hugging_faces():
    """Theirs multiplies what its mask then hides: as many products as a model that sees both ways."""
    theirs = twins.transformers.ImageGPTForCausalImageModeling(
        twins.transformers.ImageGPTConfig(n_positions=16, n_embd=24, n_layer=2, n_head=3, vocab_size=17)
    )
    expected = counted(theirs, torch.zeros(1, 16, dtype=torch.int64))
    sizes = dict(width=24, depth=2, heads=3, colors=16, length=16)
    both_ways = cost(imagegpt.ImageGPTConfig(objective="masked", **sizes)).flops
    assert both_ways == expected
    hidden = 2 * (16 * 15 // 2) * 2 * 2 * 24
    assert cost(imagegpt.ImageGPTConfig(**sizes)).flops == expected - hidden


def kept(call, model):
    """The bytes that autograd keeps of what ``call()`` computes, besides the model's own and the result's."""
    own, found = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}, {}

    def pack(x):
        found[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        out = call()
    own.add(out.untyped_storage().data_ptr())
    return sum(x.untyped_storage().nbytes() for at, x in found.items() if at not in own)


@pytest.mark.parametrize(
    ("module", "config", "x"),
    [
        (ViT, replace(twins.VIT, eps=1e-6), torch.rand(1, 16, 16, 3)),
        (ImageGPT, replace(twins.IMAGEGPT, bias=False), torch.zeros(1, 16, dtype=torch.int64)),
    ],
)
def test_activations_are_what_autograd_keeps_of_the_blocks(module, config, x):
    found = []
    for depth in (1, 3):
        deep = replace(config, depth=depth)
        model = module(deep)
        found.append((kept(lambda model=model: model(x), model), cost(deep).activations))
    assert found[1][0] - found[0][0] == found[1][1] - found[0][1] > 0


def test_activations_of_a_resnet_are_what_autograd_keeps_of_its_stem_and_blocks():
    config = replace(twins.RESNET_CLIP.image, layers=(2, 1, 2, 1))
    model = ResNet(config).eval()
    images = torch.rand(1, 64, 64, 3)

    def run(name, x, **options):
        return x if name == "pool" else model.get_submodule(name)(x, **options)

    assert kept(lambda: resnet.compose(run, images, config), model) == cost(config).activations


def test_the_command_shows_every_variant_and_writes_them(tmp_path):
    script = Path(sys.executable).with_name("saccade")
    done = subprocess.run([script, "models", "--json", tmp_path / "m.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in VARIANTS) and "151,277,313" in done.stdout
    assert json.loads((tmp_path / "m.json").read_text()) == table()


def test_the_page_of_the_papers_runs_is_what_its_command_prints():
    from saccade.bench import scale

    page = Path(__file__).parents[1] / "bench" / "SCALE.md"
    assert page.read_text(encoding="utf-8") == scale.report()
    clip_run, giant = scale.runs()
    assert clip_run.steps == 390_625 and clip_run.share == 128 and giant.share == 64
    # 6 parameters a token of the matrices of 24 blocks of 1,024, forwards and backwards, and little else
    tokens = clip_run.share * (257 * 24 * 12 * 1024**2 + 77 * 12 * 12 * 768**2)
    assert clip_run.seconds()["products but attention's"] == pytest.approx(6 * tokens / scale.PRODUCTS, rel=0.01)
