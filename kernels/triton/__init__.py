"""GPU kernels for torch tensors, written in Triton."""
