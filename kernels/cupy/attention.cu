// Softmax attention, one thread a row; definitions in saccade.reference.attention, the same on tensor cores in
// attention_tiles.cu.
//
//     S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
//     dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q
//
// Plain on purpose: no two threads write to the same number, so there are no atomics.

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
