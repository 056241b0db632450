"""The state of a run in a folder: tensors by ``torch.distributed.checkpoint``, each rank those that it holds, and the
rest in a file beside them.

A checkpoint gets its name when it is whole, and only then goes the one before it. It is read without executing
anything, by as many ranks as there are.
"""

import contextlib
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException

from saccade.files import replacing

# what a list of contents is made of, besides numbers and text
_CONTENTS = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        metadata.Metadata, metadata.TensorStorageMetadata, metadata.TensorProperties, metadata.ChunkStorageMetadata,
        metadata.MetadataIndex, metadata.StorageMeta, metadata._MEM_FORMAT_ENCODING, metadata.BytesStorageMetadata,
        filesystem._StorageInfo, torch.Size, torch.serialization._get_layout, type(Path()),
    )
}  # fmt: skip
NAME, REST = "step-{:09}", "run.pt"
_TENSOR = metadata.TensorStorageMetadata
_DAMAGED = (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, OSError, AttributeError, TypeError)


class Checkpoints:
    """The checkpoints of a run, of which the newest stays; written while the run goes on.

    Args:
        folder: where they are.
        ranks: a ``saccade.recipes.ranks.Ranks``, all of which make the same calls.
    """

    def __init__(self, folder, ranks):
        self.folder, self.ranks = Path(folder), ranks
        self._thread, self._begun = ThreadPoolExecutor(1), None
        # as torch says of every checkpoint of one process, in a thread of its own
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        # of their own, since training sends other things meanwhile
        self._group = distributed.new_group(backend="gloo") if ranks.count > 1 else None
        self.newest = ranks.first(lambda: max(self.folder.glob("step-*"), default=None))

    def rest(self, settings):
        """What the newest holds beside tensors, None without one; ValueError if it is of a run with other settings."""
        if self.newest is None:
            return None
        with _whole(self.newest):
            rest = torch.load(self.newest / REST, map_location="cpu", weights_only=True)
        for name, value in settings.items():
            if (before := rest["settings"].get(name)) != value:
                raise ValueError(
                    f"{self.newest} is of a run with {name}={before}, not {value}: choose another folder to start anew"
                )
        return rest

    def read(self, tensors):
        """Fill tensors, a dictionary by name, from the newest."""
        with _whole(self.newest):
            checkpoint.load(tensors, storage_reader=_Reader(self.newest), process_group=self._group)

    def write(self, step, tensors, rest):
        """Begin to write a checkpoint. What it holds is copied first: it may change at once.

        Args:
            step: which it is named by.
            tensors: by name, this rank's shards or what all ranks have alike.
            rest: nested dictionaries and lists of numbers, text and tensors, of which the first rank's are written.
        """
        self.finish()
        path = self.folder / f".{NAME.format(step)}"
        if self.ranks.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self.ranks.wait()
        writer = checkpoint.FileSystemWriter(path, overwrite=True)
        saving = checkpoint.async_save(tensors, storage_writer=writer, process_group=self._group)
        self._begun = self._thread.submit(self._complete, saving, path, rest)

    def _complete(self, saving, path, rest):
        try:
            saving.result()  # on the first rank, that all have written theirs
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None
        if self.ranks.rank:
            return
        with replacing(path / REST) as file:
            torch.save(rest, file)
        new = path.with_name(path.name[1:])
        shutil.rmtree(new, ignore_errors=True)
        path.rename(new)
        for old in {*self.folder.glob("step-*"), *self.folder.glob(".step-*")} - {new}:
            shutil.rmtree(old)

    def finish(self):
        """Return when what was begun is whole.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        if self._begun is not None:
            self.close()
            self.ranks.wait()

    def close(self):
        """The same of this rank alone: the others may have gone on to something else, or be no more."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()


@contextlib.contextmanager
def _whole(path):
    """Turn what a damaged checkpoint raises into one sentence."""
    try:
        yield
    except (CheckpointException, *_DAMAGED) as error:
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        said = (str(first).splitlines() or [type(first).__name__])[0]
        raise ValueError(f"{path} is not a whole checkpoint: delete it to start anew ({said})") from None


class _Reader(checkpoint.FileSystemReader):
    """torch's own unpickles a checkpoint's list of contents, and what is no tensor: here, the former can make nothing
    but such lists, and the latter is refused."""

    def read_metadata(self, *args, **kwargs):
        with open(Path(self.path, ".metadata"), "rb") as file:
            found = _Unpickler(file).load()
        strange = [name for name, x in found.state_dict_metadata.items() if not isinstance(x, _TENSOR)]
        files = [x.relative_path for x in found.storage_data.values()]
        strange += [file for file in files if Path(file).name != file]
        if strange:
            raise ValueError(f"{strange[0]} is no tensor in a file of the checkpoint")
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        found = getattr(torch, name, None) if module == "torch" else None
        found = found if isinstance(found, (torch.dtype, torch.layout)) else _CONTENTS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")
        return found
