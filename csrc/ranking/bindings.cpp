// Bindings of ranking losses: scores of order similarity, hinges and hardest negatives.
#include "core/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/isa.h"
#include "ranking/ranking.h"

namespace embfast {

namespace {

template <class T>
OrderTile<T> order_tile(const py::array& images, const py::array& captions, int threads) {
  check::threads(threads);
  OrderTile<T> tile{};
  tile.images = check::array<T>(images, "images", 2, "a C-contiguous matrix of float32 or float64");
  tile.captions = check::array<T>(captions, "captions", 2, "a C-contiguous matrix of the images' dtype");
  tile.n_images = images.shape(0), tile.n_captions = captions.shape(0), tile.dim = images.shape(1);
  if (captions.shape(1) != tile.dim) check::fail("captions", std::to_string(tile.dim) + " columns", captions);
  return tile;
}

// Calls f(T()) with T = float or double; arrays of other types fail the checks for double inside f.
template <class F>
void with_type_of(const py::array& a, const F& f) {
  if (py::isinstance<py::array_t<float>>(a)) {
    f(float());
  } else {
    f(double());
  }
}

}  // namespace

void bind_ranking(py::module_& m) {
  m.def(
      "order_scores",
      [](const py::array& images, const py::array& captions, py::array scores, int threads) {
        with_type_of(images, [&](auto number) {
          using T = decltype(number);
          const OrderTile<T> tile = order_tile<T>(images, captions, threads);
          T* to = check::writable<T>(scores, "scores", tile.n_images, tile.n_captions);
          py::gil_scoped_release no_gil;
          order_scores(tile, to, threads);
        });
      },
      "images"_a, "captions"_a, "scores"_a, py::kw_only(), "threads"_a);
  m.def(
      "add_order_gradients",
      [](const py::array& images, const py::array& captions, const py::array& weights,
         std::optional<py::array> to_images, std::optional<py::array> to_captions, int threads) {
        with_type_of(images, [&](auto number) {
          using T = decltype(number);
          const OrderTile<T> tile = order_tile<T>(images, captions, threads);
          const T* weight = check::array<T>(weights, "weights", 2, "a C-contiguous matrix of the images' dtype");
          if (weights.shape(0) != tile.n_images || weights.shape(1) != tile.n_captions) {
            check::fail("weights", "a number for each image and caption", weights);
          }
          T* image = to_images ? check::writable<T>(*to_images, "to_images", tile.n_images, tile.dim) : nullptr;
          T* caption =
              to_captions ? check::writable<T>(*to_captions, "to_captions", tile.n_captions, tile.dim) : nullptr;
          py::gil_scoped_release no_gil;
          add_order_gradients(tile, weight, image, caption, threads);
        });
      },
      "images"_a, "captions"_a, "weights"_a, "to_images"_a, "to_captions"_a, py::kw_only(), "threads"_a);

  m.def(
      "hinges",
      [](py::array scores, const std::optional<py::array>& row_bounds, const std::optional<py::array>& column_bounds,
         std::optional<py::array> row_active, std::optional<py::array> column_active) {
        double loss = 0.0;
        with_type_of(scores, [&](auto number) {
          using T = decltype(number);
          check::array<T>(scores, "scores", 2, "a C-contiguous matrix of float32 or float64");
          HingeTile<T> tile{};
          tile.n_rows = scores.shape(0), tile.n_columns = scores.shape(1);
          tile.scores = check::writable<T>(scores, "scores", tile.n_rows, tile.n_columns);
          if (bool(row_bounds) != bool(row_active) || bool(column_bounds) != bool(column_active)) {
            throw py::value_error("expected bounds and active, or None for both");
          }
          if (row_bounds) {
            tile.row_bounds = check::vector<T>(*row_bounds, "row_bounds", tile.n_rows);
            tile.row_active = check::writable<T>(*row_active, "row_active", tile.n_rows);
          }
          if (column_bounds) {
            tile.column_bounds = check::vector<T>(*column_bounds, "column_bounds", tile.n_columns);
            tile.column_active = check::writable<T>(*column_active, "column_active", tile.n_columns);
          }
          py::gil_scoped_release no_gil;
          loss = EMBFAST_CHOOSE(hinges<T>)(tile);
        });
        return loss;
      },
      "scores"_a, "row_bounds"_a, "column_bounds"_a, "row_active"_a, "column_active"_a);
  m.def(
      "hardest",
      [](const py::array& scores, int axis, const std::optional<py::array>& below, int64_t first, py::array best,
         py::array found) {
        with_type_of(scores, [&](auto number) {
          using T = decltype(number);
          const T* from = check::array<T>(scores, "scores", 2, "a C-contiguous matrix of float32 or float64");
          if (axis != 0 && axis != 1) throw py::value_error("axis: expected 0 for rows or 1 for columns");
          const int64_t n_rows = scores.shape(0), n_columns = scores.shape(1), n = axis ? n_columns : n_rows;
          if (std::max(n_rows, n_columns) > std::numeric_limits<int32_t>::max())
            check::fail("scores", "a tile", scores);
          const T* limit = below ? check::vector<T>(*below, "below", n) : nullptr;
          T* value = check::writable<T>(best, "best", n);
          int64_t* place = check::writable<int64_t>(found, "found", n);
          py::gil_scoped_release no_gil;
          (axis ? EMBFAST_CHOOSE(hardest_of_columns<T>) : EMBFAST_CHOOSE(hardest_of_rows<T>))(
              from, n_rows, n_columns, limit, first, value, place);
        });
      },
      "scores"_a, "axis"_a, "below"_a, "first"_a, "best"_a, "found"_a);
}

}  // namespace embfast
