"""The palette on GPUs: the same integers as ``saccade.reference.palette``, bit for bit.

A distance is compared without the colour's own square, |centre|² − 2 colour · centre, in float64: its terms are
integers below 2⁴³, which float64 holds and adds exactly, in any order. Sums over pixels are int64, whose additions
may come in any order, too: they are the only ones here that are atomic.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, describe

GRID = 4096
TILE = {"BLOCK": 1024, "num_warps": 4}  # pixels of a program
COPIES = 64  # of the sums, so that few programs meet at one


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals."""
    flat = colors.reshape(-1, 3)
    assignment = torch.empty(len(flat), dtype=torch.int32, device=colors.device)
    wide = centers.to(torch.float64)
    table = torch.cat([wide, (wide * wide).sum(1, keepdim=True)], 1)
    if len(flat):
        with torch.cuda.device_of(colors):
            _assign[(triton.cdiv(len(flat), TILE["BLOCK"]),)](
                describe(flat), describe(table), assignment, len(flat), len(centers), **TILE, **FUSION
            )  # fmt: skip
    return assignment.reshape(colors.shape[:-1])


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay. -> (k, 3) int32."""
    sums = torch.zeros((COPIES, len(centers), 4), dtype=torch.int64, device=colors.device)
    if len(colors):
        with torch.cuda.device_of(colors):
            _update[(triton.cdiv(len(colors), TILE["BLOCK"]),)](
                describe(colors), describe(counts), describe(assignment), describe(sums), len(colors),
                COPIES=COPIES, **TILE, **FUSION,
            )  # fmt: skip
    totals, weights = sums.sum(0).split([3, 1], 1)
    filled = weights.clamp(min=1)
    means = torch.div(2 * GRID * totals + filled, 2 * filled, rounding_mode="floor")
    return torch.where(weights > 0, means, centers).to(torch.int32)


def fit(colors, counts, centers, *, iterations=100):
    """Lloyd's algorithm from ``centers``; the centres and the assignment to them."""
    centers = centers.to(torch.int32, copy=True)
    for _ in range(iterations):
        moved = update(colors, counts, assign(colors, centers), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers, assign(colors, centers)


@triton.jit
def _load_channel(colors, i, CHANNEL: tl.constexpr, n):
    """A channel of a block of colours, 0 at and beyond ``n``."""
    return tl.load(colors[0] + i * colors[1] + CHANNEL * colors[2], mask=i < n, other=0)


@triton.jit
def _assign(colors, table, assignment, n, k, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_red = _load_channel(colors, i, 0, n).to(tl.float64) * -8192
    b_green = _load_channel(colors, i, 1, n).to(tl.float64) * -8192
    b_blue = _load_channel(colors, i, 2, n).to(tl.float64) * -8192
    b_least = tl.full([BLOCK], float("inf"), tl.float64)
    b_nearest = tl.zeros([BLOCK], tl.int32)
    for j in range(k):
        p_center = table[0] + j * table[1]
        b_score = b_red * tl.load(p_center) + b_green * tl.load(p_center + table[2])
        b_score += b_blue * tl.load(p_center + 2 * table[2]) + tl.load(p_center + 3 * table[2])
        m_nearer = b_score < b_least
        b_least = tl.where(m_nearer, b_score, b_least)
        b_nearest = tl.where(m_nearer, j, b_nearest)
    tl.store(assignment + i, b_nearest, mask=i < n)


@triton.jit
def _update(colors, counts, assignment, sums, n, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_inside = i < n
    b_count = tl.load(counts[0] + i * counts[1], mask=m_inside, other=0).to(tl.int64)
    b_center = tl.load(assignment[0] + i * assignment[1], mask=m_inside, other=0).to(tl.int64)
    p_sums = sums[0] + tl.program_id(0) % COPIES * sums[1] + b_center * sums[2]
    for channel in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        b_color = _load_channel(colors, i, channel, n).to(tl.int64)
        tl.atomic_add(p_sums + channel, b_count * b_color, mask=m_inside, sem="relaxed")
    tl.atomic_add(p_sums + 3, b_count, mask=m_inside, sem="relaxed")
