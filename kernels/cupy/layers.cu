// The layers of a transformer block, around products that are cuBLAS's; definitions in saccade.reference.layers.
//
// Where a row is added up, a block owns it, row blockIdx.x. Sums over rows are added up in chunks of CHUNK rows by a
// thread a column, then chunk by chunk, so no two threads add to one number.

enum { ERF, TANH };

// n = (x − mean) / sqrt(mean((x − mean)²) + eps);  y = n scale + bias;  an RMS norm, which stores no mean, leaves it out
struct Norm {
    int64 n, e;
    Array x, residual, scale, bias, out, total, mean, inverse;
};

extern "C" __global__ void norm_forward(PARAMETERS(Norm) p, double eps) {
    int64 row = blockIdx.x, e = p.e;
    const Array& total = p.residual.base ? p.total : p.x;
    if (p.residual.base)  // the sum is rounded, and that is what is normalised; each thread reads what it wrote
        FOR_COLUMNS(j, e) total.set(row, j, p.x.get(row, j) + p.residual.get(row, j));
    CORE sum = 0, squares = 0;
    if (p.mean.base) {
        FOR_COLUMNS(j, e) sum += total.get(row, j);
        sum = block_sum(sum);
    }
    CORE mean = sum / (CORE)e;
    FOR_COLUMNS(j, e) {
        CORE centred = total.get(row, j) - mean;
        squares += centred * centred;
    }
    CORE inverse = 1 / sqrt(block_sum(squares) / (CORE)e + (CORE)eps);
    FOR_COLUMNS(j, e) {
        CORE normal = (total.get(row, j) - mean) * inverse * p.scale.get(j);
        p.out.set(row, j, p.bias.base ? normal + p.bias.get(j) : normal);
    }
    if (threadIdx.x) return;
    p.inverse.set(row, inverse);
    if (p.mean.base) p.mean.set(row, mean);
}

// With g = dy scale:  dx = (g − mean(g) − n mean(g n)) / sqrt(variance + eps) + dsum;  dscale = sum dy n;
// dbias = sum dy
struct NormGradient {
    int64 n, e;
    Array total, scale, mean, inverse, grad_out, grad_sum, grad_x, scale_chunks, bias_chunks;

    __device__ CORE normal(int64 row, int64 j) const {
        return (mean.base ? total.get(row, j) - mean.get(row) : total.get(row, j)) * inverse.get(row);
    }
};

extern "C" __global__ void norm_backward(PARAMETERS(NormGradient) p, double) {
    int64 row = blockIdx.x, e = p.e;
    CORE level = 0, along = 0;
    FOR_COLUMNS(j, e) {
        CORE grad = p.grad_out.get(row, j) * p.scale.get(j);
        level += grad;
        along += grad * p.normal(row, j);
    }
    level = p.mean.base ? block_sum(level) / (CORE)e : (CORE)0;
    along = block_sum(along) / (CORE)e;
    FOR_COLUMNS(j, e) {
        CORE grad = p.grad_out.get(row, j) * p.scale.get(j) - level - p.normal(row, j) * along;
        grad *= p.inverse.get(row);
        p.grad_x.set(row, j, p.grad_sum.base ? grad + p.grad_sum.get(row, j) : grad);
    }
}

extern "C" __global__ void norm_chunks(PARAMETERS(NormGradient) p, double) {
    int64 chunk = item() / p.e, j = item() % p.e, stop = (chunk + 1) * CHUNK;
    if (chunk * CHUNK >= p.n) return;
    CORE scale_sum = 0, bias_sum = 0;
    for (int64 row = chunk * CHUNK; row < stop && row < p.n; row++) {
        CORE grad = p.grad_out.get(row, j);
        scale_sum += grad * p.normal(row, j);
        bias_sum += grad;
    }
    p.scale_chunks.set(chunk, j, scale_sum);
    p.bias_chunks.set(chunk, j, bias_sum);
}

struct Sums {
    int64 n, e;
    Array x, out;
};

extern "C" __global__ void column_chunks(PARAMETERS(Sums) p, double) {
    int64 chunk = item() / p.e, j = item() % p.e, stop = (chunk + 1) * CHUNK;
    if (chunk * CHUNK >= p.n) return;
    CORE sum = 0;
    for (int64 row = chunk * CHUNK; row < stop && row < p.n; row++) sum += p.x.get(row, j);
    p.out.set(chunk, j, sum);
}

extern "C" __global__ void column_sums(PARAMETERS(Sums) p, double) {
    int64 j = item();
    if (j >= p.e) return;
    CORE sum = 0;
    for (int64 row = 0; row < p.n; row++) sum += p.x.get(row, j);
    p.out.set(j, sum);
}

// What comes after a product, rounded once: out = x factor + bias
struct Finish {
    int64 n, e;
    Array x, factor, bias, out;
};

extern "C" __global__ void finish(PARAMETERS(Finish) p, double) {
    int64 row = item() / p.e, j = item() % p.e;
    if (row >= p.n) return;
    CORE value = p.x.get(row, j);
    if (p.factor.base) value *= p.factor.number();
    if (p.bias.base) value += p.bias.get(j);
    p.out.set(row, j, value);
}

// x Φ(x) and its derivative: what x is multiplied by, and the derivative of that
struct Gelu {
    int64 n, e, kind;
    Array x, grad_out, out;
};

static __device__ void gelu_gate(CORE x, int64 kind, CORE* gate, CORE* slope) {
    if (kind == ERF) {
        *gate = erfc(-x * (CORE)0.70710678118654752) / 2;
        *slope = exp(-x * x / 2) * (CORE)0.39894228040143268;  // 1/√(2π)
        return;
    }
    // (1 + tanh v)/2 = σ(2v) without cancelling: u = 2√(2/π)(x + 0.044715 x³), or 1.702 x
    CORE c = (CORE)1.5957691216057308, a = (CORE)0.044715;
    CORE u = kind == TANH ? c * (x + a * x * x * x) : (CORE)1.702 * x;
    CORE u_slope = kind == TANH ? c * (1 + 3 * a * x * x) : (CORE)1.702;
    *gate = sigmoid(u);
    *slope = u_slope * *gate * sigmoid(-u);
}

extern "C" __global__ void gelu_forward(PARAMETERS(Gelu) p, double) {
    int64 row = item() / p.e, j = item() % p.e;
    if (row >= p.n) return;
    CORE x = p.x.get(row, j), gate, slope;
    gelu_gate(x, p.kind, &gate, &slope);
    p.out.set(row, j, x * gate);
}

extern "C" __global__ void gelu_backward(PARAMETERS(Gelu) p, double) {
    int64 row = item() / p.e, j = item() % p.e;
    if (row >= p.n) return;
    CORE x = p.x.get(row, j), gate, slope;
    gelu_gate(x, p.kind, &gate, &slope);
    p.out.set(row, j, p.grad_out.get(row, j) * (gate + x * slope));
}

// y = x / max(|x|, eps);  dx = (dy − y (y · dy)) / |x|, or dy / eps where |x| <= eps
struct Normalize {
    int64 n, e;
    Array x, grad_out, out;

    __device__ CORE length(int64 row) const {
        CORE squares = 0;
        FOR_COLUMNS(j, e) squares += x.get(row, j) * x.get(row, j);
        return sqrt(block_sum(squares));
    }
};

extern "C" __global__ void l2_normalize_forward(PARAMETERS(Normalize) p, double eps) {
    int64 row = blockIdx.x;
    CORE length = p.length(row), divisor = length < (CORE)eps ? (CORE)eps : length;
    FOR_COLUMNS(j, p.e) p.out.set(row, j, p.x.get(row, j) / divisor);
}

extern "C" __global__ void l2_normalize_backward(PARAMETERS(Normalize) p, double eps) {
    int64 row = blockIdx.x;
    CORE length = p.length(row), divisor = length < (CORE)eps ? (CORE)eps : length, along = 0;
    FOR_COLUMNS(j, p.e) along += p.x.get(row, j) / divisor * p.grad_out.get(row, j);
    along = block_sum(along);
    if (length <= (CORE)eps) along = 0;
    FOR_COLUMNS(j, p.e) {
        CORE own = p.x.get(row, j) / divisor;
        p.out.set(row, j, (p.grad_out.get(row, j) - own * along) / divisor);
    }
}

// Rows of a matrix at tokens. Backwards the tokens are sorted, `order` says which row each came from, and the rows of a
// token are added up in the order in which they stood.
struct Embedding {
    int64 n, e, k;
    Array tokens, order, rows, out;
};

extern "C" __global__ void embedding_forward(PARAMETERS(Embedding) p, double) {
    int64 row = item() / p.e, j = item() % p.e;
    if (row >= p.n) return;
    int64 token = p.tokens.integer(row);
    p.out.set(row, j, token < 0 || token >= p.k ? not_a_number() : p.rows.get(token, j));
}

static __device__ int64 first_not_below(const Array& sorted, int64 n, int64 token) {
    int64 low = 0, high = n;
    while (low < high) {
        int64 middle = (low + high) / 2;
        if (sorted.integer(middle) < token) low = middle + 1;
        else high = middle;
    }
    return low;
}

extern "C" __global__ void embedding_backward(PARAMETERS(Embedding) p, double) {
    int64 token = item() / p.e, j = item() % p.e;
    if (token >= p.k) return;
    CORE sum = 0;
    for (int64 i = first_not_below(p.tokens, p.n, token); i < p.n && p.tokens.integer(i) == token; i++)
        sum += p.rows.get(p.order.integer(i), j);
    p.out.set(token, j, sum);
}
