// The palette of ImageGPT in exact integers; the definitions are in saccade.reference.palette.
//
// Centres are in units of 1/GRID of a level, so a squared distance is below 2⁴³ and every sum an exact 64-bit integer:
// integers may be added atomically, in any order, and the bits stay the same.

enum { GRID = 4096, TILE = 256 };

static __device__ void add(const Array& sums, int64 i, int64 j, int64 value) {
    atomicAdd((address*)sums.at(i, j, 0, 0), (address)value);
}

struct Pixels {  // n colours: counted by 24-bit value, or looked up in a table of all 24-bit values
    int64 n;
    Array colors, table, out;

    __device__ int64 level(int64 i, int c) const { return *(const unsigned char*)colors.at(i, c, 0, 0); }
    __device__ int64 code(int64 i) const { return level(i, 0) << 16 | level(i, 1) << 8 | level(i, 2); }
};

extern "C" __global__ void count_colors(PARAMETERS(Pixels) p, double) {
    int64 i = item();
    if (i < p.n) add(p.table, p.code(i), 0, 1);
}

extern "C" __global__ void encode_colors(PARAMETERS(Pixels) p, double) {
    int64 i = item();
    if (i < p.n) p.out.set_integer(i, 0, p.table.integer(p.code(i)));
}

struct Clusters {
    int64 n, k;
    Array colors, counts, centers, assignment, sums, out;

    __device__ int level(int64 i, int c) const { return *(const unsigned char*)colors.at(i, c, 0, 0); }
    __device__ int64 squared_distance(int64 i, int64 j) const {
        int64 sum = 0;
        for (int c = 0; c < 3; c++) {
            int64 difference = GRID * level(i, c) - centers.integer(j, c);
            sum += difference * difference;
        }
        return sum;
    }
};

// The lowest index among the nearest centres. The block's threads go through the same TILE centres at a time.
extern "C" __global__ void assign(PARAMETERS(Clusters) p, double) {
    __shared__ int tile[TILE][3];
    int64 i = item(), nearest = 0x7fffffffffffffff, best = 0;
    bool given = i < p.n;
    int r = given ? GRID * p.level(i, 0) : 0, g = given ? GRID * p.level(i, 1) : 0;
    int b = given ? GRID * p.level(i, 2) : 0;
    for (int64 first = 0; first < p.k; first += TILE) {
        int64 width = p.k - first < TILE ? p.k - first : TILE;
        __syncthreads();  // all are done with the tile before
        for (int64 j = threadIdx.x; j < width; j += THREADS)
            for (int c = 0; c < 3; c++) tile[j][c] = (int)p.centers.integer(first + j, c);
        __syncthreads();
        for (int64 j = 0; j < width; j++) {
            int64 x = r - tile[j][0], y = g - tile[j][1], z = b - tile[j][2], distance = x * x + y * y + z * z;
            if (distance < nearest) {
                nearest = distance;
                best = first + j;
            }
        }
    }
    if (given) p.out.set_integer(i, 0, best);
}

// Of each centre, how many pixels it has and the sums of their levels: columns 3 and 0 … 2 of `sums`.
extern "C" __global__ void add_up_clusters(PARAMETERS(Clusters) p, double) {
    int64 i = item();
    if (i >= p.n) return;
    int64 count = p.counts.integer(i), j = p.assignment.integer(i);
    if (j < 0 || j >= p.k) return;  // no centre's
    for (int c = 0; c < 3; c++) add(p.sums, j, c, count * p.level(i, c));
    add(p.sums, j, 3, count);
}

// The mean on the grid, rounded half up; a centre without pixels stays.
extern "C" __global__ void move_centers(PARAMETERS(Clusters) p, double) {
    int64 j = item() / 3, c = item() % 3;
    if (j >= p.k) return;
    int64 weight = p.sums.integer(j, 3), total = p.sums.integer(j, c);
    int64 mean = weight > 0 ? (2 * GRID * total + weight) / (2 * weight) : p.centers.integer(j, c);
    p.out.set_integer(j, c, mean);
}

// The sum of all pixels' squared distances in two parts, which do not overflow: 2²⁰ sums[0] + sums[1].
extern "C" __global__ void add_up_distances(PARAMETERS(Clusters) p, double) {
    int64 i = item();
    if (i >= p.n) return;
    int64 count = p.counts.integer(i), j = p.assignment.integer(i);
    if (j < 0 || j >= p.k) return;
    int64 distance = p.squared_distance(i, j);
    add(p.sums, 0, 0, count * (distance >> 20));
    add(p.sums, 1, 0, count * (distance & 0xfffff));
}

// k-means++: how far each colour is, in levels², from the nearest colour drawn so far; `assignment` is what is drawn.
extern "C" __global__ void draw_nearer(PARAMETERS(Clusters) p, double) {
    int64 i = item(), drawn = p.assignment.integer(0), distance = 0;
    if (i >= p.n) return;
    for (int c = 0; c < 3; c++) {
        int64 difference = p.level(i, c) - p.level(drawn, c);
        distance += difference * difference;
    }
    if (distance < p.out.integer(i)) p.out.set_integer(i, 0, distance);
}
