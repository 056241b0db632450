"""The Triton kernels against the reference where there is no GPU: in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


def test_kernels_match_the_reference_in_the_interpreter(tmp_path):
    """Runs ``triton_interpreter.py`` in a process where kernels are interpreted from their definition on."""
    report = tmp_path / "report.xml"
    command = [sys.executable, "-P", "-m", "pytest", "tests/triton_interpreter.py", "-q", f"--junitxml={report}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    suite = ElementTree.parse(report).getroot()[0].attrib
    assert int(suite["tests"]) > 30 and suite["skipped"] == suite["failures"] == suite["errors"] == "0", suite
