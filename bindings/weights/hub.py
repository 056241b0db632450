"""Checkpoints of the Hugging Face Hub, downloaded when asked for by name, by its own library: resumed and cached."""

from pathlib import Path

from saccade.weights.sources import BESIDE, IN_A_FOLDER, read_json

PREFIX = "hf:"


def fetch(name):
    """The folder in the cache that holds the checkpoint "hf:owner/name" or "hf:owner/name@revision".

    Without a network, what was downloaded before is found.
    """
    found = fetch_first(name, IN_A_FOLDER)
    repository, revision = _parts(name)
    for file in BESIDE:
        _file(repository, file, revision)
    if found.name.endswith(".index.json"):
        for file in sorted(set(read_json(found).get("weight_map", {}).values())):
            _file(repository, file, revision)
    return found.parent


def fetch_first(name, files):
    """The first of some files that the repository "hf:owner/name" has, in the cache."""
    repository, revision = _parts(name)
    found = next(filter(None, (_file(repository, file, revision) for file in files)), None)
    if found is None:
        raise ValueError(f"{name}: the repository has none of {', '.join(files)}, or is neither reachable nor cached")
    return found


def _parts(name):
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    owner, _, rest = repository.partition("/")
    if not owner or not rest or "/" in rest:
        raise ValueError(f"{name}: expected hf:owner/name, or hf:owner/name@revision")
    return repository, revision


def _file(repository, file, revision):
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision or None))
    except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
        return None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ValueError(f"{PREFIX}{repository}: {str(error).strip().partition(chr(10))[0]}") from None
