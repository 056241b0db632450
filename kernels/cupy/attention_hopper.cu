// Softmax attention of 16-bit numbers on Hopper's tensor cores, cut to the number of keys; definitions in
// saccade.reference.attention, the other kernels in attention.cu and attention_tiles.cu.
//
// Keys lie in blocks of KEYS and a last one of LAST, a multiple of 8: 197 keys are one block of 200, 577 four of 128 and
// one of 72. A warpgroup has TILE queries, and for them the scores of a whole block in its registers. Blocks of threads
// either hold all keys and values of their head, in one block, and go through its queries (RESIDENT, with BUFFERS for
// those), or have one tile a warpgroup and read the next block of keys while they compute. PER_MULTIPROCESSOR of them run
// at once.
//
// In shared memory rows lie in columns of SPAN numbers, 64, 32 or 16, with their 16-byte chunks by turns, as the tensor
// cores' "swizzles" of 128, 64 and 32 bytes have them: neither copies nor products meet in a bank.

struct Problem {
    int64 b, h, t, s, causal, blocks, rounds;  // of keys, and of tiles that a warpgroup goes through
    Array query, key, value, out, lse;
    address lengths;

    __device__ int length(int64 i_b) const {
        int64 length = lengths ? ((const int64*)lengths)[i_b] : s;
        return (int)(length < s ? length : s);
    }
    __device__ int end(int length, int i_t) const {  // one past the last key that a query may see
        int own = i_t + 1 + (int)(s - t);
        return causal && own < length ? own : length;
    }
};

enum {
    TILE = 64, GROUPS = THREADS / 128, D16 = (D + 15) / 16 * 16, LAST16 = (LAST + 15) / 16 * 16,
    MOST = KEYS > LAST16 ? KEYS : LAST16,
    ROWS = RESIDENT ? LAST16 : 2 * MOST,  // of keys and values in shared memory
    E_WIDE = (E + SPAN_D - 1) / SPAN_D * SPAN_D,  // outputs go where queries were
    QUERY_BYTES = TILE * (D16 > E_WIDE ? D16 : E_WIDE) * 2, KEY_BYTES = ROWS * D16 * 2,
    VALUE_BYTES = ROWS * ((E + SPAN_E - 1) / SPAN_E * SPAN_E) * 2,
    BYTES = BUFFERS * GROUPS * QUERY_BYTES + KEY_BYTES + VALUE_BYTES
};

static __device__ constexpr int half(int n) { return (n / 2 + 15) / 16 * 16; }

// Where 16 bytes of a row lie in columns HEIGHT rows high.
template <int SPAN, int HEIGHT> static __device__ int place_of(int row, int chunk) {
    const int CHUNKS = SPAN / 8;
    return (chunk / CHUNKS * HEIGHT + row) * SPAN * 2 + (chunk % CHUNKS ^ row * CHUNKS / 8 % CHUNKS) * 16;
}

// COUNT rows of a head from `first` on, 0 from `end` on and beyond their width, by WARPS warps; in shared memory columns
// of them are HEIGHT rows high. Where TURNED, the rows of a tile by turns.
template <int WIDTH, int PADDED, int SPAN, int COUNT, int HEIGHT, int WARPS, bool TURNED = false>
static __device__ __forceinline__ void load_rows(
    unsigned char* to, address from, int stride, int first, int end, int warp, int turn = 0) {
    const int ACROSS = PADDED % 64 ? 4 : 8, DOWN = 32 / ACROSS, lane = threadIdx.x % 32, along = lane % ACROSS;
    UNROLLED
    for (int step = 0; step < (COUNT + WARPS * DOWN - 1) / (WARPS * DOWN); step++) {
        const int row = (step * WARPS + warp) * DOWN + lane / ACROSS;
        const int its = first + (TURNED ? (row + turn * 16) % TILE : row);
        if (COUNT % (WARPS * DOWN) && row >= COUNT) break;
        const address source = from + (its < end ? its * stride : 0) + along * 16;
        UNROLLED
        for (int j = 0; j < (PADDED / 8 + ACROSS - 1) / ACROSS; j++) {
            const int chunk = j * ACROSS + along;
            if (PADDED / 8 % ACROSS && chunk >= PADDED / 8) break;
            copy_ahead(to + place_of<SPAN, HEIGHT>(row, chunk), source + j * ACROSS * 16, its < end && chunk < WIDTH / 8);
        }
    }
}

// Where a matrix of columns of SPAN numbers lies: bytes from one column to the next, and from 8 rows to the next 8.
template <int SPAN> static __device__ address descriptor(const unsigned char* at, int column) {
    const address kind = SPAN == 64 ? 1 : SPAN == 32 ? 2 : 3;
    return (address)(shared_address(at) >> 4 & 0x3fff) | (address)(column >> 4) << 16 | (address)SPAN << 32 | kind << 62;
}

struct Rows {  // two of a tile's that a thread has its numbers of
    int end[2];  // one past the last key that they may see
    float top[2], total[2];
};

// Scores of N keys that may not be seen are −infinity from here on: any where MASKED, else of the last 8.
template <int N>
static __device__ __forceinline__ void hide(float* scores, const Rows& rows, int first_s) {
    const int column = first_s + threadIdx.x % 4 * 2;
    UNROLLED
    for (int j = MASKED ? 0 : N / 8 - 1; j < N / 8; j++)
        UNROLLED
        for (int i = 0; i < 4; i++)
            if (column + j * 8 + i % 2 >= rows.end[i / 2]) scores[j * 4 + i] = minus_infinity();
}

// The largest of a thread's scores in each of its rows, two at a time.
template <int N>
static __device__ __forceinline__ void find_highest(const float* scores, float* highest) {
    UNROLLED
    for (int i = 0; i < N / 2; i++) highest[i % 4] = fmaxf(highest[i % 4], scores[i]);
}

// Scores to weights, and what they add up to.
template <int N>
static __device__ __forceinline__ void weigh(float* scores, const float* shift, float factor, float* part) {
    UNROLLED
    for (int i = 0; i < N / 2; i++) part[i % 4] += scores[i] = power_of_2(scores[i] * factor - shift[i % 4 / 2]);
}

// Products of N weights with their values, on the way when this returns. With an odd number of eights 8 more weights are 0.
template <int N>
static __device__ __forceinline__ void add_values(
    float* sums, const float* weights, unsigned (*pairs)[4], address values, bool first) {
    UNROLLED
    for (int k = 0; k < (N + 15) / 16; k++)
        UNROLLED
        for (int i = 0; i < 4; i++) {
            const int j = 8 * k + 2 * i;
            pairs[k][i] = j < N / 2 ? rounded_pair(weights[j], weights[j + 1], KIND) : 0;
        }
    begin_products();
    UNROLLED
    for (int k = 0; k < (N + 15) / 16; k++)
        multiply_registers<E>(sums, pairs[k], values + k * (SPAN_E * 2), !first || k > 0);
    run_products();
}

template <int N>
static __device__ __forceinline__ void multiply_keys(float* scores, address queries, address keys) {
    const int STEPS = SPAN_D / 16;  // of 16 numbers in a column
    UNROLLED
    for (int k = 0; k < D16 / 16; k++)
        multiply_shared<N>(scores, queries + k / STEPS * (TILE * SPAN_D / 8) + k % STEPS * 2,
                           keys + k / STEPS * (ROWS * SPAN_D / 8) + k % STEPS * 2, k > 0);
    run_products();
}

// A block of keys, in two parts of FIRST and SECOND: while scores of one become weights, tensor cores are busy with the
// other. Sums are in registers as tensor cores leave them. Warps without queries leave their weights as they are.
template <int FIRST, int SECOND>
static __device__ __forceinline__ void attend(
    const unsigned char* query, const unsigned char* key, const unsigned char* value, float* sums, Rows& rows,
    int first_s, float factor, bool checked, bool idle, bool waiting) {
    float left[FIRST / 2], right[SECOND / 2];
    unsigned left_pairs[FIRST / 16][4], right_pairs[(SECOND + 15) / 16][4];
    const address queries = descriptor<SPAN_D>(query, 16), keys = descriptor<SPAN_D>(key, 16);
    const address values = descriptor<SPAN_E>(value, ROWS * SPAN_E * 2);
    begin_products();
    multiply_keys<FIRST>(left, queries, keys);
    multiply_keys<SECOND>(right, queries, keys + FIRST * SPAN_D / 8);
    products_done<1>();
    float highest[4] = {rows.top[0], minus_infinity(), rows.top[1], minus_infinity()}, part[4] = {}, shift[2];
    if (MASKED && checked) hide<FIRST>(left, rows, first_s);
    if (!idle) find_highest<FIRST>(left, highest);
    products_done<0>();
    if (checked) hide<SECOND>(right, rows, first_s + FIRST);
    if (!idle) find_highest<SECOND>(right, highest);
    UNROLLED
    for (int half = 0; half < 2; half++) {
        const float top = over_quad(fmaxf(highest[half * 2], highest[half * 2 + 1]), true);
        shift[half] = top == minus_infinity() ? 0 : top * factor;
        if (!RESIDENT) {
            const float rescale = power_of_2(rows.top[half] * factor - shift[half]);
            UNROLLED
            for (int j = 0; j < E / 8; j++)
                UNROLLED
                for (int i = 0; i < 2; i++) sums[j * 4 + half * 2 + i] *= rescale;
            rows.total[half] *= rescale;
        }
        rows.top[half] = top;
    }
    if (!idle) weigh<FIRST>(left, shift, factor, part);
    if (waiting) {
        copied<1>();
        __syncthreads();  // all have the values
    }
    add_values<FIRST>(sums, left, left_pairs, values, RESIDENT);
    if (!idle) weigh<SECOND>(right, shift, factor, part);
    add_values<SECOND>(sums, right, right_pairs, values + FIRST * SPAN_E / 8, false);
    UNROLLED
    for (int half = 0; half < 2; half++) rows.total[half] += part[half * 2] + part[half * 2 + 1];
    products_done<0>();
}

// The 16 rows of a warp, by way of where its queries were: sums divided by their total, rows before `end` alone.
static __device__ __forceinline__ void store_rows(
    unsigned char* tile, const float* sums, const Rows& rows, address out, int stride, int first, int end) {
    const int CHUNKS = E / 8, lane = threadIdx.x % 32, own = threadIdx.x / 32 % 4 * 16;
    float by[2];
    UNROLLED
    for (int half = 0; half < 2; half++) by[half] = rows.total[half] == 0 ? 1 : reciprocal(rows.total[half]);
    UNROLLED
    for (int j = 0; j < CHUNKS; j++) {
        const unsigned words[2] = {rounded_pair(sums[j * 4] * by[0], sums[j * 4 + 1] * by[0], KIND),
                                   rounded_pair(sums[j * 4 + 2] * by[1], sums[j * 4 + 3] * by[1], KIND)};
        store_fragments(tile + place_of<SPAN_D, TILE>(own + lane % 16, j), words);
    }
    meet_warp();
    UNROLLED
    for (int step = 0; step < (CHUNKS + 1) / 2; step++) {
        const int i = step * 32 + lane, row = i / CHUNKS, chunk = i % CHUNKS;
        if (row >= 16 || first + row >= end) break;
        copy_16_bytes(out + (first + row) * stride + chunk * 16, tile + place_of<SPAN_D, TILE>(own + row, chunk));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, PER_MULTIPROCESSOR)
    attention_forward_hopper(PARAMETERS(Problem) p, double scale) {
    SHARED(memory, BYTES);
    unsigned char *queries = memory, *keys = memory + BUFFERS * GROUPS * QUERY_BYTES, *values = keys + KEY_BYTES;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32, t = (int)p.t, rounds = (int)p.rounds, h = (int)p.h;
    const int tiles = (t + TILE - 1) / TILE, sets = (tiles + GROUPS * rounds - 1) / (GROUPS * rounds);
    const int i_bh = blockIdx.x / sets, i_h = i_bh % h, i_b = i_bh / h, first_tile = blockIdx.x % sets * rounds * GROUPS;
    const int length = p.length(i_b), all = RESIDENT ? 1 : (int)p.blocks;
    const int query_stride = (int)p.query.stride[2], key_stride = (int)p.key.stride[2], value_stride = (int)p.value.stride[2];
    const address query = p.query.at(i_b, i_h, 0, 0), key = p.key.at(i_b, i_h, 0, 0), value = p.value.at(i_b, i_h, 0, 0);
    const float factor = (float)(scale * 1.4426950408889634);
    const int AT_ONCE = RESIDENT ? ROWS : MOST;
    // Which quarter of a tile a warp has: else the few queries of a last tile were always the same scheduler's.
    const int turn = (blockIdx.x / 128 ^ blockIdx.x) % 4, quarter = (warp + turn) % 4;

    load_rows<D, D16, SPAN_D, TILE, TILE, 4, true>(queries + group * QUERY_BYTES, query, query_stride,
                                                   (first_tile + group) * TILE, t, warp % 4, turn);
    load_rows<D, D16, SPAN_D, AT_ONCE, ROWS, THREADS / 32>(keys, key, key_stride, 0, length, warp);
    end_of_copies();
    load_rows<E, E, SPAN_E, AT_ONCE, ROWS, THREADS / 32>(values, value, value_stride, 0, length, warp);
    end_of_copies();
    for (int round = 0; round < rounds; round++) {
        const int first_t = (first_tile + round * GROUPS + group) * TILE;
        const int first_row = first_t + quarter * 16, row = first_row + threadIdx.x % 32 / 4;  // and the one 8 below
        const int stop = (first_tile + (round + 1) * GROUPS) * TILE;
        const int furthest = MASKED ? p.end(length, (stop < t ? stop : t) - 1) : length;
        const bool idle = first_row >= t;
        unsigned char* its_query = queries + (round % BUFFERS * GROUPS + group) * QUERY_BYTES;
        Rows rows = {{MASKED ? p.end(length, row) : length, MASKED ? p.end(length, row + 8) : length},
                     {minus_infinity(), minus_infinity()}, {}};
        float sums[E / 2] = {};
        for (int block = 0; block < all; block++) {
            const int first_s = block * KEYS;
            if (block > 0 && first_s >= furthest) break;
            const bool waiting = RESIDENT && round + block == 0;  // for values yet
            if (waiting) copied<1>();
            else copied<0>();
            __syncthreads();  // all have what was read, and are done with what came before it
            if (RESIDENT && block == 0 && round + 1 < rounds)
                load_rows<D, D16, SPAN_D, TILE, TILE, 4, true>(
                    queries + ((round + 1) % BUFFERS * GROUPS + group) * QUERY_BYTES, query, query_stride,
                    first_t + GROUPS * TILE, t, warp % 4, turn);
            if (!RESIDENT && block + 1 < all && first_s + KEYS < furthest) {
                const int place = (block + 1) % 2 * MOST, next = first_s + KEYS;
                load_rows<D, D16, SPAN_D, MOST, ROWS, THREADS / 32>(keys + place * SPAN_D * 2, key, key_stride, next, length,
                                                                    warp);
                load_rows<E, E, SPAN_E, MOST, ROWS, THREADS / 32>(values + place * SPAN_E * 2, value, value_stride, next,
                                                                  length, warp);
            }
            end_of_copies();
            if (first_t >= t) {
                if (waiting) copied<1>(), __syncthreads();
                continue;
            }
            const int place = block % 2 * MOST, least = MASKED ? p.end(length, first_row) : 0;
            const unsigned char *its_key = keys + place * SPAN_D * 2, *its_value = values + place * SPAN_E * 2;
            if (block + 1 < all)
                attend<half(KEYS), KEYS - half(KEYS)>(its_query, its_key, its_value, sums, rows, first_s, factor,
                                                      MASKED && first_s + KEYS > least, idle, waiting);
            else
                attend<half(LAST), LAST - half(LAST)>(its_query, its_key, its_value, sums, rows, first_s, factor,
                                                      !MASKED || first_s + LAST > least, idle, waiting);
        }
        if (idle) continue;
        for (int half = 0; half < 2; half++) rows.total[half] = over_quad(rows.total[half], false);
        const bool second = threadIdx.x % 2;  // of the two rows of a quad's first lanes
        const float whole = second ? rows.total[1] : rows.total[0], top = second ? rows.top[1] : rows.top[0];
        if (threadIdx.x % 4 < 2 && row + second * 8 < t)
            *(float*)p.lse.at(i_b, i_h, row + second * 8, 0) =
                whole == 0 ? minus_infinity() : top * (float)scale + log(whole);
        store_rows(its_query, sums, rows, p.out.at(i_b, i_h, 0, 0), (int)p.out.stride[2], first_row, t);
    }
}
