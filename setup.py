"""Builds embfast._cpu and the device kernels with CMake; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One configure and one build; EMBFAST_CMAKE_ARGS adds options, say -DEMBFAST_WERROR=ON.

    EMBFAST_BUILD_DIR keeps the objects in that folder; by default they go where setuptools puts them, and may be
    deleted.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(os.environ.get("EMBFAST_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            f"-S{SOURCE}",
            f"-B{build}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *os.environ.get("EMBFAST_CMAKE_ARGS", "").split(),
        ]
        for command in (configure, ["cmake", "--build", build, f"-j{os.cpu_count() or 1}"]):
            try:
                subprocess.run(command, check=True)
            except FileNotFoundError:
                sys.exit("embfast is built with CMake, which is not there: pip install cmake")
            except subprocess.CalledProcessError:
                sys.exit(
                    "embfast could not be built; it needs a C++20 compiler (g++ 11 or newer), see CMake's words above"
                )

    def copy_extensions_to_source(self) -> None:
        """For an editable install: the device kernels go where the module goes."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib).resolve() / "embfast" / "cuda"
        shutil.rmtree(SOURCE / "embfast" / "cuda", ignore_errors=True)  # binaries of other sources, say
        shutil.copytree(built, SOURCE / "embfast" / "cuda")


setup(ext_modules=[Extension("embfast._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
