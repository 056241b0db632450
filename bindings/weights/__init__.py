"""Checkpoints: read from every layout in use, written as safetensors.

    sources      what a path holds: the tensors' names, shapes and dtypes at once, their numbers one by one
    safe         the same for safetensors, and how they are written
    archives     the same for PyTorch's files, without running the code in them
    tensorflow   the same for TensorFlow's checkpoints, without TensorFlow, by the checksums of ``checksum``
    hub          the Hugging Face Hub's files
    links        how a layout's tensors correspond to a model's parameters, said once for both directions
    layout       what a layout is; ``huggingface``, ``huggingface_clip``, ``timm``, ``open_clip``, ``google`` and
                 ``openai`` are those in use, each known by the names of its tensors
    facts        what shapes do not tell, from metadata, config.json, a named variant or keywords
    files        load, save and convert

``saccade.models.load`` and ``save`` are the way in.
"""
