"""The command line as a user types it."""

import subprocess
import sys


def run(*arguments, before="pass"):
    program = f"import sys; {before}; sys.argv = ['saccade', *{arguments!r}]; from saccade.cli import main; main()"
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)


def test_info_names_every_backend_and_what_to_do():
    done = run("info")
    assert done.returncode == 0, done.stderr
    for word in ("reference", "numba", "triton", "cupy", "threads", "numpy"):
        assert word in done.stdout
    assert done.stdout.count("alive") >= 2


def test_help_has_an_example():
    for command in ("info", "demo"):
        done = run(command, "--help")
        assert done.returncode == 0 and f"Example: saccade {command}" in done.stdout


def test_without_typer_one_sentence_says_what_to_install():
    done = run("info", before="sys.modules['typer'] = None")
    assert done.returncode == 1
    assert done.stderr.strip() == 'the saccade command needs typer: pip install "saccade[cli]"'
