// All that is written in the GPU's own instructions. A warp calls these together.

#ifdef __CUDACC_RTC__

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

#endif
