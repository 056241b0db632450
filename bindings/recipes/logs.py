"""The log of a run: JSON lines, TensorBoard's scalars if it is installed, and the console."""

import importlib.util
import json
from pathlib import Path

from saccade.files import replacing


class Log:
    """Writes ``log.jsonl`` below a folder, and scalars for TensorBoard into ``tensorboard`` there.

    Args:
        folder: of the run.
        step: where the run goes on; records of later steps, which an interrupted run left, are dropped.
        console: a rich console for what a person should see at once.
    """

    def __init__(self, folder, step, console):
        self.path, self.console = Path(folder) / "log.jsonl", console
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _before(line, step)]
            with replacing(self.path) as file:
                file.writelines(kept)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(Path(folder) / "tensorboard", purge_step=step + 1)

    def scalars(self, step, **values):
        """Numbers of a step."""
        self._write({"step": step, **values})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def event(self, step, event, **facts):
        """Something that a person may look for, also shown on the console."""
        self._write({"step": step, "event": event, **facts})
        said = ", ".join(f"{name} {value}" for name, value in facts.items())
        self.console.print(f"step {step}: {event} {said}", markup=False, soft_wrap=True)

    def close(self):
        """Write everything out."""
        self.file.close()
        if self.board is not None:
            self.board.close()

    def _write(self, record):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()


def _before(line, step):
    """Whether a line is a whole record of a step up to ``step``."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
