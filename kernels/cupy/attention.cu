// Softmax attention, one thread a row but for 16-bit numbers forwards; definitions in saccade.reference.attention.
//
//     S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
//     dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q
//
// Plain on purpose: no two threads write to the same number, so there are no atomics. D and E, the widths of a key
// and of a value (which may be 0), are compiled in. The layout of the parameters is that of `Problem`.

struct Problem {
    int64 b, h, t, s, causal;
    Array query, key, value, bias, mask, out, lse, grad_out, row_sums, grad_query, grad_key, grad_value, grad_bias;
    address lengths;
    int64 bias_shape[4];
    Array begins, ends;  // of sequences packed end to end, for each token those of its own

    __device__ int64 length(int64 i_b) const { return lengths ? ((const int64*)lengths)[i_b] : s; }
    __device__ int64 begin(int64 i) const {
        int64 first = begins.base ? begins.integer(i) : 0;
        return first > 0 ? first : 0;
    }
    __device__ int64 end(int64 i_b, int64 i_t) const {  // one past the last key that a query may see
        int64 last = ends.base ? ends.integer(i_t) : length(i_b), own = i_t + 1 + s - t;
        last = causal && own < last ? own : last;
        last = last < s ? last : s;  // whatever the lengths say
        return last > 0 ? last : 0;
    }
    __device__ bool hidden(int64 i_b, int64 i_h, int64 i_t, int64 i_s) const {
        return mask.base && !*(const unsigned char*)mask.at(i_b, i_h, i_t, i_s);
    }
    __device__ CORE score(int64 i_b, int64 i_h, int64 i_t, int64 i_s, CORE scale) const {
        CORE sum = 0;
        for (int i = 0; i < D; i++) sum += query.get(i_b, i_h, i_t, i) * key.get(i_b, i_h, i_s, i);
        sum *= scale;
        return bias.base ? sum + bias.get(i_b, i_h, i_t, i_s) : sum;
    }
    // P and dS of one query and key
    __device__ void gradient(int64 i_b, int64 i_h, int64 i_t, int64 i_s, CORE scale, CORE* weight, CORE* grad) const {
        CORE log_sum = lse.get(i_b, i_h, i_t, 0), products = 0;
        *weight = exp(score(i_b, i_h, i_t, i_s, scale) - (log_sum == minus_infinity() ? (CORE)0 : log_sum));
        for (int i = 0; i < E; i++) products += grad_out.get(i_b, i_h, i_t, i) * value.get(i_b, i_h, i_s, i);
        *grad = *weight == 0 ? (CORE)0 : *weight * (products - row_sums.get(i_b, i_h, i_t, 0));
    }
};

extern "C" __global__ void attention_forward(PARAMETERS(Problem) p, double factor) {
    int64 row = item();
    if (row >= p.b * p.h * p.t) return;
    int64 i_t = row % p.t, i_h = row / p.t % p.h, i_b = row / p.t / p.h;
    CORE scale = (CORE)factor, top = minus_infinity(), total = 0, sum[E + 1] = {};
    for (int64 i_s = p.begin(i_t); i_s < p.end(i_b, i_t); i_s++) {
        if (p.hidden(i_b, i_h, i_t, i_s)) continue;
        CORE score = p.score(i_b, i_h, i_t, i_s, scale);
        CORE highest = score > top ? score : top, shift = highest == minus_infinity() ? (CORE)0 : highest;
        CORE weight = exp(score - shift), rescale = exp(top - shift);
        total = total * rescale + weight;
        for (int i = 0; i < E; i++) sum[i] = sum[i] * rescale + weight * p.value.get(i_b, i_h, i_s, i);
        top = highest;
    }
    CORE divisor = total == 0 ? (CORE)1 : total;
    for (int i = 0; i < E; i++) p.out.set(i_b, i_h, i_t, i, sum[i] / divisor);
    p.lse.set(i_b, i_h, i_t, 0, total == 0 ? minus_infinity() : top + log(total));
}

extern "C" __global__ void attention_backward_query(PARAMETERS(Problem) p, double factor) {
    int64 row = item();
    if (row >= p.b * p.h * p.t) return;
    int64 i_t = row % p.t, i_h = row / p.t % p.h, i_b = row / p.t / p.h;
    CORE scale = (CORE)factor, sum[D] = {}, weight, grad;
    for (int64 i_s = p.begin(i_t); i_s < p.end(i_b, i_t); i_s++) {
        if (p.hidden(i_b, i_h, i_t, i_s)) continue;
        p.gradient(i_b, i_h, i_t, i_s, scale, &weight, &grad);
        for (int i = 0; i < D; i++) sum[i] += grad * p.key.get(i_b, i_h, i_s, i);
    }
    for (int i = 0; i < D; i++) p.grad_query.set(i_b, i_h, i_t, i, scale * sum[i]);
}

extern "C" __global__ void attention_backward_key(PARAMETERS(Problem) p, double factor) {
    int64 row = item();
    if (row >= p.b * p.h * p.s) return;
    int64 i_s = row % p.s, i_h = row / p.s % p.h, i_b = row / p.s / p.h;
    CORE scale = (CORE)factor, key_sum[D] = {}, value_sum[E + 1] = {}, weight, grad;
    int64 stop = p.ends.base ? p.ends.integer(i_s) : p.t;
    for (int64 i_t = p.begin(i_s); i_t < stop && i_t < p.t; i_t++) {
        if (i_s >= p.end(i_b, i_t) || p.hidden(i_b, i_h, i_t, i_s)) continue;
        p.gradient(i_b, i_h, i_t, i_s, scale, &weight, &grad);
        for (int i = 0; i < D; i++) key_sum[i] += grad * p.query.get(i_b, i_h, i_t, i);
        for (int i = 0; i < E; i++) value_sum[i] += weight * p.grad_out.get(i_b, i_h, i_t, i);
    }
    for (int i = 0; i < D; i++) p.grad_key.set(i_b, i_h, i_s, i, scale * key_sum[i]);
    for (int i = 0; i < E; i++) p.grad_value.set(i_b, i_h, i_s, i, value_sum[i]);
}

// One thread an element of the bias, which adds up all that the element was broadcast to, sums of sums.
extern "C" __global__ void attention_backward_bias(PARAMETERS(Problem) p, double factor) {
    const int64 *n = p.bias_shape, whole[4] = {p.b, p.h, p.t, p.s};
    int64 element = item();
    if (element >= n[0] * n[1] * n[2] * n[3]) return;
    int64 first[4], stop[4], rest = element;
    for (int axis = 3; axis >= 0; axis--) {
        first[axis] = rest % n[axis];
        rest /= n[axis];
        stop[axis] = n[axis] == 1 ? whole[axis] : first[axis] + 1;
    }
    CORE scale = (CORE)factor, total = 0, weight, grad;
    for (int64 i_b = first[0]; i_b < stop[0]; i_b++)
        for (int64 i_h = first[1]; i_h < stop[1]; i_h++) {
            CORE of_head = 0;
            for (int64 i_t = first[2]; i_t < stop[2]; i_t++) {
                CORE of_query = 0;
                int64 end = p.end(i_b, i_t);
                for (int64 i_s = first[3]; i_s < stop[3] && i_s < end; i_s++) {
                    if (p.hidden(i_b, i_h, i_t, i_s)) continue;
                    p.gradient(i_b, i_h, i_t, i_s, scale, &weight, &grad);
                    of_query += grad;
                }
                of_head += of_query;
            }
            total += of_head;
        }
    p.grad_bias.set(first[0], first[1], first[2], first[3], total);
}

extern "C" __global__ void attention_row_sums(PARAMETERS(Problem) p, double factor) {
    int64 row = item();
    if (row >= p.b * p.h * p.t) return;
    int64 i_t = row % p.t, i_h = row / p.t % p.h, i_b = row / p.t / p.h;
    CORE sum = 0;
    for (int i = 0; i < E; i++) sum += p.out.get(i_b, i_h, i_t, i) * p.grad_out.get(i_b, i_h, i_t, i);
    p.row_sums.set(i_b, i_h, i_t, 0, sum - p.row_sums.get(i_b, i_h, i_t, 0));
}

#ifdef TILES

// The same on tensor cores, for 16-bit numbers: a block has QUERIES of one head, a warp 16 of them, and all go through
// KEYS keys at a time. Weights are rounded to 16 bits before they meet the values, as operands of tensor cores are.
enum { QUERIES = THREADS / 32 * 16, KEYS = 64, D16 = (D + 15) / 16 * 16, E8 = (E + 7) / 8 * 8 };

static __device__ unsigned bits_at(const Array& x, int64 i_b, int64 i_h, int64 i, int64 column, int64 end, int width) {
    return i < end && column < width ? *(const unsigned short*)x.at(i_b, i_h, i, column) : 0;
}

extern "C" __global__ void attention_forward_tiles(PARAMETERS(Problem) p, double factor) {
    __shared__ unsigned keys[KEYS][D16 / 2 + 4], values[E8][KEYS / 2 + 4];  // pairs along a key; pairs of keys
    int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    int64 tiles = (p.t + QUERIES - 1) / QUERIES, first_t = blockIdx.x % tiles * QUERIES;
    int64 i_h = blockIdx.x / tiles % p.h, i_b = blockIdx.x / tiles / p.h, kind = p.query.kind;
    int64 row[2] = {first_t + threadIdx.x / 32 * 16 + group, first_t + threadIdx.x / 32 * 16 + group + 8};
    float scale = (float)factor, sum[E8 / 8][4] = {}, top[2] = {minus_infinity(), minus_infinity()}, total[2] = {};
    unsigned query[D16 / 16][4];
    UNROLLED
    for (int k = 0; k < D16 / 16; k++)
        UNROLLED
        for (int i = 0; i < 4; i++) {
            int64 i_t = row[i % 2], column = k * 16 + i / 2 * 8 + pair;
            query[k][i] = bits_at(p.query, i_b, i_h, i_t, column, p.t, D) |
                          bits_at(p.query, i_b, i_h, i_t, column + 1, p.t, D) << 16;
        }
    int64 end[2] = {row[0] < p.t ? p.end(i_b, row[0]) : 0, row[1] < p.t ? p.end(i_b, row[1]) : 0};
    int64 last = first_t + QUERIES < p.t ? first_t + QUERIES - 1 : p.t - 1, stop = p.end(i_b, last);
    for (int64 first_s = 0; first_s < stop; first_s += KEYS) {
        __syncthreads();  // all are done with the tile before
        for (int i = threadIdx.x; i < KEYS * D16 / 2; i += THREADS) {
            int64 s = i / (D16 / 2), column = i % (D16 / 2) * 2;
            keys[s][column / 2] = bits_at(p.key, i_b, i_h, first_s + s, column, stop, D) |
                                  bits_at(p.key, i_b, i_h, first_s + s, column + 1, stop, D) << 16;
        }
        for (int i = threadIdx.x; i < KEYS / 2 * E8; i += THREADS) {
            int64 s = i / E8 * 2, column = i % E8;
            values[column][s / 2] = bits_at(p.value, i_b, i_h, first_s + s, column, stop, E) |
                                    bits_at(p.value, i_b, i_h, first_s + s + 1, column, stop, E) << 16;
        }
        __syncthreads();
        float scores[KEYS / 8][4] = {};
        UNROLLED
        for (int n = 0; n < KEYS / 8; n++)
            UNROLLED
            for (int k = 0; k < D16 / 16; k++) {
                const unsigned* from = &keys[n * 8 + group][k * 8 + pair / 2];
                unsigned two[2] = {from[0], from[4]};
                multiply_add(scores[n], query[k], two, kind);
            }
        UNROLLED
        for (int half = 0; half < 2; half++) {
            float highest = top[half], part = 0;
            UNROLLED
            for (int n = 0; n < KEYS / 8; n++)
                UNROLLED
                for (int i = 0; i < 2; i++) {
                    int64 i_t = row[half], i_s = first_s + n * 8 + pair + i;
                    bool seen = i_s < end[half] && !p.hidden(i_b, i_h, i_t, i_s);
                    float* score = &scores[n][half * 2 + i];
                    *score *= scale;
                    if (seen && p.bias.base) *score += p.bias.get(i_b, i_h, i_t, i_s);
                    if (!seen) *score = minus_infinity();
                    highest = *score > highest ? *score : highest;
                }
            highest = over_quad(highest, true);
            float shift = highest == minus_infinity() ? 0 : highest, rescale = exp(top[half] - shift);
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
        UNROLLED
        for (int k = 0; k < KEYS / 16; k++) {
            const float *left = scores[2 * k], *right = scores[2 * k + 1];
            unsigned weights[4] = {rounded_pair(left[0], left[1], kind), rounded_pair(left[2], left[3], kind),
                                   rounded_pair(right[0], right[1], kind), rounded_pair(right[2], right[3], kind)};
            UNROLLED
            for (int n = 0; n < E8 / 8; n++) {
                const unsigned* from = &values[n * 8 + group][k * 8 + pair / 2];
                unsigned two[2] = {from[0], from[4]};
                multiply_add(sum[n], weights, two, kind);
            }
        }
    }
    UNROLLED
    for (int half = 0; half < 2; half++) {
        float whole = over_quad(total[half], false);
        if (row[half] >= p.t) continue;
        UNROLLED
        for (int n = 0; n < E8 / 8; n++)
            UNROLLED
            for (int i = 0; i < 2; i++)
                if (n * 8 + pair + i < E)
                    p.out.set(i_b, i_h, row[half], n * 8 + pair + i, sum[n][half * 2 + i] / (whole == 0 ? 1 : whole));
        if (pair == 0) p.lse.set(i_b, i_h, row[half], 0, whole == 0 ? minus_infinity() : top[half] + log(whole));
    }
}

#endif
