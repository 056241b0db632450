"""The command line as a user types it."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from saccade.cli import _application


def run(*arguments, before="pass"):
    program = f"import sys; {before}; sys.argv = ['saccade', *{arguments!r}]; from saccade.cli import main; main()"
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)


def invoke(*arguments):
    """The same in this process, for commands that need no process of their own; also with what the program prints."""
    done = CliRunner().invoke(_application(typer), [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_info_names_every_backend_and_what_to_do():
    done = run("info")
    assert done.returncode == 0, done.stderr
    for word in ("reference", "numba", "triton", "cupy", "threads", "numpy"):
        assert word in done.stdout
    assert done.stdout.count("alive") >= 2


def test_help_has_an_example():
    for command in ("info", "demo", "models", "convert", "classify", "embed", "search", "tune"):
        done = run(command, "--help")
        assert done.returncode == 0 and f"Example: saccade {command}" in done.stdout


def test_without_typer_one_sentence_says_what_to_install():
    done = run("info", before="sys.modules['typer'] = None")
    assert done.returncode == 1
    assert done.stderr.strip() == 'the saccade command needs typer: pip install "saccade[cli]"'


@pytest.mark.parametrize("missing", ["numba", "llvmlite", "torch", "triton", "cupy"])
def test_info_outlives_what_is_missing(missing):
    done = run("info", before=f"sys.modules['{missing}'] = None")
    assert done.returncode == 0, done.stderr
    assert f"{missing} is not installed" in " ".join(done.stdout.replace("│", " ").split())


def test_tiles_are_measured_on_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = invoke("tune", "--tokens", 50)
    assert done.exit_code == 1
    assert done.output.strip() == "saccade tune: device='cuda', but torch sees no CUDA GPU: see saccade info"
    done = run("tune", before="sys.modules['triton'] = None")
    assert done.returncode == 1 and done.stderr.strip() == 'saccade tune needs triton: pip install "saccade[cuda]"'


def test_demo_without_its_libraries_says_what_to_install():
    done = run("demo", before="sys.modules['skimage'] = None")
    assert done.returncode == 1
    assert done.stderr.strip() == 'saccade demo needs skimage: pip install "saccade[demo]"'


def test_recipes_without_their_libraries_say_what_to_install():
    for missing, command in (("torch", ["pretrain", "vit", "x"]), ("PIL", ["palette", "fit", "x"])):
        done = run(*command, before=f"sys.modules['{missing}'] = None")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert missing in done.stderr and "pip install" in done.stderr
