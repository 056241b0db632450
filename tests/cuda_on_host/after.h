// A launch on the host: block by block, every thread of a block a fiber that runs until it meets a barrier or ends.
// Between barriers the fibers run in the order that is asked for: a kernel may depend on none.

extern "C" unsigned char __start_shared[] __attribute__((weak)), __stop_shared[] __attribute__((weak));

typedef void (*Kernel)(const void*, double);
enum State { NEW, READY, WAITING, ENDED };
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

static void shuffle(int* threads, unsigned* seed) {
    for (int i = THREADS - 1; i > 0; i--) {
        *seed = *seed * 1664525 + 1013904223;
        int j = (*seed >> 8) % (i + 1), kept = threads[i];
        threads[i] = threads[j];
        threads[j] = kept;
    }
}

// 0, or 1 if some threads of a block wait at a barrier that others never come to.
extern "C" int launch(Kernel kernel, long long blocks, const void* problem, double number, unsigned order) {
    int threads[THREADS];
    unsigned seed = order;
    for (int i = 0; i < THREADS; i++) threads[i] = order == REVERSED ? THREADS - 1 - i : i;
    for (Fiber* fiber = fibers; fiber < fibers + THREADS; fiber++)
        if (fiber->state != ENDED) fiber->state = NEW;
    now = {kernel, problem, number};
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        memset(__start_shared, 0xff, __stop_shared - __start_shared);  // NaN: nothing has been written yet
        for (int waiting = THREADS; waiting;) {
            if (order > REVERSED) shuffle(threads, &seed);
            waiting = 0;
            for (int i = 0; i < THREADS; i++) {
                resume(&fibers[threads[i]]);
                waiting += fibers[threads[i]].state == WAITING;
            }
            if (waiting && waiting < THREADS) return 1;
        }
    }
    return 0;
}
