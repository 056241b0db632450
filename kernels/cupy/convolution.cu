// Convolution around a product that is cuBLAS's, batch norm and pooling; definitions in saccade.reference.convolution.
//
// A thread an element; where windows overlap, an element of the images gathers from all windows that it is in.

struct Windows {  // b h w c images; a matrix with a row a window, (b, down, across), and columns (channel, row, column)
    int64 b, h, w, c, p, q, stride, padding, down, across;
    Array images, windows;
};

extern "C" __global__ void unfold(PARAMETERS(Windows) p, double) {
    int64 features = p.c * p.p * p.q, row = item() / features, feature = item() % features;
    if (row >= p.b * p.down * p.across) return;
    int64 y = row / p.across % p.down * p.stride + feature / p.q % p.p - p.padding;
    int64 x = row % p.across * p.stride + feature % p.q - p.padding;
    bool inside = y >= 0 && y < p.h && x >= 0 && x < p.w;
    int64 image = row / p.across / p.down, channel = feature / p.q / p.p;
    p.windows.set(row, feature, inside ? p.images.get(image, y, x, channel) : (CORE)0);
}

extern "C" __global__ void fold(PARAMETERS(Windows) p, double) {
    int64 channel = item() % p.c, x = item() / p.c % p.w, y = item() / p.c / p.w % p.h;
    int64 image = item() / p.c / p.w / p.h;
    if (image >= p.b) return;
    CORE sum = 0;
    for (int64 i = 0; i < p.p; i++)
        for (int64 j = 0; j < p.q; j++) {
            int64 top = y + p.padding - i, left = x + p.padding - j;
            if (top < 0 || left < 0 || top % p.stride || left % p.stride) continue;
            int64 row = top / p.stride, column = left / p.stride;
            if (row >= p.down || column >= p.across) continue;
            sum += p.windows.get((image * p.down + row) * p.across + column, (channel * p.p + i) * p.q + j);
        }
    p.images.set(image, y, x, channel, sum);
}

// y = (x − mean) / sqrt(variance + eps) scale + bias by columns
struct BatchNorm {
    int64 n, c;
    Array x, mean, variance, scale, bias, grad_out, out, scale_chunks, bias_chunks;

    __device__ CORE inverse(int64 j, double eps) const { return 1 / sqrt(variance.get(j) + (CORE)eps); }
};

extern "C" __global__ void batch_norm_forward(PARAMETERS(BatchNorm) p, double eps) {
    int64 row = item() / p.c, j = item() % p.c;
    if (row >= p.n) return;
    CORE normal = (p.x.get(row, j) - p.mean.get(j)) * p.inverse(j, eps);
    p.out.set(row, j, normal * p.scale.get(j) + p.bias.get(j));
}

extern "C" __global__ void batch_norm_backward(PARAMETERS(BatchNorm) p, double eps) {
    int64 row = item() / p.c, j = item() % p.c;
    if (row >= p.n) return;
    p.out.set(row, j, p.grad_out.get(row, j) * (p.scale.get(j) * p.inverse(j, eps)));
}

extern "C" __global__ void batch_norm_chunks(PARAMETERS(BatchNorm) p, double eps) {
    int64 chunk = item() / p.c, j = item() % p.c, stop = (chunk + 1) * CHUNK;
    if (chunk * CHUNK >= p.n) return;
    CORE scale_sum = 0, bias_sum = 0;
    for (int64 row = chunk * CHUNK; row < stop && row < p.n; row++) {
        CORE grad = p.grad_out.get(row, j);
        scale_sum += grad * ((p.x.get(row, j) - p.mean.get(j)) * p.inverse(j, eps));
        bias_sum += grad;
    }
    p.scale_chunks.set(chunk, j, scale_sum);
    p.bias_chunks.set(chunk, j, bias_sum);
}

// The mean of windows side by side; what is left over at the edges is in none.
struct Pool {
    int64 b, h, w, c, size;
    Array x, out;
};

extern "C" __global__ void average_pool_forward(PARAMETERS(Pool) p, double) {
    int64 down = p.h / p.size, across = p.w / p.size;
    int64 channel = item() % p.c, column = item() / p.c % across, row = item() / p.c / across % down;
    int64 image = item() / p.c / across / down;
    if (image >= p.b) return;
    CORE sum = 0;
    for (int64 i = 0; i < p.size; i++)
        for (int64 j = 0; j < p.size; j++) sum += p.x.get(image, row * p.size + i, column * p.size + j, channel);
    p.out.set(image, row, column, channel, sum / (CORE)(p.size * p.size));
}

extern "C" __global__ void average_pool_backward(PARAMETERS(Pool) p, double) {  // `x` is the gradient of what came out
    int64 channel = item() % p.c, x = item() / p.c % p.w, y = item() / p.c / p.w % p.h;
    int64 image = item() / p.c / p.w / p.h, row = y / p.size, column = x / p.size;
    if (image >= p.b) return;
    bool inside = row < p.h / p.size && column < p.w / p.size;
    CORE share = inside ? p.x.get(image, row, column, channel) / (CORE)(p.size * p.size) : (CORE)0;
    p.out.set(image, y, x, channel, share);
}
