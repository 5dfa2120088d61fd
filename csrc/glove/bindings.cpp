// Python to the counting of co-occurrences, and to GloVe on what was counted.
#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <system_error>

#include "core/bindings.h"
#include "core/check.h"
#include "cooccurrence/cooccurrence.h"
#include "glove/glove.h"

namespace embfast {

namespace {

// Runs f without the GIL; an error of the system becomes an OSError with its number.
template <class F>
auto unlocked(F&& f) {
  try {
    py::gil_scoped_release no_gil;
    return f();
  } catch (const std::system_error& error) {
    const auto numbered = py::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, numbered.ptr());
    throw py::error_already_set();
  }
}

}  // namespace

void bind_cooccurrence(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Entry, row, column, value);
  m.attr("entry") = py::dtype::of<Entry>();
  py::class_<CooccurrenceCounter>(m, "CooccurrenceCounter")
      .def(py::init([](const py::array& ids, const py::array& offsets, int32_t n_words, int window, bool symmetric,
                       bool distance_weighting, int threads, int64_t buffer_bytes, int spill_fd, int out_fd,
                       int64_t out_begin) {
             CooccurrenceCounter::Options options{};
             options.ids = check::vector<int32_t>(ids, "ids");
             options.offsets = check::vector<int64_t>(offsets, "offsets");
             options.n_documents = offsets.shape(0) - 1;
             if (options.n_documents < 1 || options.offsets[0] != 0 ||
                 options.offsets[options.n_documents] != ids.shape(0)) {
               throw py::value_error("offsets: expected them to run from 0 to the number of ids");
             }
             for (int64_t d = 0; d < options.n_documents; ++d) {
               if (options.offsets[d] > options.offsets[d + 1]) {
                 throw py::value_error("offsets: entry " + std::to_string(d + 1) + " does not ascend");
               }
             }
             if (n_words < 1 || window < 1 || window > 65535 || threads < 1 || threads > 4096 || out_begin < 0 ||
                 buffer_bytes < 16 * (int64_t{n_words} + 1)) {
               throw py::value_error(
                   "expected n_words >= 1, window in 1..65535, threads in 1..4096, out_begin >= 0 and "
                   "buffer_bytes >= 16 * (n_words + 1)");
             }
             options.n_words = n_words, options.window = window, options.symmetric = symmetric;
             options.distance_weighting = distance_weighting, options.threads = threads;
             options.buffer_bytes = buffer_bytes, options.spill_fd = spill_fd, options.out_fd = out_fd;
             options.out_begin = out_begin;
             return std::make_unique<CooccurrenceCounter>(options);
           }),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), "ids"_a, "offsets"_a, py::kw_only(), "n_words"_a, "window"_a,
           "symmetric"_a, "distance_weighting"_a, "threads"_a, "buffer_bytes"_a, "spill_fd"_a, "out_fd"_a,
           "out_begin"_a)
      .def(
          "start",
          [](CooccurrenceCounter& counter, int64_t begin, int64_t end, bool only) {
            if (!unlocked([&] { return counter.start(begin, end, only); })) {
              throw py::value_error("ids: expected 0 <= id < n_words");
            }
          },
          "begin"_a, "end"_a, "only"_a)
      .def(
          "count", [](CooccurrenceCounter& c, int64_t first) { return unlocked([&] { return c.count(first); }); },
          "first"_a)
      .def(
          "merge", [](CooccurrenceCounter& c, int64_t first) { return unlocked([&] { return c.merge(first); }); },
          "first"_a)
      .def_property_readonly("n_entries", &CooccurrenceCounter::n_entries)
      .def_static("bytes_per_thread", &CooccurrenceCounter::bytes_per_thread, "n_words"_a)
      .def_static("bytes_of_words", &CooccurrenceCounter::bytes_of_words, "n_words"_a)
      .def_property_readonly_static("bytes_per_token",
                                    [](const py::object&) { return int64_t{CooccurrenceCounter::bytes_per_token}; });
}

void bind_glove(py::module_& m) {
  m.def(
      "group_entries",
      [](const py::array& entries, const py::array& place, int64_t n_rows, int64_t tile, int64_t n_groups,
         uint64_t seed, py::array groups, py::array grouped) {
        Grouping g{};
        g.entries = check::vector<Entry>(entries, "entries");
        g.n_entries = entries.shape(0);
        g.place = check::vector<int32_t>(place, "place");
        g.n_words = place.shape(0);
        if (n_rows < 1 || n_rows > std::numeric_limits<int32_t>::max() || tile < 0) {
          throw py::value_error("expected n_rows in 1..2^31 - 1 and tile >= 0");
        }
        for (int64_t i = 0; i < g.n_words; ++i) {
          if (g.place[i] < 0 || g.place[i] >= n_rows) throw py::value_error("place: expected 0 <= place < n_rows");
        }
        const int64_t across = tile ? (n_rows + tile - 1) / tile : 0;
        if (n_groups < 1 || n_groups > std::numeric_limits<int32_t>::max() || (tile && n_groups != across * across)) {
          throw py::value_error("n_groups: expected 1..2^31 - 1, of tiles as many as there are");
        }
        g.n_rows = n_rows, g.tile = tile, g.n_groups = n_groups, g.seed = seed;
        int64_t* edges = check::writable<int64_t>(groups, "groups", n_groups + 1);
        Entry* target = check::writable<Entry>(grouped, "grouped", g.n_entries);
        return unlocked([&] { return group_entries(g, edges, target); });
      },
      "entries"_a, "place"_a, py::kw_only(), "n_rows"_a, "tile"_a, "n_groups"_a, "seed"_a, "groups"_a, "grouped"_a);
  m.def(
      "random_order",
      [](int64_t n, uint64_t seed, uint64_t epoch) {
        if (n < 0 || n > std::numeric_limits<int32_t>::max()) throw py::value_error("n: expected 0..2^31 - 1");
        py::array_t<int32_t> order(n);
        random_order(order.mutable_data(), static_cast<uint32_t>(n), seed, epoch);
        return order;
      },
      "n"_a, "seed"_a, "epoch"_a);
  m.def(
      "train_entries",
      [](py::array w_in, py::array w_out, py::array sums_in, py::array sums_out, int64_t dim, const py::array& entries,
         const py::array& groups, const py::array& order, int64_t first, int64_t last, float x_max, float alpha,
         float lr, uint64_t seed, uint64_t epoch, int threads) {
        GloveJob job{};
        job.w_in = check::rows(w_in, "w_in");
        job.w_out = check::rows(w_out, "w_out", job.w_in.dim);
        job.sums_in = check::rows(sums_in, "sums_in", job.w_in.dim);
        job.sums_out = check::rows(sums_out, "sums_out", job.w_in.dim);
        const int64_t n = job.w_in.n;
        if (job.w_out.n != n || job.sums_in.n != n || job.sums_out.n != n) {
          throw py::value_error("w_in, w_out, sums_in and sums_out: expected as many rows of each");
        }
        if (dim < 1 || dim >= job.w_in.dim) throw py::value_error("dim: expected 1 or more, below the columns");
        job.dim = dim;
        job.entries = check::vector<Entry>(entries, "entries");
        job.groups = check::vector<int64_t>(groups, "groups");
        job.order = check::vector<int32_t>(order, "order");
        if (first < 0 || last < first || last > order.shape(0)) {
          throw py::value_error("expected 0 <= first <= last <= " + std::to_string(order.shape(0)));
        }
        job.first = first, job.last = last;
        for (int64_t i = first; i < last; ++i) {
          const int64_t g = job.order[i];
          if (g < 0 || g >= groups.shape(0) - 1) throw py::value_error("order: expected groups that there are");
          const int64_t begin = job.groups[g], end = job.groups[g + 1];
          if (begin < 0 || end < begin || end > entries.shape(0)) {
            throw py::value_error("groups: entry " + std::to_string(g) + " does not ascend within the entries");
          }
          job.longest = std::max(job.longest, end - begin);
          for (int64_t e = begin; e < end; ++e) {
            const auto row = static_cast<uint32_t>(job.entries[e].row);
            const auto column = static_cast<uint32_t>(job.entries[e].column);
            if (std::max(row, column) >= n) throw py::value_error("entries: expected 0 <= id < " + std::to_string(n));
          }
        }
        if (job.longest > std::numeric_limits<uint32_t>::max()) throw py::value_error("a group has 2^32 entries");
        check::threads(threads);
        job.x_max = x_max, job.alpha = alpha, job.lr = lr, job.seed = seed, job.epoch = epoch;
        const GloveTally tally = unlocked([&] { return train_entries(job, threads); });
        return py::make_tuple(tally.loss, tally.entries);
      },
      "w_in"_a, "w_out"_a, "sums_in"_a, "sums_out"_a, "dim"_a, "entries"_a, "groups"_a, "order"_a, "first"_a, "last"_a,
      py::kw_only(), "x_max"_a, "alpha"_a, "lr"_a, "seed"_a, "epoch"_a, "threads"_a);
}

}  // namespace embfast
