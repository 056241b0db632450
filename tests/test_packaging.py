"""What is shipped: the list of packages, the wheel built through the sdist, and that wheel in an empty environment."""

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_packages_list_is_complete():
    found = set()
    for name, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(ROOT / folder).parts]))
    assert found == set(SETUPTOOLS["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_what_is_released_is_fit_for_an_index(wheel):
    files = sorted(map(str, wheel.parent.iterdir()))
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_wheel_holds_saccade_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"saccade"}
    assert "saccade/py.typed" in names
    for name, folder in SETUPTOOLS["package-dir"].items():
        for file in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.cu")]:
            assert f"{name.replace('.', '/')}/{file.relative_to(ROOT / folder)}" in names


def test_the_wheel_computes_attention_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, cwd=tmp_path)
    program = (
        "import numpy as np, saccade\n"
        "q = np.ones((1, 1, 2, 4), np.float32)\n"
        "v = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)\n"
        "print(saccade.attention(q, q, v, causal=True).tolist())"
    )
    done = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[[[[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]]]]"
