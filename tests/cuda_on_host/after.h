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

static float of_lane_across(float value, int bit) {
    shown[threadIdx.x].value = value;
    meet();
    float other = lane(threadIdx.x % WARP ^ bit).value;
    meet();
    return other;
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
