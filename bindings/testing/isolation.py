"""``check`` in a process of its own: a function that hangs or ends its process gets a verdict all the same."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOURNAL = 400  # bytes
GRACE = 30.0  # seconds beyond a call's own limit, for imports and the oracle's own work


def check_isolated(function, operation, *, told=None, call_seconds=30.0, **options):
    """``check`` of "module:name" or of a peer in a new process; its report as a dictionary.

    Args:
        function: "module:name", found from the current folder too, or the name of a peer.
        operation: as in ``check``.
        told: called a few times a second with a line about what is being judged.
        call_seconds: how long a call may take.
        options: those of ``check`` that JSON can carry; ``claims`` as a table of its attributes.

    Raises:
        ValueError: the task cannot be done: an argument is none of those accepted, or the import fails.
    """
    with tempfile.TemporaryDirectory(prefix="saccade-check-") as folder:
        task, result, journal = (Path(folder, name) for name in ("task.json", "result.json", "journal"))
        named = {"function": function, "operation": operation, "call_seconds": call_seconds}
        task.write_text(json.dumps({**named, **options}))
        journal.write_bytes(b"importing".ljust(JOURNAL))
        worker = subprocess.Popen([sys.executable, "-P", "-m", "saccade.testing.isolation", folder])
        try:
            ended = _watched(worker, journal, call_seconds + GRACE, told)
        finally:
            worker.kill()
            worker.wait()
        if result.exists():
            found = json.loads(result.read_text())
            if "error" in found:
                raise ValueError(found["error"])
            return found
        last = journal.read_bytes().decode(errors="replace").strip()
        return _ended(function, operation, options, ended, last)


def _watched(worker, journal, most, told):
    """Why the worker ended: "hung", or its exit status in words."""
    while worker.poll() is None:
        time.sleep(0.1)
        if told is not None:
            told(journal.read_bytes().decode(errors="replace").strip())
        if time.time() - journal.stat().st_mtime > most:
            return "hung in code that no signal reaches"
    status = worker.returncode
    return f"ended its process by signal {-status}" if status < 0 else f"ended its process with status {status}"


def _ended(function, operation, options, ended, last):
    says = f"A function returns. It {ended}."
    seed = options.get("seed", 0)
    failure = {"law": "conduct", "says": says, "input": last, "picture": "", "script": "", "seed": seed}
    return {
        "verdict": "FAIL", "operation": operation, "function": function, "arrays": options.get("arrays", "numpy"),
        "seed": seed, "not_judged": [], "seconds": 0.0, "laws": {}, "failures": [failure],
    }  # fmt: skip


def main(folder):
    """The worker: read the task, judge, write the report, or the error if the task cannot be done."""
    task = json.loads(Path(folder, "task.json").read_text())
    journal = os.open(Path(folder, "journal"), os.O_WRONLY)
    sys.path.append(os.getcwd())
    try:
        result = _done(task, lambda line: os.pwrite(journal, line.encode()[:JOURNAL].ljust(JOURNAL), 0))
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        result = {"error": f"{error}"}
    done = Path(folder, "done.json")
    done.write_text(json.dumps(result))
    done.rename(Path(folder, "result.json"))


def _done(task, journal):
    from saccade.testing.check import check
    from saccade.testing.claims import Claims, read_claims
    from saccade.testing.peers import PEERS, peer

    function, operation, arrays = task.pop("function"), task.pop("operation"), task.pop("arrays", None)
    known = Claims()
    if ":" not in function:
        made, its_operation, its_arrays, known = peer(function)
        task["device"] = task.get("device") or PEERS[function].device
        function, operation, arrays = made, operation or its_operation, arrays or its_arrays
    claims = read_claims(task.pop("claims", None) or {}, known)
    return check(function, operation, arrays=arrays or "numpy", claims=claims, journal=journal, **task).as_dict()


if __name__ == "__main__":
    main(sys.argv[1])
