"""Compiler output for the device kernels: PTX interpreted on numpy, instruction counts, registers as in the table."""

import ctypes
import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import ptx
import pytest
import shim
from numpy.testing import assert_allclose, assert_array_equal
from problems import Problem
from test_device_kernels import MODELS, SHARED_MOST, assert_same, device_arguments, device_expected, device_job

from embfast.device import cuda as device
from embfast.device import sequences

TABLE = Path(__file__).parent / "cuda" / "registers.tsv"


@pytest.fixture(scope="module")
def nvcc():
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if path is None:
        pytest.skip("nvcc is not installed")
    return path


@pytest.fixture(scope="module")
def compiled(nvcc, tmp_path_factory):
    """Compiles csrc/sequences/sequences.cu once per architecture: to PTX, or to a cubin and its PTX."""
    made = {}

    def compile(architecture, cubin=False):
        if (architecture, cubin) not in made:
            folder = tmp_path_factory.mktemp(f"sm_{architecture}")
            source = shim.source("sequences.cu")
            what = (
                ["-cubin", "-keep", "-keep-dir", folder, f"-arch=sm_{architecture}"]
                if cubin
                else ["-ptx", f"-arch=compute_{architecture}"]
            )
            command = [
                nvcc,
                "-std=c++17",
                f"-I{shim.SOURCES}",
                *what,
                "-o",
                folder / ("out.cubin" if cubin else "sequences.ptx"),
                source,
            ]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[architecture, cubin] = folder
        return made[architecture, cubin]

    return compile


# ---- PTX ------------------------------------------------------------------------------------------------------------


def on_ptx(folder, problem, grid, used):
    """Solves a problem with the PTX of the kernels."""
    source = next(folder.glob("*.ptx")).read_text()
    arguments = device_arguments(problem)
    tally = np.zeros(1, sequences.TALLY)
    job, shape, arrays = device_job(arguments, tally, grid, SHARED_MOST)
    memory = ptx.Memory()
    for name, array in arrays.items():
        if array is not None and array.size:
            assert job[name] == memory.add(array)
    for name in ("keep_tokens", shape.kernel):
        if name not in used:
            used[name] = ptx.Kernel(source, name)
        ptx.launch(used[name], memory, grid, [job], shape.shared)
    names = ("w_in", "w_out", "w_nodes", "w_docs")
    return {"tally": np.array(tally[0].tolist()), **{n: arrays[n] for n in names if arrays[n] is not None}}


@pytest.mark.parametrize("architecture", [75, 90])
def test_ptx_does_what_the_reference_says(architecture, compiled):
    """Shared rows are updated by scalar atomics on sm_75 and by vectors of four on sm_90."""
    folder, used = compiled(architecture, cubin=architecture == 90), {}
    plain = Problem(dim=20, words=40, tokens=24, window=2, drawn=3, hs=True, subsampled=True)
    problems = [replace(plain, **MODELS["sg"]), replace(plain, **MODELS["dm-mean"])]
    if architecture == 90:
        problems += [replace(plain, **MODELS[kind]) for kind in ("cbow-sum", "dbow-words", "dbow-tags")]
        wide = replace(plain, tokens=24, window=9, drawn=33, shrink=False, dim=100, hs=False)
        problems += [replace(wide, **MODELS[kind]) for kind in ("sg", "cbow-mean")]
    for problem in problems:
        assert_same(on_ptx(folder, problem, 2, used), device_expected(problem, grid=2), problem)
    text = next(folder.glob("*.ptx")).read_text()
    assert ("atom.global.add.v4.f32" in text) == (architecture == 90)
    for name in ("keep_tokens", "skip_gram_warp", "cbow_warp") if architecture == 90 else ():
        ran, there = len(used[name].run), len(used[name].instructions)
        assert ran >= 0.9 * there, f"{name}: {ran} of {there} instructions ran"


FAULTY = """
.visible .entry faulty(
\t.param .u64 faulty_param_0
)
{
\tmov.u32 %r1, %tid.x;
\tld.param.u64 %rd1, [faulty_param_0];
\tmul.wide.u32 %rd2, %r1, 4;
\tadd.s64 %rd3, %rd1, %rd2;
\tBODY
\tret;
}
"""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("ld.global.f32 %f1, [%rd3+4];", "outside of every array"),
        ("ld.global.f32 %f1, [%rd3+2];", "not aligned"),
        ("ld.global.v2.f32 {%f1, %f2}, [%rd3];", "not aligned"),
        ("st.shared.f32 [%rd3], 0f00000000;", "outside of shared memory"),
        ("shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 31, 65535;", "mask 0000ffff, but lanes ffffffff are active"),
        ("add.f32 %f2, %f1, %f1;", "%f1 is read before it is written"),
        ("sqrt.rn.f32 %f2, 0f00000000;", "instruction is not implemented"),
    ],
)
def test_the_interpreter_detects_faults(body, error):
    memory, array = ptx.Memory(), np.zeros(32, np.float32)
    address = np.uint64(memory.add(array))
    with pytest.raises((IndexError, RuntimeError, ValueError, NotImplementedError), match=re.escape(error)):
        ptx.launch(ptx.Kernel(FAULTY.replace("BODY", body), "faulty"), memory, 1, [address], 128)
    ptx.launch(ptx.Kernel(FAULTY.replace("BODY", "st.global.u32 [%rd3], %r1;"), "faulty"), memory, 1, [address])
    assert_array_equal(array.view(np.uint32), np.arange(32))


# ---- NVRTC ---------------------------------------------------------------------------------------------------------


def nvrtc():
    folders = [Path(sysconfig.get_paths()["purelib"]) / "nvidia" / name / "lib" for name in ("cu13", "cuda_nvrtc")]
    found = [str(path) for folder in folders for path in sorted(folder.glob("libnvrtc.so.1*"))]
    found += [name for name in (ctypes.util.find_library("nvrtc"),) if name]
    if not found:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    for part in sorted(Path(found[0]).parent.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(part))  # NVRTC looks for it by name
    return ctypes.CDLL(found[0])


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.parametrize("source", sorted(path.name for path in shim.SOURCES.glob("*/*.cu")))
def test_nvrtc_compiles_what_the_package_ships(source, architecture):
    """As CuPy compiles them without binaries: without a standard library."""
    library, program = nvrtc(), ctypes.c_void_p()
    text = (device.HOME / source).read_bytes()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None) == 0
    options = [b"-std=c++17", f"-I{device.HOME}".encode(), f"-arch=compute_{architecture}".encode()]
    result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert result == 0, log.value.decode()


# ---- machine code ---------------------------------------------------------------------------------------------------


def disassembler():
    packaged = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "nvdisasm"
    found = shutil.which("nvdisasm") or (str(packaged) if packaged.exists() else None)
    if found is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    return found


def loops(listing):
    """Instructions of each loop of a kernel, shortest first."""
    labels, instructions, found = {}, [], []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if back and labels.get(back[1], len(instructions)) < len(instructions):
                found.append(instructions[labels[back[1]] :])
    return sorted(found, key=len)


def test_the_inner_loop_takes_few_instructions(compiled):
    """Four contexts against one output row: ten shuffles, and at most 60 instructions for each of the four."""
    done = subprocess.run(
        [disassembler(), "-c", compiled(90, cubin=True) / "out.cubin"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^//-+ \.text\.", done.stdout, flags=re.MULTILINE)[1:]
    listings = {part.split()[0]: re.split(r"^//-+ ", part, flags=re.MULTILINE)[0] for part in parts}
    inner = next(loop for loop in loops(listings["skip_gram_warp"]) if sum("SHFL" in i for i in loop) >= 10)
    assert sum("SHFL" in i for i in inner) == 10
    assert sum("MUFU" in i for i in inner) == 3
    assert len(inner) / 4 <= 60, f"{len(inner)} instructions for four pairs"


# ---- registers ------------------------------------------------------------------------------------------------------


def registers(log):
    """Rows (kernel, architecture, registers, bytes spilled) from the log of ptxas."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return sorted((kernel, int(arch), int(used), int(spilled)) for kernel, arch, spilled, used in found)


def test_registers_are_those_of_the_table():
    """The table is written by `PYTHONPATH=.:tests/support python tests/test_device_builds.py` after a build."""
    table = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
    table = [(kernel, *map(int, numbers)) for kernel, *numbers in table]
    assert {arch for _, arch, _, _ in table} == {75, 80, 86, 89, 90, 100, 120}
    assert not [row for row in table if row[3] > 0], "spills"
    assert max(used for _, _, used, _ in table) <= 65536 // 256, "the largest block must fit"
    logs, built = sorted(device.HOME.glob("*.log")), device.HOME / "built.json"
    if not logs or not built.exists():
        pytest.skip("the package was built without nvcc")
    if json.loads(built.read_text())["toolkit"] != [13, 0]:
        pytest.skip("the table was made with nvcc 13.0")
    assert sorted(row for log in logs for row in registers(log.read_text())) == sorted(table)


# Warps per multiprocessor for skip-gram with window 5, by dim; most are limited by shared memory.
WARPS = {
    100: {75: 6, 80: 15, 86: 9, 89: 9, 90: 20, 100: 16, 120: 9},
    128: {75: 5, 80: 13, 86: 8, 89: 8, 90: 19, 100: 16, 120: 8},
    300: {75: 6, 80: 15, 86: 9, 89: 9, 90: 15, 100: 15, 120: 9},
}


def test_occupancy_is_that_of_the_table(nvcc, tmp_path):
    homes = [Path(nvcc).resolve().parents[1], Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    include = next((home / "include" for home in homes if (home / "include" / "cuda_occupancy.h").exists()), None)
    if include is None:
        pytest.skip("cuda_occupancy.h is not installed")
    program, source = tmp_path / "occupancy", shim.CUDA / "occupancy.cpp"
    shim.run(["g++", "-std=c++17", "-w", f"-I{include}", source, "-o", program], tmp_path)
    used = {tuple(line.split("\t")[:2]): line.split("\t")[2] for line in TABLE.read_text().splitlines()[1:]}
    for dim, expected in WARPS.items():
        shape = sequences.sequence_shape(-(-dim // 16) * 4, 5, 0, cbow=False, documents=False, shared_most=64 << 10)
        found = {}
        for architecture in expected:
            command = [program, architecture, shape.threads, used[shape.kernel, str(architecture)], shape.shared]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
            found[architecture] = int(done.stdout)
        assert found == expected, dim


def test_the_log_is_read():
    log = (
        "ptxas info    : Compiling entry function 'one' for 'sm_90'\nptxas info    : Function properties for one\n"
        "    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\nptxas info    : Used 40 registers"
    )
    assert registers(log) == [("one", 90, 40, 12)]


def test_shared_memory_of_common_sizes_fits_every_device():
    """Bytes per block with window 5. No device of the table needs the ring in global memory."""
    shared = {dim: sequences.sequence_shape(-(-dim // 16) * 4, 5, 0, cbow=False, documents=False, shared_most=64 << 10)
              for dim in (100, 128, 200, 256, 300)}  # fmt: skip
    assert {dim: shape.shared for dim, shape in shared.items()} == {
        100: 9856, 128: 11264, 200: 18368, 256: 22592, 300: 26848,
    }  # fmt: skip
    assert not any(shape.ring for shape in shared.values())
    assert_allclose([shape.threads for shape in shared.values()], [32, 32, 64, 64, 96])


if __name__ == "__main__":
    rows = sorted(row for log in device.HOME.glob("*.log") for row in registers(log.read_text()))
    text = ["kernel\tarchitecture\tregisters\tspilled_bytes", *("\t".join(map(str, row)) for row in rows)]
    TABLE.write_text("\n".join(text) + "\n")
    print(f"{TABLE}: {len(rows)} lines", file=sys.stderr)
