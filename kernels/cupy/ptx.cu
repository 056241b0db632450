// All that is written in the GPU's own instructions. A warp calls these together.

#ifdef __CUDACC_RTC__

// A kernel's parameters lie in the launch itself: nothing is copied to the GPU before it, and a captured graph has them.
#define PARAMETERS(type) const __grid_constant__ type

// Of loops whose counters index arrays, which are in registers only if every index is known.
#define UNROLLED _Pragma("unroll")

// C += A B of 16 x 16 by 16 x 8 numbers of 16 bits, spread over the lanes of a warp as PTX lays fragments out: with
// group = lane / 4 and pair = lane % 4 * 2, a lane has of
//   A (group, pair), (group + 8, pair), (group, pair + 8), (group + 8, pair + 8), each with its neighbour to the right;
//   B (pair, group), (pair + 8, group), each with its neighbour below;
//   C (group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1).
static __device__ void multiply_add(float* c, const unsigned* a, const unsigned* b, int64 kind) {
    if (kind == BFLOAT16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two numbers rounded to 16 bits, the first in the low half.
static __device__ unsigned rounded_pair(float low, float high, int64 kind) {
    unsigned both;
    if (kind == BFLOAT16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

static __device__ float of_lane_across(float value, int bit) { return __shfl_xor_sync(0xffffffff, value, bit); }

// 2 to the power of a number, within 2 units in the last place; 0 where that is below 1.2e-38.
static __device__ float power_of_2(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}

// One over a number, within a unit in the last place.
static __device__ float reciprocal(float value) {
    float one;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(one) : "f"(value));
    return one;
}

// Shared memory beyond the 48 KiB that a kernel may declare: the launch brings it.
#define SHARED(name, bytes) extern __shared__ __align__(1024) unsigned char name[]

static __device__ unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }

// 16 bytes from the GPU's memory to shared memory, or 16 zeros, while the thread goes on. Copies since the last
// `end_of_copies` are there once `copied` leaves no more than so many of those behind, for tensor cores, too.
static __device__ void copy_ahead(void* to, address from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

static __device__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT> static __device__ void copied() {
    asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Two fragments of 8 x 8 numbers of 16 bits to shared memory, their rows where lanes 0 to 15 say; a lane has a pair of
// each: (lane / 4, lane % 4 * 2) and its neighbour to the right.
static __device__ void store_fragments(void* row, const unsigned* pairs) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};"
                 :: "r"(shared_address(row)), "r"(pairs[0]), "r"(pairs[1]) : "memory");
#endif
}

static __device__ void meet_warp() { __syncwarp(); }

static __device__ void copy_16_bytes(address to, const void* from_shared) { *(uint4*)to = *(const uint4*)from_shared; }

#endif

static __device__ float over_quad(float value, bool maximum) {  // four neighbouring lanes share a row of a fragment
    for (int bit = 1; bit <= 2; bit *= 2) {
        float other = of_lane_across(value, bit);
        value = maximum ? (other > value ? other : value) : value + other;
    }
    return value;
}
