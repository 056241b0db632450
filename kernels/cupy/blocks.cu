// What the THREADS threads of a block make of one number each. All of them must call these, and all get the result.
// Numbers are taken in a fixed order: GROUP neighbours, then the groups; so the bits depend on nothing else.

enum { GROUP = 8, CHUNK = 64 };  // CHUNK: rows of which a thread adds up a column

// A thread's share of the columns of a row that a block owns.
#define FOR_COLUMNS(j, k) for (int64 j = threadIdx.x; j < (k); j += THREADS)

static __device__ CORE block_sum(CORE value) {
    __shared__ CORE values[THREADS], parts[THREADS / GROUP];
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < THREADS / GROUP) {
        CORE part = 0;
        for (int i = 0; i < GROUP; i++) part += values[threadIdx.x * GROUP + i];
        parts[threadIdx.x] = part;
    }
    __syncthreads();  // and the next call writes to `parts` behind its own first barrier, when all have read them
    CORE sum = 0;
    for (int i = 0; i < THREADS / GROUP; i++) sum += parts[i];
    return sum;
}

// The largest that is not NaN; −infinity if there is none.
static __device__ CORE block_max(CORE value) {
    __shared__ CORE values[THREADS], parts[THREADS / GROUP];
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < THREADS / GROUP) {
        CORE part = minus_infinity();
        for (int i = 0; i < GROUP; i++) {
            CORE other = values[threadIdx.x * GROUP + i];
            part = other > part ? other : part;
        }
        parts[threadIdx.x] = part;
    }
    __syncthreads();
    CORE top = minus_infinity();
    for (int i = 0; i < THREADS / GROUP; i++) top = parts[i] > top ? parts[i] : top;
    return top;
}
