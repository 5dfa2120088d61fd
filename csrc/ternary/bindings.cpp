// Python bindings of ternary rows: levels, bit planes and search.
#include "core/bindings.h"

#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/isa.h"
#include "ternary/ternary.h"

namespace embfast {

namespace {

constexpr int64_t most_levels = int64_t{1} << 30;  // per row, because dot products are int32

// Checks rows of two bit planes, (n, 2, words) with words a multiple of 8.
const uint64_t* bit_planes(const py::array& a, const char* name, int64_t words = -1) {
  const char* expected = "a C-contiguous uint64 array (n, 2, words), words a multiple of 8";
  const uint64_t* bits = check::array<uint64_t>(a, name, 3, expected);
  if (a.shape(1) != 2 || a.shape(2) < 8 || a.shape(2) % 8 || a.shape(2) > most_levels / 64) {
    check::fail(name, expected, a);
  }
  if (words >= 0 && a.shape(2) != words) check::fail(name, std::to_string(words) + " words", a);
  return bits;
}

int8_t* level_rows(py::array& a, const char* name, int64_t n, int64_t dim) {
  check::array<int8_t>(a, name, 2, "a C-contiguous int8 matrix");
  if (a.shape(0) != n || (dim >= 0 && a.shape(1) != dim)) {
    check::fail(name, std::to_string(n) + " rows" + (dim < 0 ? "" : " of " + std::to_string(dim)), a);
  }
  return check::writable<int8_t>(a, name);
}

int64_t discretise(const py::array& features, const py::array& low, const py::array& high, py::array* planes,
                   py::array* levels) {
  const float* x = check::array<float>(features, "features", 2, "a C-contiguous float32 matrix");
  const int64_t n = features.shape(0), dim = features.shape(1);
  const float *lows = check::vector<float>(low, "low", dim), *highs = check::vector<float>(high, "high", dim);
  uint64_t* bits = nullptr;
  int8_t* bytes = nullptr;
  int64_t words = 0;
  if (planes) {
    bit_planes(*planes, "planes");
    words = planes->shape(2);
    if (planes->shape(0) != n || words * 64 < dim) {
      check::fail("planes", std::to_string(n) + " rows of " + std::to_string(dim) + " levels", *planes);
    }
    bits = check::writable<uint64_t>(*planes, "planes");
  } else {
    bytes = level_rows(*levels, "levels", n, dim);
  }
  py::gil_scoped_release no_gil;
  return EMBFAST_CHOOSE_POPCNT(discretise)(x, n, dim, lows, highs, bits, words, bytes);
}

}  // namespace

void bind_ternary(py::module_& m) {
  m.def(
      "ternary_levels",
      [](const py::array& features, const py::array& low, const py::array& high, py::array levels) {
        return discretise(features, low, high, nullptr, &levels);
      },
      "features"_a, "low"_a, "high"_a, "levels"_a, "Returns the first row with a NaN, where it stops, or -1.");
  m.def(
      "ternary_pack",
      [](const py::array& features, const py::array& low, const py::array& high, py::array planes) {
        return discretise(features, low, high, &planes, nullptr);
      },
      "features"_a, "low"_a, "high"_a, "planes"_a, "Returns the first row with a NaN, where it stops, or -1.");
  m.def(
      "ternary_unpack",
      [](const py::array& planes, py::array levels) {
        const uint64_t* bits = bit_planes(planes, "planes");
        const int64_t n = planes.shape(0), words = planes.shape(2);
        int8_t* bytes = level_rows(levels, "levels", n, -1);
        const int64_t dim = levels.shape(1);
        if (dim > words * 64) check::fail("levels", "at most " + std::to_string(words * 64) + " columns", levels);
        py::gil_scoped_release no_gil;
        EMBFAST_CHOOSE_POPCNT(unpack)(bits, n, words, dim, bytes);
      },
      "planes"_a, "levels"_a);
  m.def(
      "ternary_nonzeros",
      [](const py::array& planes, py::array nonzeros) {
        const uint64_t* bits = bit_planes(planes, "planes");
        const int64_t n = planes.shape(0), words = planes.shape(2);
        int32_t* counts = check::writable<int32_t>(nonzeros, "nonzeros", n);
        py::gil_scoped_release no_gil;
        EMBFAST_CHOOSE_POPCNT(count_nonzeros)(bits, n, words, counts);
      },
      "planes"_a, "nonzeros"_a);
  m.def(
      "ternary_top",
      [](const py::array& queries, const py::array& planes, const py::array& nonzeros,
         const std::optional<py::array>& excluded, const std::optional<py::array>& own, int64_t first, py::array ids,
         py::array keys, int threads) {
        TernarySearch s{};
        s.planes = bit_planes(planes, "planes");
        s.n = planes.shape(0), s.words = planes.shape(2);
        s.queries = bit_planes(queries, "queries", s.words);
        s.m = queries.shape(0);
        s.nonzeros = check::vector<int32_t>(nonzeros, "nonzeros", s.n);
        if (excluded) s.excluded = check::vector<uint8_t>(*excluded, "excluded", s.n);
        if (own) s.own = check::vector<int64_t>(*own, "own", s.m);
        if (first < 0 || first > std::numeric_limits<int64_t>::max() - s.n) {
          throw py::value_error("first: expected 0 or more, got " + std::to_string(first));
        }
        s.first = first;
        check::array<int64_t>(ids, "ids", 2, "a C-contiguous int64 matrix");
        s.k = ids.shape(1);
        if (ids.shape(0) != s.m) check::fail("ids", std::to_string(s.m) + " rows", ids);
        s.ids = check::writable<int64_t>(ids, "ids"), s.keys = check::writable<double>(keys, "keys", s.m, s.k);
        check::threads(threads);
        py::gil_scoped_release no_gil;
        ternary_top(s, threads);
      },
      "queries"_a, "planes"_a, "nonzeros"_a, py::kw_only(), "excluded"_a, "own"_a, "first"_a, "ids"_a, "keys"_a,
      "threads"_a, "Updates the best rows so far, ids int64 and keys float64 (m, k), by these rows: ternary.h.");
}

}  // namespace embfast
