"""The whole state of a run in one file: written whole or not at all, read without executing anything."""

import pickle

import torch

from saccade.files import replacing


def write(path, state):
    """Write nested dictionaries and lists of tensors, numbers and text."""
    with replacing(path) as file:
        torch.save(state, file)


def read(path, settings):
    """The state at ``path``, None if there is no file; ValueError if it belongs to a run with other settings."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: delete it to start anew ({error})") from None
    for name, value in settings.items():
        if (before := state["settings"].get(name)) != value:
            raise ValueError(
                f"{path} is of a run with {name}={before}, not {value}: choose another folder to start anew"
            )
    return state


def random_state(device):
    """The state of torch's generators, for this rank."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state, device):
    """Take up a state of ``random_state``."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
