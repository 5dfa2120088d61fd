// Python bindings of the edge reader and of sorted rows.
#include "core/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "graph/edges.h"

namespace embfast {

namespace {

// None, or (fault, line, columns found, columns expected, first bytes).
py::object failure(const EdgeReader& reader, bool fine) {
  if (fine) return py::none();
  static constexpr const char* kNames[] = {"", "columns", "weight", "name", "number", "too_many_nodes"};
  const EdgeReader::Failure& f = reader.failure();
  return py::make_tuple(kNames[static_cast<int>(f.fault)], f.line, f.found, f.expected, py::bytes(f.bytes));
}

// An array that takes over the numbers of a vector, which is then empty.
template <class Vector>
py::array_t<typename Vector::value_type> moved(Vector& numbers) {
  using T = typename Vector::value_type;
  auto* kept = new Vector(std::move(numbers));
  numbers.clear();
  const py::capsule owner(kept, [](void* p) { delete static_cast<Vector*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

}  // namespace

void bind_edges(py::module_& m) {
  py::class_<EdgeReader>(m, "EdgeReader")
      .def(py::init([](const std::string& weights, int64_t numbered, int64_t first_line) {
             if (numbered < 0 || numbered > std::numeric_limits<int32_t>::max()) {
               throw py::value_error("numbered: expected 0..2^31 - 1");
             }
             const auto which = weights == "read"      ? EdgeReader::Weights::read
                                : weights == "ignored" ? EdgeReader::Weights::ignored
                                                       : EdgeReader::Weights::as_found;
             return std::make_unique<EdgeReader>(which, numbered, first_line);
           }),
           py::kw_only(), "weights"_a, "numbered"_a, "first_line"_a)
      .def(
          "add_bytes",
          [](EdgeReader& reader, const py::buffer& bytes) {
            const py::buffer_info info = bytes.request();
            const std::string_view text = check::bytes(info);
            bool fine = false;
            {
              py::gil_scoped_release no_gil;
              fine = reader.add_bytes(text.data(), static_cast<int64_t>(text.size()));
            }
            return failure(reader, fine);
          },
          "bytes"_a)
      .def("end", [](EdgeReader& reader) { return failure(reader, reader.end()); })
      .def(
          "take",
          [](EdgeReader& reader) {
            return py::make_tuple(moved(reader.sources), moved(reader.targets), moved(reader.weights));
          },
          "int32 sources and targets, float32 weights (or none), for the lines read since the last call.")
      .def_property_readonly("weighted", &EdgeReader::weighted)
      .def("names", [](const EdgeReader& reader) { return py::bytes(reader.names()); });

  m.def(
      "csr",
      [](const py::array& sources, const py::array& targets, const std::optional<py::array>& weights, int64_t n_nodes,
         bool both_ways, bool keep_first) {
        const int32_t* from = check::vector<int32_t>(sources, "sources");
        const int64_t n = sources.shape(0);
        const int32_t* to = check::vector<int32_t>(targets, "targets", n);
        const float* w = weights ? check::vector<float>(*weights, "weights", n) : nullptr;
        if (n_nodes < 0 || n_nodes > std::numeric_limits<int32_t>::max()) {
          throw py::value_error("n_nodes: expected 0..2^31 - 1");
        }
        check::ids(from, n, "sources", n_nodes);
        check::ids(to, n, "targets", n_nodes);
        Csr graph;
        {
          py::gil_scoped_release no_gil;
          graph = csr(from, to, w, n, n_nodes, both_ways, keep_first);
        }
        py::object carried = py::none();
        if (w || !graph.weights.empty()) carried = moved(graph.weights);
        return py::make_tuple(moved(graph.offsets), moved(graph.neighbours), carried, graph.n_repeated,
                              py::make_tuple(graph.repeated[0], graph.repeated[1]));
      },
      "sources"_a, "targets"_a, "weights"_a, py::kw_only(), "n_nodes"_a, "both_ways"_a, "keep_first"_a,
      "Sorted rows: offsets, neighbours, weights or None, number of repeated entries, and the first of them.");
  m.def(
      "asymmetric_entry",
      [](const py::array& offsets, const py::array& neighbours, const std::optional<py::array>& weights) -> py::object {
        const int64_t* begins = check::vector<int64_t>(offsets, "offsets");
        const int32_t* ids = check::vector<int32_t>(neighbours, "neighbours");
        const int64_t n_nodes = offsets.shape(0) - 1, n = neighbours.shape(0);
        const float* w = weights ? check::vector<float>(*weights, "weights", n) : nullptr;
        if (n_nodes < 0 || begins[0] != 0 || begins[n_nodes] != n || !std::is_sorted(begins, begins + n_nodes + 1)) {
          throw py::value_error("offsets: expected to rise from 0 to the number of neighbours");
        }
        check::ids(ids, n, "neighbours", n_nodes);
        int32_t entry[2];
        bool fine = false;
        {
          py::gil_scoped_release no_gil;
          fine = symmetric(begins, ids, w, n_nodes, entry);
        }
        if (fine) return py::none();
        return py::make_tuple(entry[0], entry[1]);
      },
      "offsets"_a, "neighbours"_a, "weights"_a, "(row, neighbour) of an entry without a counterpart, or None.");
}

}  // namespace embfast
