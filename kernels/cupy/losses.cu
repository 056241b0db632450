// Softmax cross entropy, one thread a row; the definition is in saccade.reference.losses.
//
//     loss = sum_k target_k (lse − logit_k);   dlogits = (exp(logit − lse) sum_k target_k − target) dloss
//
// Integer labels and soft targets; a label that is no class gives NaN for its row.

struct Problem {
    int64 n, k, ignore_index, is_soft;
    Array logits, targets, per_row, lse, grad_rows, grad_logits;
    address labels;

    __device__ int64 label(int64 row) const { return ((const int64*)labels)[row]; }
    __device__ CORE target(int64 row, int64 j, CORE smoothing) const {
        CORE own = is_soft ? targets.get(row, j, 0, 0) : (CORE)(label(row) == j);
        return own * (1 - smoothing) + smoothing / (CORE)k;
    }
};

static __device__ void maximum_and_sum(const Problem* p, int64 row, CORE* top, CORE* sum) {
    *top = minus_infinity();
    *sum = 0;
    for (int64 j = 0; j < p->k; j++) {
        CORE logit = p->logits.get(row, j, 0, 0);
        *top = logit > *top ? logit : *top;
    }
    *top = *top - *top == 0 ? *top : (CORE)0;  // an infinite maximum cannot be taken off
    for (int64 j = 0; j < p->k; j++) *sum += exp(p->logits.get(row, j, 0, 0) - *top);
}

extern "C" __global__ void softmax_cross_entropy_forward(const Problem* p, double label_smoothing) {
    int64 row = item();
    if (row >= p->n) return;
    CORE top, sum, loss = 0, smoothing = (CORE)label_smoothing;
    maximum_and_sum(p, row, &top, &sum);
    CORE lse = top + log(sum);
    bool ignored = !p->is_soft && p->label(row) == p->ignore_index;
    if (!ignored)
        for (int64 j = 0; j < p->k; j++) {
            CORE target = p->target(row, j, smoothing);
            if (target != 0) loss += target * (lse - p->logits.get(row, j, 0, 0));
        }
    bool bad = !p->is_soft && !ignored && (p->label(row) < 0 || p->label(row) >= p->k);
    p->per_row.set(row, 0, 0, 0, bad ? not_a_number() : loss);
    p->lse.set(row, 0, 0, 0, lse);
}

extern "C" __global__ void softmax_cross_entropy_backward(const Problem* p, double label_smoothing) {
    int64 row = item();
    if (row >= p->n) return;
    CORE top, sum, whole = 0, smoothing = (CORE)label_smoothing, grad = p->grad_rows.get(row, 0, 0, 0);
    bool ignored = !p->is_soft && p->label(row) == p->ignore_index;
    bool bad = !p->is_soft && !ignored && (p->label(row) < 0 || p->label(row) >= p->k);
    if (bad) grad = not_a_number();
    maximum_and_sum(p, row, &top, &sum);
    if (p->is_soft)
        for (int64 j = 0; j < p->k; j++) whole += p->target(row, j, smoothing);
    else
        whole = 1;
    for (int64 j = 0; j < p->k; j++) {
        CORE weight = exp(p->logits.get(row, j, 0, 0) - top) / sum;
        CORE value = ignored ? (CORE)0 : (weight * whole - p->target(row, j, smoothing)) * grad;
        p->grad_logits.set(row, j, 0, 0, value);
    }
}
