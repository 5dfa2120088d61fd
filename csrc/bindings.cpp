// The only file that knows Python: check what came, release the GIL, call the kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "check.h"
#include "text.h"

namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) { m.doc() = "embfast's CPU kernels; use them through embfast.kernels."; }
