"""Figures of whole procedures that bars ask for, as probes.

What recipes reach on pictures that ship with scikit-learn and scikit-image, how fast pictures are read, and the memory
of a training step.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

from saccade.bench.device import Processors, variables
from saccade.bench.probes import measure
from saccade.models import vit
from saccade.palette import Palette
from saccade.recipes import fewshot, finetune, pretrain_clip, pretrain_imagegpt, pretrain_vit, zeroshot
from saccade.recipes.data import Skipped, open_source
from saccade.recipes.demo_clip import NAMES, TEMPLATES
from saccade.recipes.demo_imagegpt import bigram_nats, held_out_nats
from saccade.recipes.loading import Loader
from saccade.recipes.photographs import crops, digits, photographs, split
from saccade.testing.peers import usable_torchvision
from saccade.torch import CLIP, ViT

SIDE = 16
MINUTES, CUTS = 30.0, 5  # of training, and how often it is interrupted
TRIALS = 200, 1000  # steps of which its length is taken
QUIET = {"console": Console(quiet=True), "device": "cpu"}
PAIRS, PARTS = 4096, 8


def _as_folders(folder):
    """Digits as files, a folder for each class: the folders to train on and to test on."""
    for name, (images, labels) in zip(("seen", "unseen"), digits(), strict=True):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path(folder, name, NAMES[label], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).convert("RGB").save(path)
    return Path(folder, "seen"), Path(folder, "unseen")


def _share_right(objective, source):
    """How much of a source's pictures a classifier names right, in percent."""
    pictures = open_source(source)
    samples = [objective.prepare(pictures.read(job), None, training=False) for job in pictures.in_order()]
    images, labels = (np.stack(x) for x in zip(*samples, strict=True))
    with torch.no_grad():
        found = objective.model.eval()(torch.from_numpy(images)).argmax(1).numpy()
    return 100 * float((found == labels).mean())


def digits_vit():
    """(percent of held-out digits right, points that an epoch at twice the resolution gains on its start, percent right
    by ten of each from the frozen features)."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        seen, unseen = _as_folders(folder)
        cut = {"least": 0.6, "mirror": False}  # a digit's mirror image is none
        sizes = {"image_size": SIDE, "patch_size": 4}
        model = pretrain_vit.run(seen, Path(folder, "vit"), preset="vit-tiny", model=sizes, **cut, **QUIET)
        right = _share_right(pretrain_vit.Classes(model, list(NAMES)), unseen)
        model.resize(2 * SIDE)
        start = _share_right(pretrain_vit.Classes(model, list(NAMES)), unseen)
        tuned = finetune.run(
            Path(folder, "vit", "model.safetensors"), seen, Path(folder, "tuned"), image_size=2 * SIDE, keep_head=True,
            training={"epochs": 1, "batch": 64}, optimization={"peak": 3e-4, "optimizer": "adamw", "warm_up": 4},
            **cut, **QUIET,
        )  # fmt: skip
        gained = _share_right(pretrain_vit.Classes(tuned, list(NAMES)), unseen) - start
        found = fewshot.run(Path(folder, "vit", "model.safetensors"), seen, unseen, shots=(10,), **QUIET)
        (each,) = found["shots"][10].values()
        return right, gained, 100 * float(np.mean(each))


def digits_clip():
    """(percent of held-out digits right by the ensemble of prompts, points that it gains on one prompt)."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        seen, unseen = _as_folders(folder)
        with open(Path(folder, "captions.csv"), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            for path in sorted(seen.rglob("*.png")):
                for template in TEMPLATES:
                    writer.writerow([path.relative_to(folder), template.format(path.parent.name)])
        sizes = {"image.image_size": SIDE, "image.patch_size": 4}
        pretrain_clip.run(
            Path(folder, "captions.csv"), Path(folder, "clip"), preset="clip-tiny", model=sizes, **QUIET
        )  # fmt: skip
        model, prompts = Path(folder, "clip", "model.safetensors"), Path(folder, "prompts.txt")
        prompts.write_text("\n".join(TEMPLATES))
        ensemble, one = (
            100 * zeroshot.run(model, unseen, prompts=some, top=(1,), **QUIET)["top"][1]
            for some in (str(prompts), TEMPLATES[0])
        )
        return ensemble, ensemble - one


def photographs_imagegpt():
    """Percent by which held-out crops cost ImageGPT fewer nats a pixel than a bigram of the left neighbour."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rng = np.random.default_rng(0)
    seen, unseen = zip(*map(split, photographs().values()), strict=True)
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        file = Path(folder, "palette.npy")
        palette = Palette.fit(np.concatenate([x.reshape(-1, 3) for x in seen]), 512, iterations=10, seed=0)
        palette.save(file)
        np.savez(Path(folder, "crops.npz"), images=crops(seen, 12_000, SIDE, rng)[0])
        model = pretrain_imagegpt.run(
            Path(folder, "crops.npz"), Path(folder, "pixels"), palette=file, preset="igpt-tiny", **QUIET
        )  # fmt: skip
    tokens = [palette.encode(crops(some, n, SIDE, rng)[0]) for some, n in ((seen, 4000), (unseen, 512))]
    mine = held_out_nats(model, torch.from_numpy(tokens[1].reshape(len(tokens[1]), -1).astype(np.int64)))
    return 100 * (1 - mine / bigram_nats(*tokens))


def interrupted(minutes=MINUTES):
    """(minutes, steps, times it went on, parameters, those whose bits differ) of a ViT that learns digits, left alone
    and, beside that, interrupted ``CUTS`` times: killed, asked to stop, killed and so on. Each has one thread."""
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder, contextlib.ExitStack() as running:
        seen, _ = _as_folders(folder)

        def begun(out, steps):
            run = _pretraining(seen, Path(folder, out), steps)
            running.callback(run.wait)
            running.callback(run.kill)
            return run

        took = []
        for few in TRIALS:  # the difference is what steps take, without what comes before
            start = perf_counter()
            for trial in [begun(f"{few}-{i}", few) for i in range(2)]:
                _ended(trial)
            took.append(perf_counter() - start)
        steps = round(60 * minutes * (TRIALS[1] - TRIALS[0]) / (took[1] - took[0]))
        rng, start = np.random.default_rng(0), perf_counter()
        alone = begun("alone", steps)
        for cut in range(CUTS):
            _cut_short(begun("cut", steps), rng.uniform(0.3, 0.7) * 60 * minutes / CUTS, asked=cut % 2)
        last = begun("cut", steps)
        _ended(alone)
        lasted = (perf_counter() - start) / 60
        _ended(last)
        went_on = Path(folder, "cut", "log.jsonl").read_text().count('"event": "continues"')
        left, again = (load_file(Path(folder, name, "model.safetensors")) for name in ("alone", "cut"))
    differ = sum(int((left[name].view(np.uint32) != again[name].view(np.uint32)).sum()) for name in left)
    return lasted, steps, went_on, sum(x.size for x in left.values()), differ


def _pretraining(source, out, steps):
    command = [sys.executable, "-P", "-m", "saccade", "pretrain", "vit", source, "--preset", "vit-tiny"]
    command += ["--set", f"image_size={SIDE}", "--set", "patch_size=4", "--steps", str(steps), "--save-every", "100"]
    return subprocess.Popen(
        [*command, "--device", "cpu", "--out", out], env={**os.environ, **variables(1)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _cut_short(run, seconds, asked):
    """End a run after so many seconds: ask it to, or kill it."""
    time.sleep(seconds)
    if run.poll() is not None:
        raise ChildProcessError(f"saccade pretrain ended before it was interrupted, with {run.returncode}")
    run.send_signal(signal.SIGTERM if asked else signal.SIGKILL)
    expected = 128 + signal.SIGTERM if asked else -signal.SIGKILL
    if run.wait() != expected:
        raise ChildProcessError(f"saccade pretrain, interrupted, ended with {run.returncode}, expected {expected}")


def _ended(run):
    if run.wait():
        raise ChildProcessError(f"saccade pretrain ended with {run.returncode}")


def reading():
    """How many times as many pictures of 500 x 375 two workers read a second as a ViT-B/16 learns from."""
    from saccade.bench.training import IMAGES, steps

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _, step = steps("vit", "float32")
    step()
    start = perf_counter()
    for _ in range(3):
        step()
    learned = 3 * IMAGES["vit"] / (perf_counter() - start)
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        for i, picture in enumerate(photographs(375).values()):
            for j in range(40):
                path = Path(folder, f"class{i}", f"{j}.jpg")
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(picture[:, :500]).save(path, quality=90)
        pictures = open_source(folder)
        names = pictures.classes or []
        objective = pretrain_vit.Classes(ViT(vit.variant("B/16", classes=len(names))), names)
        loader = iter(Loader(pictures, objective.prepare, 20, seed=0, skipped=Skipped(lambda *_: None), workers=2))
        next(loader)
        start = perf_counter()
        for _ in range(15):
            next(loader)
        return 15 * 20 / (perf_counter() - start) / learned


def clip_memory():
    """A CLIP's training step on 4,096 pairs: peak memory beyond its model and pairs, as a share of open_clip's."""
    found = []
    for name in ("clip_step", "open_clip_step"):  # in processes of their own, as memory that was freed is used again
        figure = measure(f"procedures:{name}", int(os.environ["OMP_NUM_THREADS"]))
        if isinstance(figure, str):
            raise ArithmeticError(figure)
        found.append(figure)
    return found[0] / found[1]


def _many():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((PAIRS, 32, 32, 3)).astype(np.float32))
    return images, torch.from_numpy(rng.integers(1, 250, (PAIRS, 32)))


def _peak(step, few):
    few()  # what a first step makes once
    found = Processors().figures(step)["peak memory"]
    if found is None:
        raise OSError("the system does not tell a process's peak memory")
    return found


def clip_step():
    """Bytes of ours, whose embeddings are kept and towers computed twice, in eight parts; the loss is the batch's."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config, _ = pretrain_clip.PRESETS["clip-tiny"]
    objective = pretrain_clip.Pairs(CLIP(config), "bytes").train()
    images, texts = _many()

    def step(n):
        parts = list(zip(images[:n].chunk(PARTS), texts[:n].chunk(PARTS), strict=True))
        objective.backward(objective, parts, lambda loss: loss)

    return _peak(lambda: step(PAIRS), lambda: step(2 * PARTS))


def open_clip_step():
    """Bytes of open_clip's model of the same sizes and its loss."""
    usable_torchvision()
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP as Theirs

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    vision = dict(layers=4, width=64, head_width=16, mlp_ratio=2, patch_size=8, image_size=32)
    text = dict(context_length=32, vocab_size=257, width=64, heads=4, layers=2, mlp_ratio=2)
    model, loss_of = Theirs(64, vision, text).train(), ClipLoss()
    images, texts = _many()
    images = images.permute(0, 3, 1, 2).contiguous()

    def step(n):
        loss_of(*model(images[:n], texts[:n])[:3]).backward()

    return _peak(lambda: step(PAIRS), lambda: step(2 * PARTS))
