// Patch embedding around a product that is cuBLAS's; the definition is in saccade.reference.patches.
//
// A thread an element: of the matrix of patches, whose rows are patches in row-major order and whose columns are
// (channel, row, column) inside one; backwards, of the images.

struct Patches {
    int64 b, h, w, c, side;
    Array images, mean, deviation, patches;
};

extern "C" __global__ void cut(PARAMETERS(Patches) p, double) {
    int64 side = p.side, features = p.c * side * side, row = item() / features, feature = item() % features;
    int64 across = p.w / side, down = p.h / side;
    if (row >= p.b * down * across) return;
    int64 channel = feature / (side * side), y = row / across % down * side + feature / side % side;
    CORE pixel = p.images.get(row / across / down, y, row % across * side + feature % side, channel);
    if (p.images.kind == UINT8) pixel /= 255;
    if (p.mean.base) pixel -= p.mean.get(channel);
    if (p.deviation.base) pixel /= p.deviation.get(channel);
    p.patches.set(row, feature, pixel);
}

extern "C" __global__ void uncut(PARAMETERS(Patches) p, double) {
    int64 side = p.side, channel = item() % p.c, x = item() / p.c % p.w, y = item() / p.c / p.w % p.h;
    int64 image = item() / p.c / p.w / p.h;
    if (image >= p.b) return;
    int64 row = (image * (p.h / side) + y / side) * (p.w / side) + x / side;
    CORE grad = p.patches.get(row, (channel * side + y % side) * side + x % side);
    p.images.set(image, y, x, channel, p.deviation.base ? grad / p.deviation.get(channel) : grad);
}
