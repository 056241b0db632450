"""The definitions of every operation, forward and gradient, in NumPy alone: what the kernels are held to."""
