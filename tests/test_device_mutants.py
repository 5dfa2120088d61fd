"""Bugs planted in the device kernels, typical of such kernels, are detected by one of the checks.

The checks are the shim itself, comparison with the reference or between schedules, AddressSanitizer and
ThreadSanitizer.
"""

import pytest
import shim

# Scripts that run the kernels of a source. `compare` is False under a sanitizer, where only its report counts.
SCRIPTS = {
    "glove": """
import shim, test_device_glove as t
from entry_problems import EntryProblem
library = shim.Shim(path)
for dim, policy in ((20, "forward"), (20, "reverse"), (200, "random")):
    problem = EntryProblem(dim=dim, words=8, n=60)
    library.schedule(policy, seed=3)
    found = t.solve(library, problem)
    if compare:
        t.assert_same(found, t.expected(problem), problem)
library.schedule("random", seed=3, resident=2)
t.solve(library, EntryProblem(dim=20, words=8, n=60), grid=2, threads=64)
""",
    "ternary": """
import shim, test_device_ternary as t
library = shim.Shim(path)
t.test_levels_and_planes_equal_the_cpus(513, "random", library)
t.test_search_equals_the_cpus(700, 40, library)
""",
    "ranking": """
import shim, test_device_ranking as t
library = shim.Shim(path)
for mode, similarity in (("sum", "cosine"), ("max", "order")) if compare else (("sum", "order"),):
    images, captions, groups = t.batch(65, 65, 35, True)
    settings = dict(mode=mode, similarity=similarity, margin=0.3, groups=groups)
    library.schedule("random", seed=5, resident=2)
    loss, *gradients = t.solve(library, images, captions, **settings)
    if compare:
        slow, *slopes = t.expected(images, captions, **settings)
        assert abs(loss - slow) < 1e-5 * slow, (mode, similarity, loss, slow)
        for found, slope in zip(gradients, slopes, strict=True):
            t.assert_allclose(found, slope, atol=1e-5)
""",
    "walks": """
import shim, test_device_walks as t
library = shim.Shim(path)
for kind, p, q in (("weighted", 0.25, 4), ("directed", 0.25, 0.5)):
    walks = t.Walks(t.small_graph(kind), length=35, per_node=3, p=p, q=q, seed=3)
    library.schedule("random", seed=2, resident=2)
    found = t.ShimWalks(library, walks, threads=32).read(0, 0, len(walks))
    for mine, theirs in zip(found, walks.read(0, 0, len(walks)), strict=True):
        t.assert_array_equal(mine, theirs)
""",
}

KERNELS = {
    "glove": ("train_runs_warp", "train_runs_warps"),
    "ternary": ("ternary_pack", "ternary_levels", "ternary_nonzeros", "ternary_dots", "ternary_best"),
    "ranking": ("ranking_scales", "ranking_pairs", "ranking_sum", "ranking_sum_order", "ranking_add_pairs",
                "ranking_hardest", "ranking_hardest_order", "ranking_add_hardest", "ranking_finish"),
    "walks": ("walk_first_order", "walk_second_order", "pack_walks"),
}  # fmt: skip

# (source, text, replacement, sanitizer that must detect the bug or None, its message)
MUTANTS = {
    "every lane reads the bias of a column after its owner may have updated it": (
        "glove",
        """i == bias ? x.w[i] + y.w[i] : x.w[i] * y.w[i];
    const float difference = sum(score) - log, gradient""",
        """i == bias ? x.w[i] : x.w[i] * y.w[i];
    const float known = sum(score) - log;
    if (bias >= 0 && bias < 4) {
      const float g = weight * (known + y.w[bias]);
      atomicAdd(job.row(job.w_out, row) + job.dim, -g * rsqrtf(y.sums[bias]));
    }
    const float difference =
        known + __ldcg(job.row(job.w_out, row) + job.dim), gradient""",
        None,
        "Not equal to tolerance",
    ),
    "the shuffled order is read before lane 0 has completed it": (
        "glove",
        """        order[j] = i;
      }
    }
    meet();""",
        """        order[j] = i;
      }
    }""",
        "thread",
        "data race",
    ),
    "the sums of two steps share a buffer": (
        "glove",
        "team.turn ? 0 : team.n_warps;",
        "0;",
        "thread",
        "data race",
    ),
    "the gradient of a bias uses the other bias as its factor": (
        "glove",
        "clipped(gradient * (i == bias ? 1.0f : y.w[i])) * rate",
        "clipped(gradient * y.w[i]) * rate",
        None,
        "Not equal",
    ),
    "the row of the run is added whole instead of its change": (
        "glove",
        "x.w[i] -= before.w[i];",
        "x.w[i] -= 0.0f;",
        None,
        "Not equal",
    ),
    "p and q are swapped": (
        "walks",
        "(x == previous ? level < job.inverse_p",
        "(x == previous ? level < job.inverse_q",
        None,
        "Arrays are not equal",
    ),
    "the return is folded where there is no edge back": (
        "walks",
        "} else if (place < 0) {\n        extra = 0.0;",
        "} else if (place < 0) {\n        extra = excess;",
        None,
        "Arrays are not equal",
    ),
    "a tile of walks is written past the last walk": (
        "walks",
        "const bool there = w < n_walks && step + i",
        "const bool there = step + i",
        "address",
        "heap-buffer-overflow",
    ),
    "a ballot without its last lane": (
        "ternary",
        "__ballot_sync(all_lanes, l.plus)",
        "__ballot_sync(0x7fffffffu, l.plus)",
        None,
        "not in its mask",
    ),
    "the bits of the minus plane are those of the plus plane": (
        "ternary",
        "minus = minuses;",
        "minus = pluses & ~minuses;",
        None,
        "Arrays are not equal",
    ),
    "a step of the sort begins before the others have done the last": (
        "ternary",
        "    for (int by = run / 2; by > 0; by /= 2) {\n      __syncthreads();",
        "    __syncthreads();\n    for (int by = run / 2; by > 0; by /= 2) {",
        "thread",
        "data race",
    ),
    "the edge of a tile is not cut off": (
        "ranking",
        "if (r < n && d < job.dim) x =",
        "if (r < n) x =",
        "address",
        "heap-buffer-overflow",
    ),
    "a tile is overwritten while others still read it": (
        "ranking",
        "    __syncthreads();  // all have done with what was there",
        "    // all have done with what was there",
        "thread",
        "data race",
    ),
    "a pair counts among its own negatives": (
        "ranking",
        "return a != b && !(job.groups",
        "return !(job.groups && a != b",
        None,
        "AssertionError",
    ),
}


def run(source, library, sanitizer=None):
    """Runs the script for a source and returns its error messages; an empty string if all checks pass."""
    script = f"path, compare = {str(library)!r}, {sanitizer is None}\n{SCRIPTS[source]}"
    if sanitizer:
        done = shim.run_sanitized(sanitizer, script)
        return "" if done.returncode == 0 else done.stderr + done.stdout
    try:
        exec(compile(script, source, "exec"), {})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def build(source, sanitizer=None, changes=None):
    name = KERNELS[source]
    text = f'#include "{shim.source(f"{source}.cu").relative_to(shim.SOURCES)}"\nusing namespace embfast;\n'
    return shim.build(source, sanitizer=sanitizer, changes=changes,
                      kernels=text + "".join(f"SHIM_KERNEL({kernel});\n" for kernel in name))  # fmt: skip


# Threads of the walk kernels do not communicate; only pack_walks has shared memory, behind a single barrier.
@pytest.mark.parametrize(
    ("source", "sanitizer"),
    [(s, layer) for s in SCRIPTS for layer in (None, "address", "thread") if (s, layer) != ("walks", "thread")],
)
def test_kernels_pass_all_layers(source, sanitizer):
    assert run(source, build(source, sanitizer), sanitizer) == ""


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_seen(bug):
    source, text, planted, sanitizer, says = MUTANTS[bug]
    said = run(source, build(source, sanitizer, {f"{source}.cu": (text, planted)}), sanitizer)
    assert says in said
