"""The host libraries' own tests, with our drop-ins and without.

    python -m saccade.bench.host_tests host-tests.md timm-1.0.31/tests/test_models.py -k vit_tiny_patch16_224

Runs pytest on test files of timm, open_clip or transformers, as their source distributions have them, once as they are
and once with every drop-in active, everywhere it can be, and adds what came of it to a Markdown file. A test that fails
only with the drop-ins is a fault of ours; exit status 1 if there is one.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from saccade.files import replacing

PLUGIN = "saccade.bench.host_tests"
REPORT = "SACCADE_HOST_TESTS_REPORT"


def pytest_configure(config):
    """As a plugin of pytest, in both runs: activate what can be, if so asked; the libraries import in either."""
    from saccade.testing.peers import usable_torchvision

    usable_torchvision()
    if REPORT not in os.environ:
        return
    from saccade.interop import torch as of_torch

    of_torch.activate(everywhere=True)
    for activate in (_timm, _transformers, _open_clip):
        try:
            activate()
        except ModuleNotFoundError as error:
            if error.name not in ("timm", "transformers", "open_clip"):
                raise


def pytest_unconfigure(config):
    """Write down how many calls were taken over."""
    if REPORT in os.environ:
        from saccade.interop import report

        Path(os.environ[REPORT]).write_text(str(report()))


def _timm():
    import timm

    from saccade.interop.timm import patch

    make = timm.create_model
    timm.create_model = lambda *arguments, **options: patch(make(*arguments, **options), everywhere=True)


def _transformers():
    from saccade.interop.transformers import register

    register(everywhere=True)


def _open_clip():
    import open_clip

    from saccade.interop import open_clip as ours

    for module in (open_clip, open_clip.loss, open_clip.factory):
        for name in ("ClipLoss", "SigLipLoss"):
            setattr(module, name, getattr(ours, name))


def run(arguments, active):
    """({test: "passed", "failed" or "skipped"}, the drop-ins' report) of pytest with these arguments."""
    folder = Path(next(one for one in arguments if Path(one).exists())).parent
    with tempfile.TemporaryDirectory(prefix="saccade-host-tests-") as kept:
        xml, report = Path(kept, "results.xml"), Path(kept, "report")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={xml}", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, f"--rootdir={folder}", "-p", PLUGIN, *arguments]
        settings = {"HF_HUB_OFFLINE": "1", **({REPORT: str(report)} if active else {})}
        done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            sys.exit(f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
        return outcomes(ElementTree.parse(xml)), report.read_text() if report.is_file() else ""


def outcomes(tree):
    """{test: "passed", "failed" or "skipped"} of a JUnit file."""
    found = {}
    for case in tree.iter("testcase"):
        kinds = {child.tag for child in case}
        how = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}.{case.get('name')}"] = how
    return found


def section(arguments, plain, active, report):
    """The Markdown of one pair of runs, and the tests that fail only with the drop-ins."""
    ours = sorted(name for name, how in active.items() if how == "failed" and plain.get(name) != "failed")
    both = sorted(name for name, how in active.items() if how == "failed" and plain.get(name) == "failed")
    gone = sorted(plain.keys() ^ active.keys())
    shown = " ".join(Path(one).name if Path(one).exists() else one for one in arguments)
    lines = [f"## {shown}", "", "| | passed | failed | skipped |", "|---|---|---|---|"]
    for title, found in (("without", plain), ("with drop-ins", active)):
        counts = [sum(how == kind for how in found.values()) for kind in ("passed", "failed", "skipped")]
        lines.append(f"| {title} | {counts[0]:,} | {counts[1]:,} | {counts[2]:,} |")
    for title, names in (("Failed with drop-ins alone", ours), ("Failed both ways", both), ("In one run alone", gone)):
        lines += ["", f"{title}: {', '.join(f'`{name}`' for name in names) or 'none'}."]
    lines += ["", "Calls:", "", *(f"* {line}" for line in report.splitlines())]
    return "\n".join(lines) + "\n", ours


def _versions():
    found = []
    for name in ("timm", "open_clip_torch", "transformers", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def main():
    """Run, write, and say what failed."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    plain, _ = run(arguments, active=False)
    active, report = run(arguments, active=True)
    text, ours = section(arguments, plain, active, report)
    head = out.read_text() if out.is_file() else f"# Host libraries' own tests\n\n{_versions()}.\n"
    with replacing(out) as file:
        file.write(f"{head}\n{text}".encode())
    print(text)
    sys.exit(bool(ours))


if __name__ == "__main__":
    main()
