"""The installed package is whole, light and free of torch; the build fails or falls back aloud."""

import ast
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fastgen
from fastgen.kernels import _op

ROOT = Path(__file__).parent.parent
KERNELS = sorted({f.name for f in ROOT.glob("csrc/*.cpp")} - {"bind.cpp", "runtime.cpp"})
TARGETS = {"scalar": ["-DFASTGEN_SCALAR"]}  # instruction set: its flags
if platform.machine() == "x86_64":
    TARGETS["avx512_bf16"] = ["-march=cooperlake"]
else:
    TARGETS["neon"] = []

# A module whose docstring is what fastgen._C.cuda would be.
MODULE = """
#include <Python.h>
#ifndef FASTGEN_NO_CUDA
#define FASTGEN_NO_CUDA ""
#endif
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", FASTGEN_NO_CUDA, -1};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""
KERNEL = "namespace fastgen::FASTGEN_ISA { int kernel() { return 1; } }\n"


def python(*arguments):
    """Run another Python; returns what it printed, errors too."""
    command = [sys.executable, *arguments]
    return subprocess.check_output(command, stderr=subprocess.STDOUT, text=True).strip()


def test_what_is_tested_is_what_is_installed():
    assert str(ROOT) not in sys.path
    assert _op.native is not None
    assert _op.native is sys.modules["fastgen._C"]
    assert importlib.metadata.version("fastgen") == fastgen.__version__


def test_the_module_needs_no_torch():
    # In a Python without any site-packages: there is no torch to be found, nor its libraries.
    load = f"""
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
loader = ExtensionFileLoader("fastgen._C", {_op.native.__file__!r})
module = module_from_spec(spec_from_file_location("fastgen._C", loader=loader))
loader.exec_module(module)
print(*module.isas())"""
    assert python("-I", "-S", "-c", load).split() == _op.native.isas()


def test_the_import_is_light_and_quiet():
    heavy = ("triton", "tyro", "tqdm", "soundfile", "av", "pystoi", "tensorboard", "matplotlib")
    code = f"""
import sys
import torch
before = set(sys.modules)
import fastgen
print(*(set({heavy}) & (set(sys.modules) - before)))
print(torch.cuda.is_initialized())"""
    assert python("-P", "-W", "error", "-c", code).split() == ["False"]


def test_setup_needs_setuptools_alone():
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = [a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"setuptools"}


def test_every_dependency_is_pinned_by_the_constraints_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = re.findall(r"^([\w-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.M)
    wanted = [*project["dependencies"], *extras["test"], "ruff", "clang-format"]
    assert {re.match(r"[\w-]+", w)[0] for w in wanted} <= set(pinned)
    assert "torch>=2.10" in project["dependencies"]
    assert not re.search(r"==|<|~|triton", " ".join(project["dependencies"]))


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_instruction_set_can_stand_in_for_another(tmp_path, kernel, isa):
    # The linker merges weak symbols of one name. Unoptimized code has all that there can be.
    compiled = tmp_path / "kernel.o"
    flags = [*TARGETS[isa], f"-DFASTGEN_ISA={isa}", "-std=c++17", "-O0", "-fno-exceptions"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run(
        [compiler, *flags, "-c", ROOT / "csrc" / kernel, "-o", compiled], check=True, timeout=300
    )
    lines = subprocess.run(["nm", compiled], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in lines.splitlines()]
    merged = [name for kind, name in symbols if kind in "uvVwW"]
    assert [name for name in merged if f"{len(isa)}{isa}" not in name] == []


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with kernels that compile at once, under a name that is not plain."""
    root = tmp_path / "Ein Ordner für «fastgen»"
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("fastgen", "kernels"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    (root / "csrc").mkdir()
    (root / "csrc/bind.cpp").write_text(MODULE)
    (root / "csrc/runtime.cpp").write_text("")
    (root / "csrc/kernel.cpp").write_text(KERNEL)
    return root


def build(checkout, *command, **environment):
    """Run setup.py, in place by default; returns its exit code and output."""
    mine = {k: v for k, v in os.environ.items() if k != "FASTGEN_REQUIRE_NATIVE"}
    run = subprocess.run(
        [sys.executable, "setup.py", *(command or ("build_ext", "--inplace"))],
        cwd=checkout,
        env={**mine, "MAX_JOBS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return run.returncode, " ".join(run.stdout.split())


def modules(checkout):
    return [f.name for f in (checkout / "fastgen").glob("_C*")]


def reason(checkout):
    """Why the module that was built has no CUDA kernels, by its docstring."""
    code = "import sys; sys.path = sys.argv[1:] + sys.path; import _C; print(_C.__doc__)"
    return python("-I", "-S", "-c", code, checkout / "fastgen")


def test_without_a_compiler_the_references_are_installed(checkout):
    code, output = build(checkout)
    assert code == 0, output
    assert modules(checkout) == [Path(_op.native.__file__).name]
    assert reason(checkout) == "this version has none"
    code, output = build(checkout, CXX="/nonexistent", FASTGEN_REQUIRE_NATIVE="1")
    assert code != 0
    assert "FASTGEN_REQUIRE_NATIVE=1, but without C++ kernels: no C++ compiler" in output
    code, output = build(checkout, CXX="/nonexistent")
    assert code == 0, output
    assert "without C++ kernels: no C++ compiler was found" in output
    assert modules(checkout) == []


def test_a_kernel_that_does_not_compile_is_an_error(checkout):
    (checkout / "csrc/kernel.cpp").write_text(KERNEL.replace("1;", "one;"))
    code, output = build(checkout)
    assert code != 0
    assert re.search("csrc/kernel.cpp.* error: .*one.* fastgen: csrc/ does not compile", output)
    assert modules(checkout) == []


def test_without_nvcc_the_module_says_so(checkout):
    (checkout / "csrc/kernel.cu").write_text("__global__ void kernel() {}")
    code, output = build(checkout, CUDACXX="/nonexistent")
    assert code == 0, output
    assert reason(checkout) == "there is no working nvcc on PATH or in CUDACXX"


def test_a_build_heals_what_an_older_one_left(checkout):
    assert build(checkout)[0] == 0
    assert reason(checkout) != "healed"
    (cache,) = checkout.glob("build/temp*/*/CMakeCache.txt")
    gone = re.sub("(CMAKE_(MAKE_PROGRAM|CXX_COMPILER):.*)=.*", r"\1=/gone", cache.read_text())
    cache.write_text(gone)
    (checkout / "csrc/bind.cpp").write_text(MODULE.replace("FASTGEN_NO_CUDA, -1", '"healed", -1'))
    code, output = build(checkout)
    assert code == 0, output
    assert reason(checkout) == "healed"


def test_the_wheel_holds_the_package_and_nothing_else(checkout):
    removed = checkout / "fastgen/removed.py"
    removed.write_text("")
    assert build(checkout, "build")[0] == 0
    removed.unlink()
    code, output = build(checkout, "bdist_wheel", "--dist-dir", "wheels")
    assert code == 0, output
    (wheel,) = checkout.glob("wheels/*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    want = {f.relative_to(ROOT).as_posix() for f in ROOT.glob("fastgen/**/*.py")}
    want |= {f"fastgen/{f.relative_to(ROOT).as_posix()}" for f in ROOT.glob("kernels/*.[pj]*")}
    want |= {f"fastgen/weights/{f.name}" for f in ROOT.glob("fastgen/weights/*.*")}
    want |= {"fastgen/weights/LICENSE", f"fastgen/{Path(_op.native.__file__).name}"}
    assert names == want


def test_the_checkout_says_that_it_is_not_the_package(tmp_path):
    (tmp_path / "fastgen").mkdir()
    shutil.copy(ROOT / "fastgen" / "__init__.py", tmp_path / "fastgen")
    # without site-packages: an editable install would find fastgen.kernels from everywhere
    command = [sys.executable, "-S", "-c", "import fastgen"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "is the checkout, not the installed package" in child.stderr.splitlines()[-1]
