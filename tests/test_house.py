"""The rules of the house: who may import whom, and that every backend mirrors the reference."""

import ast
import sys
from pathlib import Path

import pytest

from saccade.families import FAMILIES

ROOT = Path(__file__).parents[1]
FOLDERS = {"reference", "kernels", "bindings", "tests", "bench"}
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
BACKENDS = sorted(folder for folder in (ROOT / "kernels").iterdir() if (folder / "__init__.py").exists())


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module


def functions(file):
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_top_level_folders():
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert {name for name in found if not name.startswith(".")} - {"build", "dist"} == FOLDERS


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_is_one_thing_and_imports_absolutely(file):
    assert len(file.read_text().splitlines()) <= 560
    list(imports(file))


@pytest.mark.parametrize("file", sorted((ROOT / "reference").glob("*.py")), ids=lambda f: f.name)
def test_the_reference_imports_numpy_alone(file):
    roots = {name.split(".")[0] for name in imports(file) if not name.startswith("saccade.reference")}
    assert roots <= {"numpy", "ml_dtypes", *sys.stdlib_module_names}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda f: f.name)
def test_a_backend_imports_neither_the_reference_nor_another_backend(backend):
    for file in backend.glob("*.py"):
        for name in imports(file):
            assert not name.startswith("saccade") or name.startswith(f"saccade.kernels.{backend.name}"), (file, name)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda f: f.name)
def test_a_backend_has_the_names_and_signatures_of_the_reference(backend):
    operations = {operation: family for family, members in FAMILIES.items() for operation in members}
    for file in backend.glob("*.py"):
        definition = ROOT / "reference" / file.name
        defined, written = functions(definition) if definition.exists() else {}, functions(file)
        for name, node in written.items():
            operation = name.removesuffix("_forward").removesuffix("_backward")
            if operation in operations:
                assert operations[operation] == file.stem, f"{backend.name}: {name} in {file.name}"
                assert {operation, f"{operation}_forward", f"{operation}_backward"} <= written.keys()
            if name in defined and (operation in operations or file.stem == "palette"):
                assert ast.unparse(node.args) == ast.unparse(defined[name].args), f"{backend.name}: {name}"


def test_numba_has_every_operation():
    for family, operations in FAMILIES.items():
        assert set(operations) <= functions(ROOT / "kernels" / "numba" / f"{family}.py").keys()


def test_there_is_one_reference():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and file.parent.name != "reference":
                assert not node.name.endswith("_ref") or "test" in node.name, f"{file}: {node.name}"


@pytest.mark.parametrize("file", sorted((ROOT / "kernels/triton").glob("*.py")), ids=lambda f: f.name)
def test_nothing_is_copied_from_the_host_at_every_call(file):
    """Numbers as arguments of ``torch.where`` and tensors of numbers are: that waits for the GPU, and a CUDA graph that
    is captured does not allow it."""
    for function in functions(file).values():
        cached = any("cache" in ast.unparse(one) for one in function.decorator_list)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            numbers = [one for one in call.args if isinstance(one, ast.Constant) or "float(" in ast.unparse(one)]
            assert not (name == "torch.where" and numbers), ast.unparse(call)
            assert cached or name not in ("torch.tensor", "torch.as_tensor"), ast.unparse(call)
