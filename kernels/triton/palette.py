"""The palette on GPUs: the same integers as ``saccade.reference.palette``, bit for bit.

A distance is compared without the colour's own square, |centre|² − 2 colour · centre, in float64: its terms are
integers below 2⁴³, which float64 holds and adds exactly, in any order. Where pixels are many, the cube of colours is
cut into cells first, and of each is found which centres can be nearest to a colour in it: those that are no farther
from the cell than some centre is from its farthest corner. Sums over pixels are int64, whose additions may come in any
order, too: they are the only ones here that are atomic.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, describe

GRID = 4096
TILES = {"assign": {"BLOCK": 128, "num_warps": 4}, "update": {"BLOCK": 512, "num_warps": 4}}  # pixels of a program
COPIES = 64  # of the sums, so that few programs meet at one
CELLS = 32  # of the cube along each channel
MOST_LISTED = 4096  # centres that a program finds a cell's among


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals."""
    flat = colors.reshape(-1, 3)
    assignment = torch.empty(len(flat), dtype=torch.int32, device=colors.device)
    wide = centers.to(torch.float64)
    table = torch.cat([wide, (wide * wide).sum(1, keepdim=True)], 1)
    k, cells, options = len(centers), CELLS**3, {"ACROSS": CELLS, "SIDE": 256 // CELLS}
    lists = None
    if len(flat) > 2 * cells and k <= MOST_LISTED:
        lists, listed = wide.new_empty((cells, k), dtype=torch.int16), wide.new_empty(cells, dtype=torch.int32)
        with torch.cuda.device_of(colors):
            _list_nearest[(cells,)](
                describe(table), lists, listed, k, BLOCK_K=max(16, triton.next_power_of_2(k)), **options, **FUSION
            )  # fmt: skip
    if len(flat):
        tile, arguments = TILES["assign"], (describe(flat), describe(table), assignment)
        grid = (triton.cdiv(len(flat), tile["BLOCK"]),)
        with torch.cuda.device_of(colors):
            if lists is None:
                _assign[grid](*arguments, len(flat), k, **tile, **FUSION)
            else:
                _assign_listed[grid](*arguments, lists, listed, len(flat), k, **options, **tile, **FUSION)
    return assignment.reshape(colors.shape[:-1])


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay. -> (k, 3) int32."""
    sums = torch.zeros((COPIES, len(centers), 4), dtype=torch.int64, device=colors.device)
    if len(colors):
        with torch.cuda.device_of(colors):
            _update[(triton.cdiv(len(colors), TILES["update"]["BLOCK"]),)](
                describe(colors), describe(counts), describe(assignment), describe(sums), len(colors),
                COPIES=COPIES, **TILES["update"], **FUSION,
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
def _reach(table, CHANNEL: tl.constexpr, i_k, k, cell, SIDE: tl.constexpr):
    """The squares of how far a cell's nearest and farthest are from each centre along a channel."""
    b_center = tl.load(table[0] + i_k * table[1] + CHANNEL * table[2], mask=i_k < k, other=0)
    first = (cell * SIDE).to(tl.float64)
    b_below, b_above = first * 4096 - b_center, b_center - (first + SIDE - 1) * 4096
    b_nearest = tl.maximum(tl.maximum(b_below, b_above), 0.0)
    b_farthest = tl.maximum(tl.abs(b_below), tl.abs(b_above))
    return b_nearest * b_nearest, b_farthest * b_farthest


@triton.jit
def _list_nearest(
    table, lists, listed, k, BLOCK_K: tl.constexpr, ACROSS: tl.constexpr, SIDE: tl.constexpr
):  # fmt: skip
    """Which centres may be nearest to a colour of a cell, in their order, and how many they are."""
    cell = tl.program_id(0)
    i_k = tl.arange(0, BLOCK_K)
    b_near_red, b_far_red = _reach(table, 0, i_k, k, cell // (ACROSS * ACROSS), SIDE)
    b_near_green, b_far_green = _reach(table, 1, i_k, k, cell // ACROSS % ACROSS, SIDE)
    b_near_blue, b_far_blue = _reach(table, 2, i_k, k, cell % ACROSS, SIDE)
    b_nearest, b_farthest = b_near_red + b_near_green + b_near_blue, b_far_red + b_far_green + b_far_blue
    least = tl.min(tl.where(i_k < k, b_farthest, float("inf")), 0)
    m_listed = (i_k < k) & (b_nearest <= least)
    b_places = tl.cumsum(m_listed.to(tl.int32), 0) - 1
    tl.store(lists + cell.to(tl.int64) * k + b_places, i_k.to(tl.int16), mask=m_listed)
    tl.store(listed + cell, tl.sum(m_listed.to(tl.int32), 0))


@triton.jit
def _assign_listed(
    colors, table, assignment, lists, listed, n, k, ACROSS: tl.constexpr, SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """As ``_assign``, of the centres that are listed for each colour's cell."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_red, b_green, b_blue = (
        _load_channel(colors, i, 0, n), _load_channel(colors, i, 1, n), _load_channel(colors, i, 2, n),
    )  # fmt: skip
    b_cell = b_red.to(tl.int32) // SIDE * (ACROSS * ACROSS)
    b_cell += b_green.to(tl.int32) // SIDE * ACROSS + b_blue.to(tl.int32) // SIDE
    b_count = tl.load(listed + b_cell)
    p_lists = lists + b_cell.to(tl.int64) * k
    b_red, b_green, b_blue = b_red.to(tl.float64) * -8192, b_green.to(tl.float64) * -8192, b_blue.to(tl.float64) * -8192
    b_least = tl.full([BLOCK], float("inf"), tl.float64)
    b_nearest = tl.zeros([BLOCK], tl.int32)
    for j in range(tl.max(b_count, 0)):
        m_more = j < b_count
        b_center = tl.load(p_lists + j, mask=m_more, other=0).to(tl.int32)
        p_center = table[0] + b_center * table[1]
        b_score = b_red * tl.load(p_center) + b_green * tl.load(p_center + table[2])
        b_score += b_blue * tl.load(p_center + 2 * table[2]) + tl.load(p_center + 3 * table[2])
        m_nearer = m_more & (b_score < b_least)
        b_least = tl.where(m_nearer, b_score, b_least)
        b_nearest = tl.where(m_nearer, b_center, b_nearest)
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
