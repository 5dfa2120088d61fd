// Python bindings of GloVe: grouping entries, and training on them.
#include "core/bindings.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/check.h"
#include "glove/glove.h"

namespace embfast {

void bind_glove(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(GloveJob, w_in, w_out, sums_in, sums_out, entries, groups, order, loss, seed, epoch, first, last,
                       first_entry, dim, pitch, longest, x_max, alpha, lr);
  m.attr("glove_job") = py::dtype::of<GloveJob>();
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
          throw py::value_error("n_groups: expected 1..2^31 - 1, or the number of tiles");
        }
        g.n_rows = n_rows, g.tile = tile, g.n_groups = n_groups, g.seed = seed;
        int64_t* edges = check::writable<int64_t>(groups, "groups", n_groups + 1);
        Entry* target = check::writable<Entry>(grouped, "grouped", g.n_entries);
        py::gil_scoped_release no_gil;
        return group_entries(g, edges, target);
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
      [](const py::array& settings, py::array w_in, py::array w_out, py::array sums_in, py::array sums_out,
         const py::array& entries, const py::array& groups, const py::array& order, int threads) {
        GloveJob job = *check::array<GloveJob>(settings, "job", 0, "a record of kernels.GLOVE_JOB");
        const Rows in = check::rows(w_in, "w_in");
        const auto like_w_in = [&](py::array& table, const char* name) {
          const Rows rows = check::rows(table, name, in.dim);
          if (rows.n != in.n) check::fail(name, std::to_string(in.n) + " rows, as w_in has", table);
          return rows.data;
        };
        job.w_in = in.data, job.w_out = like_w_in(w_out, "w_out");
        job.sums_in = like_w_in(sums_in, "sums_in"), job.sums_out = like_w_in(sums_out, "sums_out");
        if (job.dim < 1 || job.dim >= in.dim || in.dim > std::numeric_limits<int32_t>::max()) {
          throw py::value_error("dim: expected at least 1 and less than the number of columns");
        }
        job.pitch = static_cast<int32_t>(in.dim / 4);
        job.entries = check::vector<Entry>(entries, "entries");
        job.groups = check::vector<int64_t>(groups, "groups");
        job.order = check::vector<int32_t>(order, "order");
        if (job.first < 0 || job.last < job.first || job.last > order.shape(0)) {
          throw py::value_error("expected 0 <= first <= last <= " + std::to_string(order.shape(0)));
        }
        int64_t longest = 0;
        for (int64_t i = job.first; i < job.last; ++i) {
          const int64_t g = job.order[i];
          if (g < 0 || g >= groups.shape(0) - 1) {
            throw py::value_error("order: expected 0 <= group < " + std::to_string(groups.shape(0) - 1));
          }
          const int64_t begin = job.groups[g], end = job.groups[g + 1];
          if (begin < 0 || end < begin || end > entries.shape(0)) {
            throw py::value_error("groups: entry " + std::to_string(g) + " does not ascend within the entries");
          }
          longest = std::max(longest, end - begin);
          for (int64_t e = begin; e < end; ++e) {
            const auto row = static_cast<uint32_t>(job.entries[e].row);
            const auto column = static_cast<uint32_t>(job.entries[e].column);
            if (std::max(row, column) >= in.n) {
              throw py::value_error("entries: expected 0 <= id < " + std::to_string(in.n));
            }
          }
        }
        if (longest > std::numeric_limits<int32_t>::max()) {
          throw py::value_error("groups: expected at most 2^31 - 1 entries in each");
        }
        job.longest = static_cast<int32_t>(longest);
        check::threads(threads);
        GloveTally tally;
        {
          py::gil_scoped_release no_gil;
          tally = train_entries(job, threads);
        }
        return py::make_tuple(tally.loss, tally.entries);
      },
      "job"_a, py::kw_only(), "w_in"_a, "w_out"_a, "sums_in"_a, "sums_out"_a, "entries"_a, "groups"_a, "order"_a,
      "threads"_a);
}

}  // namespace embfast
