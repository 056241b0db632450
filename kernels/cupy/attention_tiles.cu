// Softmax attention of 16-bit numbers on tensor cores; definitions in saccade.reference.attention.
//
//     S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
//     dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q
//
// A warp owns 16 rows, of queries (O, dQ) or of keys (dK, dV), and the block goes through the other side a few rows at a
// time, so that no two threads add to the same number. Weights and dS are rounded to 16 bits before they are multiplied,
// as operands of tensor cores are.

enum {
    OWN = THREADS / 32 * 16, KEYS = 64, OTHERS = 32,  // rows of a block, and how many of the others at a time, back too
    D16 = (D + 15) / 16 * 16, E16 = (E + 15) / 16 * 16, D8 = (D + 7) / 8 * 8, E8 = (E + 7) / 8 * 8
};

static __device__ unsigned bits_at(const Array& x, int64 i_b, int64 i_h, int64 i, int64 column, int64 end, int width) {
    return i < end && column < width ? *(const unsigned short*)x.at(i_b, i_h, i, column) : 0;
}

// Two neighbours along a row, the first in the low half; 0 from row `end` on and beyond `width`.
static __device__ unsigned pair_along(const Array& x, int64 i_b, int64 i_h, int64 i, int64 column, int64 end, int width) {
    if (i >= end || column >= width) return 0;
    const address at = x.at(i_b, i_h, i, column);
    if (x.stride[3] == 2 && at % 4 == 0 && column + 1 < width) return *(const unsigned*)at;
    return *(const unsigned short*)at | bits_at(x, i_b, i_h, i, column + 1, end, width) << 16;
}

// The fragments of A that 16 rows from `first` on are, of WIDTH numbers each.
template <int WIDTH>
static __device__ void load_own(unsigned (*to)[4], const Array& x, int64 i_b, int64 i_h, int64 first, int64 end, int width) {
    const int lane = threadIdx.x % 32;
    UNROLLED
    for (int k = 0; k < WIDTH / 16; k++)
        UNROLLED
        for (int i = 0; i < 4; i++)
            to[k][i] = pair_along(x, i_b, i_h, first + lane / 4 + i % 2 * 8, k * 16 + i / 2 * 8 + lane % 4 * 2, end, width);
}

// COUNT rows from `first` on, as pairs along them: what is multiplied by their transposed.
template <int COUNT, int WIDTH>
static __device__ void load_rows(
    unsigned (*to)[WIDTH / 2 + 4], const Array& x, int64 i_b, int64 i_h, int64 first, int64 end, int width) {
    for (int i = threadIdx.x; i < COUNT * WIDTH / 2; i += THREADS) {
        const int row = i / (WIDTH / 2), pair = i % (WIDTH / 2);
        to[row][pair] = pair_along(x, i_b, i_h, first + row, pair * 2, end, width);
    }
}

// The same rows as pairs of rows, column by column: what is multiplied by themselves.
template <int COUNT, int WIDTH>
static __device__ void load_columns(
    unsigned (*to)[COUNT / 2 + 4], const Array& x, int64 i_b, int64 i_h, int64 first, int64 end, int width) {
    for (int i = threadIdx.x; i < COUNT / 2 * WIDTH; i += THREADS) {
        const int64 row = first + i / WIDTH * 2;
        const int column = i % WIDTH;
        to[column][i / WIDTH] = bits_at(x, i_b, i_h, row, column, end, width) |
                                bits_at(x, i_b, i_h, row + 1, column, end, width) << 16;
    }
}

// C += A Bᵀ of 16 rows and N others, both STEPS times 16 numbers long; B lies in shared memory, DOWN words a row.
template <int N, int STEPS, int DOWN>
static __device__ void multiply_tile(float (*c)[4], const unsigned (*a)[4], const unsigned (*b)[DOWN]) {
    const int lane = threadIdx.x % 32;
    UNROLLED
    for (int n = 0; n < N / 8; n++)
        UNROLLED
        for (int k = 0; k < STEPS; k++) {
            const unsigned* from = &b[n * 8 + lane / 4][k * 8 + lane % 4];
            const unsigned two[2] = {from[0], from[4]};
            multiply_add(c[n], a[k], two, KIND);
        }
}

// 16 x N numbers as tensor cores leave them, rounded to what they take.
template <int N>
static __device__ void round_tile(unsigned (*to)[4], const float (*tile)[4]) {
    UNROLLED
    for (int k = 0; k < N / 16; k++) {
        const float *left = tile[2 * k], *right = tile[2 * k + 1];
        to[k][0] = rounded_pair(left[0], left[1], KIND), to[k][1] = rounded_pair(left[2], left[3], KIND);
        to[k][2] = rounded_pair(right[0], right[1], KIND), to[k][3] = rounded_pair(right[2], right[3], KIND);
    }
}

// Columns below `width` of 16 x WIDTH numbers, times one for each of a thread's two rows.
template <int WIDTH>
static __device__ void store_tile(
    const Array& to, int64 i_b, int64 i_h, const int64* row, int64 end, const float (*tile)[4], const float* by, int width) {
    const int pair = threadIdx.x % 4 * 2;
    UNROLLED
    for (int n = 0; n < WIDTH / 8; n++)
        UNROLLED
        for (int i = 0; i < 4; i++)
            if (row[i / 2] < end && n * 8 + pair + i % 2 < width)
                to.set(i_b, i_h, row[i / 2], n * 8 + pair + i % 2, tile[n][i] * by[i / 2]);
}

extern "C" __global__ void attention_forward_tiles(PARAMETERS(Problem) p, double factor) {
    __shared__ unsigned keys[KEYS][D16 / 2 + 4], values[E8][KEYS / 2 + 4];
    const int lane = threadIdx.x % 32, pair = lane % 4 * 2;
    const int64 tiles = (p.t + OWN - 1) / OWN, first_t = blockIdx.x % tiles * OWN;
    const int64 i_h = blockIdx.x / tiles % p.h, i_b = blockIdx.x / tiles / p.h, own = first_t + threadIdx.x / 32 * 16;
    const int64 row[2] = {own + lane / 4, own + lane / 4 + 8};
    const float scale = (float)factor;
    float sum[E8 / 8][4] = {}, top[2] = {minus_infinity(), minus_infinity()}, total[2] = {};
    unsigned query[D16 / 16][4];
    load_own<D16>(query, p.query, i_b, i_h, own, p.t, D);
    const int64 end[2] = {row[0] < p.t ? p.end(i_b, row[0]) : 0, row[1] < p.t ? p.end(i_b, row[1]) : 0};
    const int64 last = first_t + OWN < p.t ? first_t + OWN - 1 : p.t - 1, stop = p.end(i_b, last);
    for (int64 first_s = 0; first_s < stop; first_s += KEYS) {
        __syncthreads();  // all are done with the tile before
        load_rows<KEYS, D16>(keys, p.key, i_b, i_h, first_s, stop, D);
        load_columns<KEYS, E8>(values, p.value, i_b, i_h, first_s, stop, E);
        __syncthreads();
        float scores[KEYS / 8][4] = {};
        multiply_tile<KEYS, D16 / 16>(scores, query, keys);
        UNROLLED
        for (int half = 0; half < 2; half++) {
            float highest = top[half], part = 0;
            UNROLLED
            for (int n = 0; n < KEYS / 8; n++)
                UNROLLED
                for (int i = 0; i < 2; i++) {
                    const int64 i_t = row[half], i_s = first_s + n * 8 + pair + i;
                    const bool seen = i_s < end[half] && !p.hidden(i_b, i_h, i_t, i_s);
                    float* score = &scores[n][half * 2 + i];
                    *score *= scale;
                    if (seen && p.bias.base) *score += p.bias.get(i_b, i_h, i_t, i_s);
                    if (!seen) *score = minus_infinity();
                    highest = *score > highest ? *score : highest;
                }
            highest = over_quad(highest, true);
            const float shift = highest == minus_infinity() ? 0 : highest, rescale = exp(top[half] - shift);
            UNROLLED
            for (int n = 0; n < KEYS / 8; n++)
                UNROLLED
                for (int i = 0; i < 2; i++) part += scores[n][half * 2 + i] = exp(scores[n][half * 2 + i] - shift);
            UNROLLED
            for (int n = 0; n < E8 / 8; n++)
                UNROLLED
                for (int i = 0; i < 2; i++) sum[n][half * 2 + i] *= rescale;
            total[half] = total[half] * rescale + part;
            top[half] = highest;
        }
        unsigned weights[KEYS / 16][4];
        round_tile<KEYS>(weights, scores);
        multiply_tile<E8, KEYS / 16>(sum, weights, values);
    }
    float by[2];
    UNROLLED
    for (int half = 0; half < 2; half++) {
        const float whole = over_quad(total[half], false);
        by[half] = whole == 0 ? 1 : 1 / whole;
        if (pair == 0 && row[half] < p.t)
            p.lse.set(i_b, i_h, row[half], 0, whole == 0 ? minus_infinity() : top[half] + log(whole));
    }
    store_tile<E8>(p.out, i_b, i_h, row, p.t, sum, by, E);
}

// Of a query and a key its score, and whether the query sees the key, to a weight and, from dP, to dS.
static __device__ void to_gradient(
    const Problem& p, int64 i_b, int64 i_h, int64 i_t, int64 i_s, bool seen, float scale, float log_sum, float row_sum,
    float* score, float* grad) {
    seen = seen && !p.hidden(i_b, i_h, i_t, i_s);
    *score *= scale;
    if (seen && p.bias.base) *score += p.bias.get(i_b, i_h, i_t, i_s);
    *score = seen ? exp(*score - (log_sum == minus_infinity() ? 0 : log_sum)) : 0;
    *grad = *score == 0 ? 0 : *score * (*grad - row_sum);
}

extern "C" __global__ void attention_backward_query_tiles(PARAMETERS(Problem) p, double factor) {
    __shared__ unsigned keys[OTHERS][D16 / 2 + 4], values[OTHERS][E16 / 2 + 4], across[D8][OTHERS / 2 + 4];
    const int lane = threadIdx.x % 32, pair = lane % 4 * 2;
    const int64 tiles = (p.t + OWN - 1) / OWN, first_t = blockIdx.x % tiles * OWN;
    const int64 i_h = blockIdx.x / tiles % p.h, i_b = blockIdx.x / tiles / p.h, own = first_t + threadIdx.x / 32 * 16;
    const int64 row[2] = {own + lane / 4, own + lane / 4 + 8};
    const float scale = (float)factor;
    float sum[D8 / 8][4] = {}, log_sum[2], row_sum[2];
    unsigned query[D16 / 16][4], grad_out[E16 / 16][4];
    load_own<D16>(query, p.query, i_b, i_h, own, p.t, D);
    load_own<E16>(grad_out, p.grad_out, i_b, i_h, own, p.t, E);
    int64 end[2];
    for (int half = 0; half < 2; half++) {
        const bool there = row[half] < p.t;
        end[half] = there ? p.end(i_b, row[half]) : 0;
        log_sum[half] = there ? p.lse.get(i_b, i_h, row[half], 0) : 0;
        row_sum[half] = there ? p.row_sums.get(i_b, i_h, row[half], 0) : 0;
    }
    const int64 last = first_t + OWN < p.t ? first_t + OWN - 1 : p.t - 1, stop = p.end(i_b, last);
    for (int64 first_s = 0; first_s < stop; first_s += OTHERS) {
        __syncthreads();  // all are done with the tile before
        load_rows<OTHERS, D16>(keys, p.key, i_b, i_h, first_s, stop, D);
        load_rows<OTHERS, E16>(values, p.value, i_b, i_h, first_s, stop, E);
        load_columns<OTHERS, D8>(across, p.key, i_b, i_h, first_s, stop, D);
        __syncthreads();
        float scores[OTHERS / 8][4] = {}, grads[OTHERS / 8][4] = {};
        multiply_tile<OTHERS, D16 / 16>(scores, query, keys);
        multiply_tile<OTHERS, E16 / 16>(grads, grad_out, values);
        UNROLLED
        for (int n = 0; n < OTHERS / 8; n++)
            UNROLLED
            for (int i = 0; i < 4; i++) {
                const int64 i_s = first_s + n * 8 + pair + i % 2;
                to_gradient(p, i_b, i_h, row[i / 2], i_s, i_s < end[i / 2], scale, log_sum[i / 2], row_sum[i / 2],
                            &scores[n][i], &grads[n][i]);
            }
        unsigned rounded[OTHERS / 16][4];
        round_tile<OTHERS>(rounded, grads);
        multiply_tile<D8, OTHERS / 16>(sum, rounded, across);
    }
    const float by[2] = {scale, scale};
    store_tile<D8>(p.grad_query, i_b, i_h, row, p.t, sum, by, D);
}

extern "C" __global__ void attention_backward_key_tiles(PARAMETERS(Problem) p, double factor) {
    __shared__ unsigned queries[OTHERS][D16 / 2 + 4], grads_out[OTHERS][E16 / 2 + 4];
    __shared__ unsigned across[D8][OTHERS / 2 + 4], grads_across[E8][OTHERS / 2 + 4];
    const int lane = threadIdx.x % 32, pair = lane % 4 * 2;
    const int64 tiles = (p.s + OWN - 1) / OWN, first = blockIdx.x % tiles * OWN;
    const int64 i_h = blockIdx.x / tiles % p.h, i_b = blockIdx.x / tiles / p.h, own = first + threadIdx.x / 32 * 16;
    const int64 row[2] = {own + lane / 4, own + lane / 4 + 8};
    const float scale = (float)factor;
    float key_sum[D8 / 8][4] = {}, value_sum[E8 / 8][4] = {};
    unsigned key[D16 / 16][4], value[E16 / 16][4];
    const int64 length = p.length(i_b) < p.s ? p.length(i_b) : p.s;  // keys beyond may be anything, and are not read
    load_own<D16>(key, p.key, i_b, i_h, own, length, D);
    load_own<E16>(value, p.value, i_b, i_h, own, length, E);
    const int64 seeing = p.causal ? first - (p.s - p.t) : 0;  // the first query that sees any of these keys
    for (int64 first_t = seeing > 0 ? seeing / OTHERS * OTHERS : 0; first_t < p.t && first < length; first_t += OTHERS) {
        __syncthreads();  // all are done with the tile before
        load_rows<OTHERS, D16>(queries, p.query, i_b, i_h, first_t, p.t, D);
        load_rows<OTHERS, E16>(grads_out, p.grad_out, i_b, i_h, first_t, p.t, E);
        load_columns<OTHERS, D8>(across, p.query, i_b, i_h, first_t, p.t, D);
        load_columns<OTHERS, E8>(grads_across, p.grad_out, i_b, i_h, first_t, p.t, E);
        __syncthreads();
        float scores[OTHERS / 8][4] = {}, grads[OTHERS / 8][4] = {};
        multiply_tile<OTHERS, D16 / 16>(scores, key, queries);
        multiply_tile<OTHERS, E16 / 16>(grads, value, grads_out);
        UNROLLED
        for (int n = 0; n < OTHERS / 8; n++)
            UNROLLED
            for (int i = 0; i < 4; i++) {
                const int64 i_t = first_t + n * 8 + pair + i % 2;
                const bool there = i_t < p.t;
                to_gradient(p, i_b, i_h, i_t, row[i / 2], there && row[i / 2] < p.end(i_b, i_t), scale,
                            there ? p.lse.get(i_b, i_h, i_t, 0) : 0, there ? p.row_sums.get(i_b, i_h, i_t, 0) : 0,
                            &scores[n][i], &grads[n][i]);
            }
        unsigned rounded[OTHERS / 16][4];
        round_tile<OTHERS>(rounded, scores);
        multiply_tile<E8, OTHERS / 16>(value_sum, rounded, grads_across);
        round_tile<OTHERS>(rounded, grads);
        multiply_tile<D8, OTHERS / 16>(key_sum, rounded, across);
    }
    const float by[2] = {scale, scale}, one[2] = {1, 1};
    store_tile<D8>(p.grad_key, i_b, i_h, row, p.s, key_sum, by, D);
    store_tile<E8>(p.grad_value, i_b, i_h, row, p.s, value_sum, one, E);
}
