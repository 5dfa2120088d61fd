// Shared by all bindings: each bind_* function adds the kernels of its room to the module _cpu.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

// PYBIND11_NUMPY_DTYPE of a struct with pointers: each is a uint64 in numpy.
template <class T>
struct pybind11::detail::npy_format_descriptor<T*> {
  static pybind11::dtype dtype() { return pybind11::dtype::of<uint64_t>(); }
  static std::string format() { return format_descriptor<uint64_t>::format(); }
};

namespace embfast {

namespace py = pybind11;
using namespace py::literals;

void bind_text(py::module_& m);
void bind_decimals(py::module_& m);
void bind_tables(py::module_& m);
void bind_sequences(py::module_& m);
void bind_cooccurrence(py::module_& m);
void bind_glove(py::module_& m);
void bind_edges(py::module_& m);
void bind_ternary(py::module_& m);
void bind_ranking(py::module_& m);
void bind_roofline(py::module_& m);

}  // namespace embfast
