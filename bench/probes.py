"""Figures that bars ask for and cases cannot give: of whole procedures, of memory alone, of a process's beginning.

Each is measured in a process of its own: ``python -m saccade.bench.probes NAME THREADS`` prints it, or several, as
JSON; a name may be of another module, as "procedures:reading". Two ways of doing a thing are timed in turn and the
median of their ratios counts, or one after the other where each takes so long that ``ROUNDS`` would take minutes.
"""

import contextlib
import importlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np

from saccade.bench import timing
from saccade.bench.device import Processors, variables
from saccade.testing.peers import usable_torchvision

ROUNDS = 7
LIMIT = 1200.0  # seconds
COLORS, ITERATIONS = 512, 10


def measure(name, threads):
    """A probe's figure, or in words why there is none."""
    command = [sys.executable, "-P", "-m", "saccade.bench.probes", name, str(threads)]
    environment = {**os.environ, **variables(threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"it took longer than {LIMIT:.0f} s"
    last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else last[:160]


def _ratio(theirs, ours, rounds=ROUNDS):
    """The median of how much longer theirs takes, both warmed up."""
    for call in (theirs, ours):
        call()
    wakes = [call if _seconds(call) < timing.LONG else timing.nothing for call in (theirs, ours)]
    found = []
    for _ in range(rounds):
        seconds = []
        for call, wake in zip((theirs, ours), wakes, strict=True):
            timing.settle(wake, Processors())
            seconds.append(_seconds(call))
        found.append(seconds[0] / seconds[1])
    return float(np.median(found))


def _seconds(call):
    start = perf_counter()
    call()
    return perf_counter() - start


def _clip_loss_memory(pairs):
    """MB that the CLIP loss of so many pairs and its gradients take beyond those and the embeddings."""
    import saccade

    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((pairs, 512)).astype(np.float32) for _ in range(2))
    for x in (images, texts):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    scale = np.array(14.3, np.float32)

    def loss(n):
        out, saved = saccade.clip_loss_forward(images[:n], texts[:n], scale)
        return saccade.clip_loss_backward(saved, np.ones_like(out))

    loss(64)  # compiled, and not counted
    found = Processors().figures(lambda: loss(pairs))["peak memory"]
    if found is None:
        raise OSError("the system does not tell a process's peak memory")
    return (found - images.nbytes - texts.nbytes) / 2**20


def clip_loss_memory_4096():
    """MB more for 4,096 pairs."""
    return _clip_loss_memory(4096)


def clip_loss_memory_16384():
    """The same of 16,384 pairs."""
    return _clip_loss_memory(16384)


def clip_loss_memory_65536():
    """The same of 65,536 pairs."""
    return _clip_loss_memory(65536)


def _pixels():
    """The pixels of the photographs in scikit-image and scikit-learn, (n, 3), and a start for a palette of them."""
    from saccade import palette
    from saccade.kernels.numba.palette import initial_centers, unique_colors
    from saccade.recipes.photographs import photographs

    pixels = np.concatenate([x.reshape(-1, 3) for x in photographs(300).values()])
    start = initial_centers(*unique_colors(pixels), COLORS, 0) / palette.GRID
    return np.ascontiguousarray(pixels), start


def _own_palette(pixels, start):
    from saccade.palette import Palette

    return Palette.fit(pixels, COLORS, initial=start, iterations=ITERATIONS)


def _same_objective(pixels, ours, centers):
    """Raises if another's centres are not as good as ours to 0.1 %, or better."""
    from saccade.reference import palette

    its = palette.unique_colors(pixels)
    grid = np.rint(palette.GRID * np.asarray(centers, np.float64)).astype(np.int32)
    theirs = palette.inertia(*its, palette.assign(its[0], grid), grid)
    if not ours.inertia < 1.001 * theirs:
        raise ArithmeticError(f"a mean squared distance of {ours.inertia:.4f}, theirs {theirs:.4f}")


def _faiss(points, start, weights=None):
    import faiss  # pyright: ignore[reportMissingImports]

    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": 2**30}
    made = faiss.Kmeans(3, COLORS, niter=ITERATIONS, **limits)
    made.train(points, weights=weights, init_centroids=start.astype(np.float32))
    return made


def palette_faiss():
    """Against faiss on all pixels."""
    pixels, start = _pixels()
    theirs = lambda: _faiss(pixels.astype(np.float32), start)  # noqa: E731
    _same_objective(pixels, _own_palette(pixels, start), theirs().centroids)
    return _ratio(theirs, lambda: _own_palette(pixels, start), 3)


def palette_faiss_weighted():
    """Against faiss on the distinct colours with weights, which NumPy finds."""
    pixels, start = _pixels()

    def theirs():
        packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colors, counts = np.unique(packed, return_counts=True)
        points = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], 1).astype(np.float32)
        return _faiss(points, start, counts.astype(np.float32))

    _same_objective(pixels, _own_palette(pixels, start), theirs().centroids)
    return _ratio(theirs, lambda: _own_palette(pixels, start))


def palette_scikit_learn():
    """Against scikit-learn's Lloyd on all pixels."""
    from sklearn.cluster import KMeans

    pixels, start = _pixels()
    points = pixels.astype(np.float32)

    def theirs():
        settings = {"n_init": 1, "max_iter": ITERATIONS, "tol": 0.0, "algorithm": "lloyd"}
        return KMeans(COLORS, init=start.astype(np.float32), **settings).fit(points)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged after so few steps
        _same_objective(pixels, _own_palette(pixels, start), theirs().cluster_centers_)
        return _ratio(theirs, lambda: _own_palette(pixels, start), 1)


def _encoded():
    """Pictures of 32 x 32, a palette whose table is there, and how it encodes them."""
    pixels, start = _pixels()
    pictures = pixels[: len(pixels) // 1024 * 1024].reshape(-1, 32, 32, 3)
    made = _own_palette(pixels, start)
    made.encode(pictures)
    return pictures, made


def encode_faiss():
    """Against a search in faiss's flat index."""
    import faiss  # pyright: ignore[reportMissingImports]

    pictures, made = _encoded()
    index = faiss.IndexFlatL2(3)
    index.add(made.centers.astype(np.float32))
    return _ratio(lambda: index.search(pictures.reshape(-1, 3).astype(np.float32), 1), lambda: made.encode(pictures))


def encode_transformers():
    """Against transformers' ImageGPT processor, on the first 256 of the pictures."""
    usable_torchvision()
    from transformers import ImageGPTImageProcessor

    pictures, made = _encoded()
    some = list(pictures[:256])
    theirs = ImageGPTImageProcessor(clusters=made.centers / 127.5 - 1, do_resize=False)
    return _ratio(lambda: theirs(some), lambda: made.encode(np.stack(some)), 3)


def _sampling(b, dtype="float32"):
    import torch

    from saccade.bench import model_peers

    usable_torchvision()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ours, _ = model_peers.ours("imagegpt-S", dtype, "cpu")
    theirs = model_peers.transformers_module("imagegpt-S")
    start = torch.full((b, 1), theirs.config.vocab_size - 1)

    def generated(length):
        with torch.inference_mode():
            theirs.generate(input_ids=start, max_length=1 + length, do_sample=True, top_k=0, use_cache=True)

    def drawn(length):
        with torch.inference_mode():
            ours.generate(start[:, :0], length)

    seconds = []
    for call in (generated, drawn):
        call(16)
        begun = perf_counter()
        call(ours.config.length)
        seconds.append(perf_counter() - begun)
    return seconds[0] / seconds[1]


def sampling_1():
    """Pictures of 1,024 pixels that ImageGPT-S draws, against transformers' ``generate``, one at a time."""
    return _sampling(1)


def sampling_8():
    """The same of eight at a time."""
    return _sampling(8)


def sampling_1_bfloat16():
    """Pictures that an ImageGPT-S of bfloat16 parameters draws, against transformers' in float32, one at a time."""
    return _sampling(1, "bfloat16")


def sampling_8_bfloat16():
    """The same of eight at a time."""
    return _sampling(8, "bfloat16")


def _training(model, dtype):
    import torch

    from saccade.bench.training import steps

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found = steps(model, dtype)
    for step in found:
        step()  # the first two of a program map its memory
    return _ratio(*found)


def training_vit():
    """Training steps of ViT-B/16, against timm's."""
    return _training("vit", "float32")


def training_vit_bfloat16():
    """The same with products in bfloat16."""
    return _training("vit", "bfloat16")


def training_clip():
    """Training steps of a CLIP ViT-B/32, against open_clip's."""
    return _training("clip", "float32")


def training_clip_bfloat16():
    """The same with products in bfloat16."""
    return _training("clip", "bfloat16")


def training_imagegpt():
    """Training steps of ImageGPT-S, against a GPT of its sizes."""
    return _training("imagegpt", "float32")


def training_imagegpt_bfloat16():
    """The same with products in bfloat16."""
    return _training("imagegpt", "bfloat16")


CALL = "import numpy as np, saccade; x = np.ones((1, 2, 50, 64), np.float32); saccade.attention(x, x, x)"


def _process_seconds(cache):
    begun = perf_counter()
    subprocess.run([sys.executable, "-P", "-c", CALL], env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True)
    return perf_counter() - begun


def cold_compile():
    """Seconds of a process that calls attention with nothing compiled."""
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as cache:
        return _process_seconds(cache)


def first_call():
    """Seconds of a process that calls attention, compiled by another before."""
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as cache:
        _process_seconds(cache)
        return float(np.median([_process_seconds(cache) for _ in range(3)]))


@contextlib.contextmanager
def _clip_in_a_file():
    """The folder of a CLIP ViT-B/32 in Hugging Face's layout."""
    import saccade.models
    from saccade.models import clip
    from saccade.models.variants import VARIANTS
    from saccade.weights.files import convert

    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        config = VARIANTS["clip-ViT-B/32"]
        own = Path(folder, "own.safetensors")
        saccade.models.save(own, clip.initialize(config, seed=0), config)
        convert(own, Path(folder, "hf"), "hf")
        yield Path(folder, "hf")


def loading():
    """``saccade.models.load``, against ``from_pretrained``. Both map the file: neither has read every number yet."""
    usable_torchvision()
    from transformers import CLIPModel

    import saccade.models

    with _clip_in_a_file() as folder:
        return _ratio(lambda: CLIPModel.from_pretrained(folder), lambda: saccade.models.load(folder))


def loading_and_reading():
    """How much longer than reading the file into memory loading takes with a number read from every page of memory."""
    import saccade.models

    def loaded():
        parameters, _ = saccade.models.load(folder)
        return [x.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].sum() for x in parameters.values()]

    with _clip_in_a_file() as folder:
        return _ratio(loaded, (folder / "model.safetensors").read_bytes)


def probe(name):
    """The function of a name."""
    module, _, function = name.rpartition(":")
    return getattr(importlib.import_module(f"saccade.bench.{module or 'probes'}"), function)


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])()))
