// How kernels read and write arrays of any dtype, stride and alignment of elements: by byte addresses, with the dtype
// told at run time. CORE, float or double, is what everything is computed in. No CUDA header is needed.

typedef long long int64;
typedef unsigned long long address;

enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, BOOL, UINT8, INT64, INT32 };

static __device__ float float_of(unsigned bits) {
    union { unsigned u; float f; } x;
    x.u = bits;
    return x.f;
}

static __device__ unsigned bits_of(float value) {
    union { unsigned u; float f; } x;
    x.f = value;
    return x.u;
}

static __device__ float half_to_float(unsigned short h) {
    unsigned sign = (unsigned)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) {  // subnormal: fraction · 2⁻²⁴, exact
        float value = (float)fraction * float_of(0x33800000);
        return float_of(sign | bits_of(value));
    }
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static __device__ unsigned short float_to_half(float value) {
    unsigned bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;  // rounds past the largest
    if (size < 0x38800000) {                       // subnormal: adding 1/2 rounds to units of 2⁻²⁴, ties to even
        float shifted = float_of(size) + 0.5f;
        return sign | (unsigned short)(bits_of(shifted) - 0x3f000000);
    }
    unsigned odd = size >> 13 & 1;
    return sign | (unsigned short)((size - 0x38000000 + 0xfff + odd) >> 13);
}

static __device__ unsigned short float_to_bfloat16(float value) {
    unsigned bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static __device__ CORE load(address at, int64 kind) {
    if (kind == FLOAT32) return *(const float*)at;
    if (kind == FLOAT64) return (CORE)*(const double*)at;
    if (kind == UINT8) return *(const unsigned char*)at;
    unsigned short bits = *(const unsigned short*)at;
    return kind == BFLOAT16 ? float_of((unsigned)bits << 16) : half_to_float(bits);
}

static __device__ void store(address at, int64 kind, CORE value) {
    if (kind == FLOAT32) *(float*)at = (float)value;
    else if (kind == FLOAT64) *(double*)at = value;
    else *(unsigned short*)at = kind == BFLOAT16 ? float_to_bfloat16((float)value) : float_to_half((float)value);
}

// An array as it stands in a kernel's parameters: address, kind, then four byte strides; address 0 is "not given".
struct Array {
    address base;
    int64 kind, stride[4];
    __device__ address at(int64 i, int64 j, int64 k, int64 l) const {
        return base + i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3];
    }
    __device__ CORE get(int64 i, int64 j, int64 k, int64 l) const { return load(at(i, j, k, l), kind); }
    __device__ CORE get(int64 i, int64 j) const { return get(i, j, 0, 0); }
    __device__ CORE get(int64 i) const { return get(i, 0, 0, 0); }
    __device__ CORE number() const { return get(0, 0, 0, 0); }
    __device__ int64 integer(int64 i, int64 j = 0) const {
        address one = at(i, j, 0, 0);
        return kind == INT32 ? *(const int*)one : *(const int64*)one;
    }
    __device__ void set_integer(int64 i, int64 j, int64 value) const {
        address one = at(i, j, 0, 0);
        if (kind == INT32) *(int*)one = (int)value;
        else *(int64*)one = value;
    }
    __device__ void set(int64 i, int64 j, int64 k, int64 l, CORE value) const { store(at(i, j, k, l), kind, value); }
    __device__ void set(int64 i, int64 j, CORE value) const { set(i, j, 0, 0, value); }
    __device__ void set(int64 i, CORE value) const { set(i, 0, 0, 0, value); }
};

static __device__ CORE minus_infinity() { return -(CORE)float_of(0x7f800000); }
static __device__ CORE not_a_number() { return (CORE)float_of(0x7fc00000); }
static __device__ bool is_finite(CORE x) { return x - x == 0; }
static __device__ CORE sigmoid(CORE x) { return 1 / (1 + exp(-x)); }
static __device__ CORE softplus(CORE x) { return (x > 0 ? x : (CORE)0) + log1p(exp(-fabs(x))); }  // log(1 + exp(x))
static __device__ int64 item() { return (int64)blockIdx.x * blockDim.x + threadIdx.x; }
