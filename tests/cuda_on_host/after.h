// A launch on the host: block by block, every thread of a block a fiber that runs until it comes to a barrier, meets
// the other lanes of its warp, or ends. Between barriers, warps and the lanes of each run in the order that is asked
// for, each warp as far as it can: a kernel may depend on none of that.

extern "C" unsigned char __start_shared[] __attribute__((weak)), __stop_shared[] __attribute__((weak));

typedef void (*Kernel)(const void*, double);
enum State { NEW, READY, MEETING, WAITING, ENDED };
enum { WARP = 32 };
enum { FORWARD, REVERSED };  // any other order is a seed

struct Fiber {
    State state;
    jmp_buf here;
    char stack[1 << 17];
};

static Fiber fibers[THREADS];
static Fiber* running;
static jmp_buf scheduler;
static struct { Kernel kernel; const void* problem; double number; } now;

static void pause(State state) {
    running->state = state;
    if (!_setjmp(running->here)) _longjmp(scheduler, 1);
}

static void __syncthreads() { pause(WAITING); }

struct Lane {
    unsigned a[4], b[2];
    float value;
    unsigned char* row;
};

static Lane shown[THREADS];
static void meet() { pause(MEETING); }
static Lane& lane(int i) { return shown[threadIdx.x / WARP * WARP + i]; }

static float number(unsigned both, int second, int64 kind) {
    unsigned bits = second ? both >> 16 : both & 0xffff;
    return kind == BFLOAT16 ? float_of(bits << 16) : half_to_float(bits);
}

// By the layout of fragments that PTX documents, row by column.
static void multiply_add(float* c, const unsigned* a, const unsigned* b, long long kind) {
    memcpy(shown[threadIdx.x].a, a, sizeof shown->a);
    memcpy(shown[threadIdx.x].b, b, sizeof shown->b);
    meet();
    for (int i = 0; i < 4; i++) {
        int row = threadIdx.x % WARP / 4 + i / 2 * 8, column = threadIdx.x % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            unsigned left = lane(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2];
            unsigned right = lane(column * 4 + k % 8 / 2).b[k / 8];
            c[i] += number(left, k % 2, kind) * number(right, k % 2, kind);
        }
    }
    meet();  // and nobody shows anything else before all have seen this
}

static unsigned rounded_pair(float low, float high, long long kind) {
    if (kind == BFLOAT16) return float_to_bfloat16(low) | (unsigned)float_to_bfloat16(high) << 16;
    return float_to_half(low) | (unsigned)float_to_half(high) << 16;
}

static void store_fragments(void* row, const unsigned* pairs) {
    shown[threadIdx.x].row = (unsigned char*)row;
    meet();
    for (int i = 0; i < 2; i++) memcpy(lane(i * 8 + threadIdx.x % WARP / 4).row + threadIdx.x % 4 * 4, &pairs[i], 4);
    meet();
}

static void meet_warp() { meet(); }

static float of_lane_across(float value, int bit) {
    shown[threadIdx.x].value = value;
    meet();
    float other = lane(threadIdx.x % WARP ^ bit).value;
    meet();
    return other;
}

static unsigned shared_address(const void* at) { return (const unsigned char*)at - __start_shared; }

// Copies and products of a warpgroup happen when they are asked for or when they are waited for, by the order of
// threads: a kernel may depend on neither.
static bool late;
enum { AHEAD = 2048 };
struct Copy { void* to; address from; bool there; int group; };
struct Product { float* c; const unsigned* a; address in_shared, b; int n, add; int64 kind; int group; };
template <class T> struct Queue {  // of what a thread has begun
    int count, group;
    T of[AHEAD];
};
static Queue<Copy> copies[THREADS];
static Queue<Product> products[THREADS];

static void carry_out(const Copy& one) {
    if (one.there) memcpy(one.to, (const void*)one.from, 16);
    else memset(one.to, 0, 16);
}
static void carry_out(const Product& one);

template <class T> static void carry_out_all_but(int left, Queue<T>* queue) {
    int done = 0;
    while (done < queue->count && queue->of[done].group < queue->group - left) carry_out(queue->of[done++]);
    queue->count -= done;
    for (int i = 0; i < queue->count; i++) queue->of[i] = queue->of[done + i];
}

template <class T> static void begin(const T& one, Queue<T>* queue) {
    if (!late) carry_out(one);
    else queue->of[queue->count++] = one;
}

static void copy_ahead(void* to, address from, bool there) {
    begin({to, from, there, copies[threadIdx.x].group}, &copies[threadIdx.x]);
}
static void end_of_copies() { copies[threadIdx.x].group++; }
template <int LEFT> static void copied() { carry_out_all_but(LEFT, &copies[threadIdx.x]); }

static void warpgroup_product(float* c, int n, const unsigned* a, address in_shared, address b, int add, int64 kind) {
    begin({c, a, in_shared, b, n, add, kind, products[threadIdx.x].group}, &products[threadIdx.x]);
}
static void run_products() { products[threadIdx.x].group++; }
template <int LEFT> static void products_done() { carry_out_all_but(LEFT, &products[threadIdx.x]); }

// A number of a matrix in shared memory, by its descriptor: where it begins; bytes from one column of numbers to the
// next, which counts if the sums go down the columns, and from 8 rows to the next 8; and of its swizzle.
static float in_shared(address descriptor, int along, int across, bool by_rows, int64 kind) {
    int row = by_rows ? across : along, place = by_rows ? along : across, swizzle = descriptor >> 62;
    int span = 128 >> (swizzle - 1), column = (descriptor >> 16 & 0x3fff) << 4, eight = (descriptor >> 32 & 0x3fff) << 4;
    int at = ((descriptor & 0x3fff) << 4) + row / 8 * eight + row % 8 * span;
    at += by_rows ? place * 2 : place * 2 / span * column + place * 2 % span;
    at ^= at >> 3 & (span - 16);
    return number(*(unsigned short*)(__start_shared + at), 0, kind);
}

static void carry_out(const Product& one) {
    float left[2][16];
    int row = threadIdx.x % WARP / 4;
    if (one.a) {
        memcpy(shown[threadIdx.x].a, one.a, sizeof shown->a);
        meet();
    }
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < 16; k++) {
            unsigned both = lane(row * 4 + k % 8 / 2).a[half + k / 8 * 2];
            int across = threadIdx.x % 128 / WARP * 16 + row + half * 8;
            left[half][k] = one.a ? number(both, k % 2, one.kind) : in_shared(one.in_shared, k, across, true, one.kind);
        }
    if (one.a) meet();
    for (int i = 0; i < one.n / 2; i++) {
        int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float sum = one.add ? one.c[i] : 0;
        for (int k = 0; k < 16; k++) sum += left[i % 4 / 2][k] * in_shared(one.b, k, column, !one.a, one.kind);
        one.c[i] = sum;
    }
}

static void live() {
    for (;;) {
        now.kernel(now.problem, now.number);
        pause(ENDED);
    }
}

__attribute__((noinline)) static void resume(Fiber* fiber) {
    running = fiber;
    threadIdx.x = fiber - fibers;
    if (_setjmp(scheduler)) return;
    if (fiber->state != NEW) _longjmp(fiber->here, 1);
    static ucontext_t born;
    getcontext(&born);
    born.uc_stack.ss_sp = fiber->stack;
    born.uc_stack.ss_size = sizeof fiber->stack;
    makecontext(&born, live, 0);
    setcontext(&born);
}

static void shuffle(int* numbers, int count, unsigned* seed) {
    for (int i = count - 1; i > 0; i--) {
        *seed = *seed * 1664525 + 1013904223;
        int j = (*seed >> 8) % (i + 1), kept = numbers[i];
        numbers[i] = numbers[j];
        numbers[j] = kept;
    }
}

static int how_many(const Fiber* first, int count, State state) {
    int found = 0;
    for (int i = 0; i < count; i++) found += first[i].state == state;
    return found;
}

// A warp, until its lanes are at a barrier or have ended. False if some wait for lanes that never meet them.
static bool run(Fiber* warp, const int* lanes) {
    do
        for (int i = 0; i < WARP; i++) resume(&warp[lanes[i]]);
    while (how_many(warp, WARP, MEETING) == WARP);
    return !how_many(warp, WARP, MEETING);
}

// 0, or 1 if some threads of a block wait for others that never come.
extern "C" int launch(Kernel kernel, long long blocks, const void* problem, double number, unsigned order) {
    int warps[THREADS / WARP], lanes[WARP];
    unsigned seed = order;
    for (int i = 0; i < THREADS / WARP; i++) warps[i] = order == REVERSED ? THREADS / WARP - 1 - i : i;
    for (int i = 0; i < WARP; i++) lanes[i] = order == REVERSED ? WARP - 1 - i : i;
    for (Fiber* fiber = fibers; fiber < fibers + THREADS; fiber++)
        if (fiber->state != ENDED) fiber->state = NEW;
    now = {kernel, problem, number};
    late = order % 2;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        memset(__start_shared, 0xff, __stop_shared - __start_shared);  // NaN: nothing has been written yet
        do {
            if (order > REVERSED) shuffle(warps, THREADS / WARP, &seed);
            for (int i = 0; i < THREADS / WARP; i++) {
                if (order > REVERSED) shuffle(lanes, WARP, &seed);
                if (!run(fibers + warps[i] * WARP, lanes)) return 1;
            }
        } while (how_many(fibers, THREADS, WAITING) == THREADS);
        if (how_many(fibers, THREADS, ENDED) != THREADS) return 1;
    }
    return 0;
}
