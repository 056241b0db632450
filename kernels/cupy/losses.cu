// Cross entropies of logits that are given; the definitions are in saccade.reference.losses. A block owns a row.
//
//     loss = sum_k target_k (lse − logit_k);   dlogits = (exp(logit − lse) sum_k target_k − target) dloss
//
// Integer labels and soft targets; a label that is no class gives NaN for its row.

struct Problem {
    int64 n, k, ignore_index;
    Array logits, labels, soft, per_row, lse, grad_rows, grad_logits;

    __device__ bool ignored(int64 row) const { return labels.base && labels.integer(row) == ignore_index; }
    __device__ bool bad(int64 row) const {
        return labels.base && !ignored(row) && (labels.integer(row) < 0 || labels.integer(row) >= k);
    }
    __device__ CORE target(int64 row, int64 j, CORE smoothing) const {
        CORE own = soft.base ? soft.get(row, j) : (CORE)(labels.integer(row) == j);
        return own * (1 - smoothing) + smoothing / (CORE)k;
    }
};

// The largest logit, and the sum of exp(logit − it).
static __device__ void maximum_and_sum(const Problem& p, int64 row, CORE* top, CORE* sum) {
    CORE own_top = minus_infinity(), own_sum = 0;
    FOR_COLUMNS(j, p.k) {
        CORE logit = p.logits.get(row, j);
        own_top = logit > own_top ? logit : own_top;
    }
    *top = block_max(own_top);
    *top = is_finite(*top) ? *top : (CORE)0;  // an infinite maximum cannot be taken off
    FOR_COLUMNS(j, p.k) own_sum += exp(p.logits.get(row, j) - *top);
    *sum = block_sum(own_sum);
}

extern "C" __global__ void softmax_cross_entropy_forward(PARAMETERS(Problem) p, double label_smoothing) {
    int64 row = blockIdx.x;
    CORE top, sum, loss = 0, smoothing = (CORE)label_smoothing;
    maximum_and_sum(p, row, &top, &sum);
    CORE lse = top + log(sum);
    FOR_COLUMNS(j, p.k) {
        CORE target = p.target(row, j, smoothing);
        if (target != 0) loss += target * (lse - p.logits.get(row, j));
    }
    loss = block_sum(loss);
    if (threadIdx.x) return;
    p.per_row.set(row, p.ignored(row) ? (CORE)0 : p.bad(row) ? not_a_number() : loss);
    p.lse.set(row, lse);
}

extern "C" __global__ void softmax_cross_entropy_backward(PARAMETERS(Problem) p, double label_smoothing) {
    int64 row = blockIdx.x;
    CORE top, sum, whole = 0, smoothing = (CORE)label_smoothing;
    CORE grad = p.bad(row) ? not_a_number() : p.grad_rows.get(row);
    maximum_and_sum(p, row, &top, &sum);
    FOR_COLUMNS(j, p.k) whole += p.target(row, j, smoothing);
    whole = block_sum(whole);
    if (!p.soft.base) whole = 1;
    FOR_COLUMNS(j, p.k) {
        CORE weight = exp(p.logits.get(row, j) - top) / sum;
        CORE value = p.ignored(row) ? (CORE)0 : (weight * whole - p.target(row, j, smoothing)) * grad;
        p.grad_logits.set(row, j, value);
    }
}

// loss = sum_k [target softplus(−logit) + (1 − target) softplus(logit)];   dlogits = (σ(logit) − target) dloss
struct Binary {
    int64 n, k;
    Array logits, targets, per_row, grad_rows, grad_logits;
};

extern "C" __global__ void sigmoid_cross_entropy_forward(PARAMETERS(Binary) p, double) {
    int64 row = blockIdx.x;
    CORE loss = 0;
    FOR_COLUMNS(j, p.k) {
        CORE logit = p.logits.get(row, j), target = p.targets.get(row, j);
        loss += target * softplus(-logit) + (1 - target) * softplus(logit);
    }
    loss = block_sum(loss);
    if (threadIdx.x == 0) p.per_row.set(row, loss);
}

extern "C" __global__ void sigmoid_cross_entropy_backward(PARAMETERS(Binary) p, double) {
    int64 row = item() / p.k, j = item() % p.k;
    if (row >= p.n) return;
    p.grad_logits.set(row, j, (sigmoid(p.logits.get(row, j)) - p.targets.get(row, j)) * p.grad_rows.get(row));
}
