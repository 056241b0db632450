"""The Triton kernels against the reference where there is no GPU: in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


def test_kernels_match_the_reference_in_the_interpreter(tmp_path):
    """Runs two files in a process where kernels are interpreted from their definition on."""
    report = tmp_path / "report.xml"
    files = "tests/triton_interpreter.py", "tests/triton_tuning.py"
    command = [sys.executable, "-P", "-m", "pytest", *files, "-q", f"--junitxml={report}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    suite = ElementTree.parse(report).getroot()[0].attrib
    assert int(suite["tests"]) > 30 and suite["skipped"] == suite["failures"] == suite["errors"] == "0", suite
