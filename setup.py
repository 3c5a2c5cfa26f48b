"""Build fastgen: the packages fastgen and fastgen.kernels, and the extension fastgen._C."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hand csrc/ to CMake, which writes the module where setuptools wants it."""

    def run(self):
        build = Path(self.build_temp).resolve()
        if not self.configure(build):
            if os.environ.get("FASTGEN_REQUIRE_NATIVE") == "1":
                raise SystemExit("fastgen: FASTGEN_REQUIRE_NATIVE=1, and no C++ compiler was found")
            print("fastgen: no C++ compiler was found; installing the reference kernels alone")
            self.extensions = []
            return
        super().run()

    def configure(self, build):
        """Configure `build`; False where there is no C++ compiler."""
        import pybind11  # here, not above: build requirements are met only once setup() runs

        command = [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(result.stdout)
        if result.returncode and "fastgen: no C++ compiler" not in result.stdout:
            raise SystemExit("fastgen: CMake could not configure csrc/ (its output is above)")
        return result.returncode == 0

    def build_extension(self, ext):
        build = Path(self.build_temp).resolve()
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        subprocess.run(["cmake", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}", build], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


setup(
    packages=[*find_packages(include=["fastgen*"]), "fastgen.kernels"],
    package_dir={"fastgen": "fastgen", "fastgen.kernels": "kernels"},
    ext_modules=[Extension("fastgen._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
