"""GPU kernels for CuPy arrays, written in CUDA C++."""
