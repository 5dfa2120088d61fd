"""Checks on the device kernels (shim, schedules, reference, sanitizers): all pass, and all detect planted faults."""

import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import shim
from problems import Problem
from test_device_kernels import assert_same, device_expected, device_solve

# Planted faults: file, text, replacement, and the check that must detect the fault.
FAULTS = {
    "missing barrier": ("device.h", "    __syncthreads();\n", "", "thread"),
    "missing barrier, by schedules": ("device.h", "    __syncthreads();\n", "", "schedules"),
    "one buffer for the sums of two turns": ("device.h", "turn ? 0 : 4 * n_warps", "0", "thread"),
    "flush one slot off": ("sequences.cu", "(slot + window + 1) % width", "(slot + window) % width", "reference"),
    "ring one row short": ("sequences.cu", "return 2 * int64_t{job.window} + 1 +", "return 2 * int64_t{job.window} +",
                           "reference"),
    "wrong mask": ("device.h", "__shfl_xor_sync(all_lanes, c, 4)", "__shfl_xor_sync(0xffffu, c, 4)", "shim"),
    "a lane too few in the mask": ("sequences.cu", "__shfl_sync(all_lanes, step, lane_of(i));\n        if (k",
                                   "__shfl_sync(0x7fffffffu, step, lane_of(i));\n        if (k", "shim"),
    "plain addition to a shared row": ("device.h", "  atomicAdd(f + 1, x.y);", "  f[1] += x.y;", "thread blocks"),
    "a negative that is the center learns": ("sequences.cu", "return drawn == word ? -1 : drawn;", "return drawn;",
                                             "reference"),
    "label of a code turned": ("sequences.cu", "job.path_codes[i] ? ~", "!job.path_codes[i] ? ~", "reference"),
    "tags never come back": ("sequences.cu", "    if (documents) give_tags();\n    if (!words", "    if (!words",
                             "reference"),
    "a document's begin forgotten": ("sequences.cu", "job.kept[at] = begins ? ~id : id;", "job.kept[at] = id;",
                                     "reference"),
}  # fmt: skip

PROBLEM = Problem(dim=140, words=30, tokens=40, window=2, tags=2, hs=True, drawn=3, lr=0.05)


def sanitized(sanitizer, library, short=0):
    """Runs kernels with several warps for words and documents in a process with a sanitizer."""
    script = f"""
        import numpy as np, shim, test_device_kernels as t
        from dataclasses import replace
        from test_device_faults import PROBLEM
        library = shim.Shim({str(library)!r})
        made = t.sequence_shape
        t.sequence_shape = lambda *a, **k: (lambda s: s._replace(shared=s.shared - {short}))(made(*a, **k))
        library.schedule("random", 3, {1 if sanitizer == "thread" else 2})
        for problem in (PROBLEM, replace(PROBLEM, cbow=True, tags=0), replace(PROBLEM, tags=0, dim=20)):
            t.device_solve(library, problem, grid=2)
        print("all returned")
    """
    return shim.run_sanitized(sanitizer, textwrap.dedent(script))


def seen(layer, library):
    """Whether a check detects a fault in the kernels."""
    if layer in ("thread", "thread blocks"):
        done = sanitized("thread", library)
        return "data race" in done.stderr
    problems = [PROBLEM, Problem(dim=20, words=30, tokens=40, window=2, drawn=30)]
    kernels = shim.Shim(library)
    results = []
    for policy in shim.SCHEDULES:
        kernels.schedule(policy, seed=2)
        try:
            solved = [device_solve(kernels, problem) for problem in problems]
        except shim.ShimError:
            return layer == "shim"
        if layer == "reference":
            try:
                for one, problem in zip(solved, problems, strict=True):
                    assert_same(one, device_expected(problem), problem)
            except AssertionError:
                return True
        results.append(solved)
    if layer == "schedules":
        return any((a[part] != b[part]).any() for other in results[1:] for a, b in zip(other, results[0], strict=True)
                   for part in a)  # fmt: skip
    return False


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name):
    file, text, planted, layer = FAULTS[name]
    sanitizer = "thread" if layer.startswith("thread") else None
    library = shim.build("fault", changes={file: (text, planted)}, sanitizer=sanitizer, options=("-O0", "-w"))
    assert seen(layer, library)


@pytest.mark.parametrize("layer", ["shim", "schedules", "reference"])
def test_no_layer_is_troubled_by_the_kernels(layer):
    assert not seen(layer, shim.build())


def test_thread_sanitizer_is_content_with_the_kernels():
    done = sanitized("thread", shim.build("thread", sanitizer="thread"))
    assert done.stdout == "all returned\n", done.stderr
    assert "data race" not in done.stderr
    assert done.returncode == 0


def test_address_sanitizer_is_content_and_sees_too_little_shared_memory():
    library = shim.build("address", sanitizer="address")
    done = sanitized("address", library)
    assert done.stdout == "all returned\n", done.stderr
    done = sanitized("address", library, short=16)
    assert "all returned" not in done.stdout
    assert "heap-buffer-overflow" in done.stderr


def test_the_tests_run_every_line_of_the_kernels(tmp_path):
    """Line coverage by gcov over one problem per model, the ring in global memory, and inference of documents."""
    if shutil.which("gcov") is None:
        pytest.skip("gcov is not installed")
    library = shim.build("coverage", options=("-O0", "--coverage", "-DSHIM_COVERAGE"))
    script = f"""
        import ctypes, numpy as np, shim, test_device_kernels as t
        from problems import Problem
        library = shim.Shim({str(library)!r})
        for how in t.MODELS.values():
            for more in ({{}}, {{"hs": True, "subsampled": True}}):
                t.device_solve(library, Problem(dim=20, words=40, tokens=70, window=2, **how, **more))
        t.device_solve(library, Problem(dim=140, words=40, tokens=40, window=2))
        t.device_solve(library, Problem(dim=20, words=40, tokens=40, window=2), shared_most=1024)
        t.test_inference_matches_the_reference("dm-mean", "ns", False, library)
        import test_device_glove as glove, test_device_ranking as ranking, test_device_ternary as ternary
        import test_device_walks as walks
        from entry_problems import EntryProblem
        for problem in (EntryProblem(dim=20, words=40, n=300), EntryProblem(dim=140, n=60)):
            glove.solve(library, problem)
        settings = (("weighted", 1, 1, False), ("directed weighted", 0.25, 4, True), ("wide", 1e3, 1e-3, False))
        for kind, p, q, plus in settings:
            drawn = walks.Walks(walks.graph_named(kind), length=9, per_node=2, p=p, q=q, plus=plus, restart=0.1, seed=3)
            walks.ShimWalks(library, drawn).read(0, 0, 60 if kind == "wide" else len(drawn))
        walks.test_a_step_that_rejects_all_is_drawn_from_the_enumerated_probabilities(library)
        walks.test_walks_of_the_first_order_by_types(library)
        ternary.test_levels_and_planes_equal_the_cpus(33, "forward", library)
        ternary.test_search_equals_the_cpus(64, 5, library)
        images, captions, groups = ranking.batch(70, 70, 40, True)
        for mode in ("sum", "max"):
            for kind in ("cosine", "order"):
                ranking.solve(library, images, captions, mode=mode, similarity=kind, margin=0.3, groups=groups)
        ctypes.CDLL({str(library)!r}).shim_write_coverage()
    """
    where = {
        "GCOV_PREFIX": str(tmp_path),
        "GCOV_PREFIX_STRIP": "99",
    }  # strip all directories
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=shim.environment() | where, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(library.parent / "kernels.gcno", tmp_path)
    listed = subprocess.run(["gcov", "kernels.gcda"], cwd=tmp_path, text=True, capture_output=True, check=True).stdout
    found = dict(re.findall(r"File '.*/csrc/[a-z]+/([^']+)'\nLines executed:([\d.]+)% of", listed))
    assert {"glove.cu", "ranking.cu", "sequences.cu", "ternary.cu", "walks.cu", "device.h"} <= set(found)
    for file, percent in found.items():
        if file.endswith(".cu") or file == "device.h":
            assert float(percent) >= 95, f"{file}: {percent} % of lines run"
