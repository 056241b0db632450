"""Hopper's products of a warpgroup (PTX ISA, "wgmma.mma_async") as CUDA C++: a function for each number of columns.

An instruction names all its registers one by one, so no one text serves every width. All are specialisations of

    multiply_shared<N>(c, a, b, add)    C = A Bᵀ (+ C), A (64 x 16) and B (N x 16) by rows in shared memory
    multiply_registers<N>(c, a, b, add) C = A B (+ C), A (64 x 16) in registers, B (16 x N) by rows in shared memory

for 128 threads at once. A and C lie in registers as ``ptx.cu`` says of 16 rows, 16 a warp; ``a`` and ``b`` in shared
memory are descriptors. Registers are settled at ``begin_products``; what was called since then runs from
``run_products`` on while its threads go on, until ``products_done`` leaves no more than so many of those behind.
"""

TEMPLATES = """
template <int N> static __device__ void multiply_shared(float* c, address a, address b, int add);
template <int N> static __device__ void multiply_registers(float* c, const unsigned* a, address b, int add);
"""
ORDER = """
#ifdef __CUDACC_RTC__
static __device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void run_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> static __device__ __forceinline__ void products_done() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LEFT) : "memory");
}
#endif
"""


def products(kind, shared, registers):
    """The functions for 16-bit numbers of a kind, "bf16" or "f16", with as many columns as ``shared`` and
    ``registers`` list."""
    from_shared = (_from_shared(n, kind) for n in sorted(set(shared)))
    from_registers = (_from_registers(n, kind) for n in sorted(set(registers)))
    return "".join((ORDER, TEMPLATES, *from_shared, *from_registers))


def _from_shared(n, kind):
    one = n // 2  # numbers of C that a thread has
    return _function(
        f"multiply_shared<{n}>(float* c, address a, address b, int add)",
        f"{{ .reg .pred added; setp.ne.b32 added, %{one + 2}, 0; {_name(n, kind)} {_numbers(0, one)}, %{one}, "
        f"%{one + 1}, added, 1, 1, 0, 0; }}",
        one, '"l"(a), "l"(b), "r"(add)', f"warpgroup_product(c, {n}, 0, a, b, add, {_kind(kind)})",
    )  # fmt: skip


def _from_registers(n, kind):
    one = n // 2
    return _function(
        f"multiply_registers<{n}>(float* c, const unsigned* a, address b, int add)",
        f"{{ .reg .pred added; setp.ne.b32 added, %{one + 5}, 0; {_name(n, kind)} {_numbers(0, one)}, "
        f"{_numbers(one, one + 4)}, %{one + 4}, added, 1, 1, 1; }}",
        one, '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)',
        f"warpgroup_product(c, {n}, a, 0, b, add, {_kind(kind)})",
    )  # fmt: skip


def _function(head, instruction, numbers, operands, on_host):
    sums = ", ".join(f'"+f"(c[{i}])' for i in range(numbers))
    on_gpu = f'asm volatile("{instruction}" : {sums} : {operands})'
    body = f"#ifdef __CUDACC_RTC__\n    {on_gpu};\n#else\n    {on_host};\n#endif\n"
    return f"template <> __device__ __forceinline__ void {head} {{\n{body}}}\n"


def _name(n, kind):
    return f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind}"


def _kind(kind):
    return {"bf16": "BFLOAT16", "f16": "FLOAT16"}[kind]


def _numbers(first, stop):
    return "{" + ", ".join(f"%{i}" for i in range(first, stop)) + "}"
