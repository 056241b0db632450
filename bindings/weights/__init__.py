"""Checkpoints: read from every layout in use, written as safetensors.

    sources      what a path holds: the tensors' names, shapes and dtypes at once, their numbers one by one
    archives     the same for PyTorch's zip archives, without running the code in them
    tensorflow   the same for TensorFlow's checkpoints, without TensorFlow
    links        how a layout's tensors correspond to a model's parameters, said once for both directions
    layouts      the layouts: one file each, found by the names that it contains
    facts        what shapes do not tell, from metadata, config.json, a named variant or keywords
    files        load, save and convert

``saccade.models.load`` and ``save`` are the way in.
"""
