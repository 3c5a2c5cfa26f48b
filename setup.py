"""Build fastgen: the packages fastgen and fastgen.kernels, and the extension fastgen._C."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hand csrc/ to CMake, which writes the module where setuptools wants it."""

    def run(self):
        # CMake clings to the Python and the compilers that a folder was first built with.
        tools = [sys.executable, *map(os.environ.get, ("CXX", "CXXFLAGS", "CUDACXX"))]
        self.build = Path(self.build_temp).resolve() / f"{zlib.crc32(repr(tools).encode()):08x}"
        self.configure()
        if (self.build / "without_native").exists():
            # An older module must not be taken for one of these sources.
            Path(self.get_ext_fullpath("fastgen._C")).unlink(missing_ok=True)
            self.extensions = []
        super().run()

    def build_extension(self, ext):
        # First, so that the rest can do without the CUDA kernels where they do not compile.
        cuda = self.make("--target", "cuda", stdout=subprocess.PIPE, text=True, errors="replace")
        print(cuda.stdout, flush=True)
        if cuda.returncode:
            self.configure(no_cuda=first_error(cuda.stdout))
        if self.make().returncode:
            raise SystemExit("fastgen: csrc/ does not compile (the compiler's output is above)")
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        cmake("--install", self.build, "--prefix", output).check_returncode()

    def configure(self, no_cuda=""):
        """Configure the build; `no_cuda` is why the CUDA kernels are to be left out."""
        import pybind11  # here, not above: build requirements are met only once setup() runs

        command = [
            *("-S", ROOT, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTGEN_NO_CUDA={no_cuda}",
        ]
        if cmake(*command).returncode:
            # What is left of an earlier build may name tools that are gone.
            shutil.rmtree(self.build, ignore_errors=True)
            if cmake(*command).returncode:
                raise SystemExit("fastgen: CMake cannot configure csrc/ (its output is above)")

    def make(self, *arguments, **options):
        jobs = ("-j", os.environ["MAX_JOBS"]) if os.environ.get("MAX_JOBS") else ()
        return cmake("--build", self.build, *jobs, *arguments, **options)


def cmake(*arguments, **options):
    """Run the CMake of the path, or else the one beside this Python."""
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        ["cmake", *arguments], env=environment, stderr=subprocess.STDOUT, **options
    )


def first_error(output):
    """The first line about an error, fit for a compile definition."""
    lines = [line for line in output.splitlines() if "error" in line]
    line = (lines or ["a kernel does not compile"])[0].replace(f"{ROOT}{os.sep}", "")
    return re.sub(r"[^A-Za-z0-9_ .,:()/=<>+-]", "'", line)[:200]


class Wheel(bdist_wheel):
    """Build in a new folder, so that nothing of an earlier build gets into the wheel."""

    def run(self):
        with tempfile.TemporaryDirectory() as folder:
            self.reinitialize_command("build", reinit_subcommands=True).build_base = folder
            self.bdist_dir = os.path.join(folder, "wheel")
            super().run()


setup(
    packages=[*find_packages(include=["fastgen*"]), "fastgen.kernels"],
    package_dir={"fastgen": "fastgen", "fastgen.kernels": "kernels"},
    ext_modules=[Extension("fastgen._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
