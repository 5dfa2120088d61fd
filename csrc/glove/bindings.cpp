// Python bindings of GloVe: grouping entries, and training on them.
#include "core/bindings.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/check.h"
#include "glove/glove.h"

namespace embfast {

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
        GloveTally tally;
        {
          py::gil_scoped_release no_gil;
          tally = train_entries(job, threads);
        }
        return py::make_tuple(tally.loss, tally.entries);
      },
      "w_in"_a, "w_out"_a, "sums_in"_a, "sums_out"_a, "dim"_a, "entries"_a, "groups"_a, "order"_a, "first"_a, "last"_a,
      py::kw_only(), "x_max"_a, "alpha"_a, "lr"_a, "seed"_a, "epoch"_a, "threads"_a);
}

}  // namespace embfast
