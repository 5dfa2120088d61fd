// What the files of the bindings share: each adds its kernels to the module _cpu.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

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
