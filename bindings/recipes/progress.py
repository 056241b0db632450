"""What recipes show while they run, and how their commands end."""

import contextlib
import sys


@contextlib.contextmanager
def progress_bar(title, console):
    """A function that wraps an iterable and shows a bar; with the time left if the iterable knows its length.

    Its ``note(text)`` shows a few words beside the bar.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    columns = TextColumn(title), *counts, TextColumn("{task.fields[note]}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, note="")

        def progress(items):
            bar.update(task, completed=0, total=len(items) if hasattr(items, "__len__") else None)
            for item in items:
                yield item
                bar.advance(task)

        progress.note = lambda text: bar.update(task, note=text)
        yield progress


@contextlib.contextmanager
def one_sentence(command):
    """End the program with the sentence of an error that a user can do something about."""
    try:
        yield
    except ModuleNotFoundError as error:
        known = "pip install" in str(error)
        sys.exit(f"{command}: {error}" if known else f'{command} needs {error.name}: pip install "saccade[train]"')
    except (OSError, ValueError) as error:
        sys.exit(f"{command}: {error}")
