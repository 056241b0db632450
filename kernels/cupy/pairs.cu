// Losses of logits that are products, of which there is only a panel at a time, some rows of them, as cuBLAS made it:
//
//     products_ij = a_(first + i) · b_j;   logits = scale products (+ bias)
//
// What is kept of each row, and of each column, measures logits against their own, at the label or in the pair, since
// log-sum-exp minus own, and a weight minus 1, would cancel where the own logit is all but certain:
//
//     LOSS   = log-sum-exp − own logit = log1p(sum of the others' exp(logit − own))
//     TOP    = the largest of sign(scale) products
//     EXCESS = log-sum-exp − largest logit;   weights are exp(|scale| (sign(scale) product − TOP) − EXCESS)

enum { LOSS, TOP, EXCESS, OWN = LOSS };  // a column's own product lies there until its loss is known

struct Panel {
    int64 rows, k, first, n, ignore_index;
    Array products, scale, bias, labels, of_rows, of_columns, owns, factors, per_row, grads, scale_rows, bias_rows;

    __device__ CORE factor() const { return scale.base ? scale.number() : (CORE)1; }
    __device__ int64 label(int64 i) const { return labels.base ? labels.integer(first + i) : first + i; }
    __device__ bool ignored(int64 i) const { return labels.base && label(i) == ignore_index; }
    __device__ bool bad(int64 i) const { return label(i) < 0 || label(i) >= k; }
};

static __device__ CORE or_zero(CORE x) { return is_finite(x) ? x : (CORE)0; }
static __device__ CORE turned(CORE product, CORE scale) { return scale < 0 ? -product : product; }

// From the largest turned product and the sum over all but the own of exp(|scale| (turned product − it)).
static __device__ void finish_statistics(const Array& kept, int64 i, CORE scale, CORE own, CORE top, CORE others) {
    CORE shift = or_zero(top), below = fabs(scale) * (turned(or_zero(own), scale) - shift);
    CORE excess = log1p(others + expm1(below));
    kept.set(LOSS, i, is_finite(own) ? excess - below : excess - below - scale * own);
    kept.set(TOP, i, shift);
    kept.set(EXCESS, i, excess);
}

static __device__ CORE weight(const Array& kept, int64 i, CORE scale, CORE product) {
    return exp(fabs(scale) * (turned(product, scale) - kept.get(TOP, i)) - kept.get(EXCESS, i));
}

// Of each row of the panel; and with labels, per_row = LOSS − smoothing (mean logit − own logit).
extern "C" __global__ void row_statistics(PARAMETERS(Panel) p, double smoothing) {
    int64 i = blockIdx.x, label = p.label(i);
    CORE scale = p.factor(), own = p.bad(i) ? (CORE)0 : p.products.get(i, label);
    CORE level = turned(or_zero(own), scale), top = level, others = 0, above = 0;
    FOR_COLUMNS(j, p.k) {
        CORE product = turned(p.products.get(i, j), scale);
        top = product > top ? product : top;
        above += fabs(scale) * (product - level);
    }
    top = block_max(top);
    above = block_sum(above);
    FOR_COLUMNS(j, p.k)
        if (j != label || !is_finite(own))
            others += exp(fabs(scale) * (turned(p.products.get(i, j), scale) - or_zero(top)));
    others = block_sum(others);
    if (threadIdx.x) return;
    finish_statistics(p.of_rows, p.first + i, scale, own, top, others);
    CORE loss = p.of_rows.get(LOSS, p.first + i);
    if (smoothing != 0) loss -= (CORE)smoothing * (above / (CORE)p.k);
    if (p.labels.base) p.per_row.set(p.first + i, p.ignored(i) ? (CORE)0 : p.bad(i) ? not_a_number() : loss);
}

// Of each column, whose own row is that of its number: carried from panel to panel, finished in the last.
extern "C" __global__ void column_statistics(PARAMETERS(Panel) p, double) {
    int64 j = item();
    if (j >= p.k) return;
    const Array& kept = p.of_columns;
    CORE scale = p.factor(), before = p.first ? kept.get(TOP, j) : minus_infinity(), top = before;
    for (int64 i = 0; i < p.rows; i++) {
        CORE product = turned(p.products.get(i, j), scale);
        top = product > top ? product : top;
    }
    CORE others = p.first ? kept.get(EXCESS, j) : (CORE)0, own = p.first ? kept.get(OWN, j) : (CORE)0;
    CORE shift = or_zero(top);
    if (before != minus_infinity()) others *= exp(fabs(scale) * (or_zero(before) - shift));
    for (int64 i = 0; i < p.rows; i++) {
        CORE product = p.products.get(i, j);
        if (p.first + i == j) own = product;
        if (p.first + i == j && is_finite(product)) continue;
        others += exp(fabs(scale) * (turned(product, scale) - shift));
    }
    kept.set(TOP, j, top);
    kept.set(EXCESS, j, others);
    kept.set(OWN, j, own);
    if (p.first + p.rows == p.n) finish_statistics(kept, j, scale, own, top, others);
}

// dlogits = (softmax − (1 − smoothing) onehot(label) − smoothing / k) factors
extern "C" __global__ void label_gradients(PARAMETERS(Panel) p, double smoothing) {
    int64 i = item() / p.k, j = item() % p.k, row = p.first + i;
    if (i >= p.rows) return;
    CORE grad = p.bad(i) ? not_a_number() : weight(p.of_rows, row, 1, p.products.get(i, j));
    if (j == p.label(i)) grad = expm1(-p.of_rows.get(LOSS, row)) + (CORE)smoothing;
    grad -= (CORE)smoothing / (CORE)p.k;
    if (p.factors.base) grad *= p.factors.get(row);
    p.grads.set(i, j, p.ignored(i) ? (CORE)0 : grad);
}

struct Owns {
    int64 n, e;
    Array a, b, out;
};

// a_i · b_i: the pairs' own products.
extern "C" __global__ void own_products(PARAMETERS(Owns) p, double) {
    CORE sum = 0;
    FOR_COLUMNS(j, p.e) sum += p.a.get(blockIdx.x, j) * p.b.get(blockIdx.x, j);
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.out.set(blockIdx.x, sum);
}

// Both softmaxes of CLIP: dlogits = softmax_j + softmax_i − 2 identity, and per row its share of the gradient of the
// scale, sum over j of softmax_j (product − row's own) + softmax_i (product − column's own).
extern "C" __global__ void clip_gradients(PARAMETERS(Panel) p, double) {
    int64 i = blockIdx.x, row = p.first + i;
    CORE scale = p.factor(), own = p.owns.get(row), sum = 0;
    FOR_COLUMNS(j, p.k) {
        CORE product = p.products.get(i, j);
        CORE along = weight(p.of_rows, row, scale, product), across = weight(p.of_columns, j, scale, product);
        if (j != row) sum += along * (product - own) + across * (product - p.owns.get(j));
        CORE pair = expm1(-p.of_rows.get(LOSS, row)) + expm1(-p.of_columns.get(LOSS, row));
        p.grads.set(i, j, j == row ? pair : along + across);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.scale_rows.set(row, sum);
}

// SigLIP's sums of −log σ(±logit) per row; dlogits = −σ(−logit) in the pair, σ(logit) elsewhere, and per row its
// shares of the gradients of scale and bias.
extern "C" __global__ void siglip_rows(PARAMETERS(Panel) p, double) {
    int64 i = blockIdx.x, row = p.first + i;
    CORE sum = 0;
    FOR_COLUMNS(j, p.k) {
        CORE logit = p.factor() * p.products.get(i, j) + p.bias.number();
        sum += softplus(j == row ? -logit : logit);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.per_row.set(row, sum);
}

extern "C" __global__ void siglip_gradients(PARAMETERS(Panel) p, double) {
    int64 i = blockIdx.x, row = p.first + i;
    CORE scale_sum = 0, bias_sum = 0;
    FOR_COLUMNS(j, p.k) {
        CORE product = p.products.get(i, j), logit = p.factor() * product + p.bias.number();
        CORE grad = j == row ? -sigmoid(-logit) : sigmoid(logit);
        scale_sum += grad * product;
        bias_sum += grad;
        p.grads.set(i, j, grad);
    }
    scale_sum = block_sum(scale_sum);
    bias_sum = block_sum(bias_sum);
    if (threadIdx.x) return;
    p.scale_rows.set(row, scale_sum);
    p.bias_rows.set(row, bias_sum);
}
