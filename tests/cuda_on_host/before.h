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
