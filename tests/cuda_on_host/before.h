// What CUDA C++ has and a C++ compiler for the host has not. Only C headers: no C++ library need be built or linked.

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

static float exp(float x) { return expf(x); }
static float log(float x) { return logf(x); }
static float log1p(float x) { return log1pf(x); }
static float expm1(float x) { return expm1f(x); }
static float sqrt(float x) { return sqrtf(x); }
static float erfc(float x) { return erfcf(x); }
static float fabs(float x) { return fabsf(x); }

#define __device__
#define __global__
#define __shared__ static __attribute__((section("shared")))  // so that all of it can be found

struct Index { unsigned x; };
static Index blockIdx, threadIdx, blockDim = {THREADS};

static unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
    unsigned long long before = *at;
    *at += value;
    return before;
}

__attribute__((noinline)) static void __syncthreads();

// ptx.cu on the host
#define PARAMETERS(type) const type&  // handed over as an address
#define UNROLLED
#define __forceinline__
#define __launch_bounds__(threads, blocks)
#define SHARED(name, bytes) static unsigned char name[bytes] __attribute__((section("shared"), aligned(1024)))
static float power_of_2(float value) { return exp2f(value); }
static float reciprocal(float value) { return 1 / value; }
static unsigned shared_address(const void* at);
static void copy_ahead(void* to, unsigned long long from, bool there);
static void end_of_copies();
template <int LEFT> static void copied();
static void store_fragments(void* row, const unsigned* pairs);
static void meet_warp();
static void copy_16_bytes(unsigned long long to, const void* from_shared) { memcpy((void*)to, from_shared, 16); }
static void begin_products() {}
static void run_products();
template <int LEFT> static void products_done();
static void warpgroup_product(float* c, int n, const unsigned* a, unsigned long long in_shared, unsigned long long b,
                              int add, long long kind);
static void multiply_add(float* c, const unsigned* a, const unsigned* b, long long kind);
static unsigned rounded_pair(float low, float high, long long kind);
static float of_lane_across(float value, int bit);
