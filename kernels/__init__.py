"""Fast kernels, one folder per backend, with the file and function names of ``saccade.reference``."""
