"""Saccade: vision-transformer operations with a NumPy definition, fast kernels held to it, and the models on top."""

__version__ = "0.1.0"
