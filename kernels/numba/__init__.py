"""CPU kernels for NumPy arrays, compiled by numba."""
