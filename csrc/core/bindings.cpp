// The module _cpu. Only the bindings depend on Python: they check arguments, release the GIL and call the kernel.
#include "core/bindings.h"

#include "core/check.h"
#include "core/isa.h"
#include "core/roofline.h"

namespace embfast {

void bind_roofline(py::module_& m) {
  m.def(
      "fma_peak",
      [](double seconds) {
        py::gil_scoped_release no_gil;
        return EMBFAST_CHOOSE(fma_peak)(seconds);
      },
      "seconds"_a, "Peak FLOP/s of one core for multiply-adds in registers; each counts as two.");
  m.def(
      "read_bandwidth",
      [](const py::array& numbers, double seconds) {
        const float* p = check::vector<float>(numbers, "numbers");
        const int64_t n = numbers.shape(0);
        if (n == 0 || n % 1024) throw py::value_error("numbers: expected a positive multiple of 1024 entries");
        py::gil_scoped_release no_gil;
        return EMBFAST_CHOOSE(read_bandwidth)(p, n, seconds);
      },
      "numbers"_a, "seconds"_a, "Bytes/s of one core that reads these float32 numbers repeatedly.");
}

}  // namespace embfast

PYBIND11_MODULE(_cpu, m) {
  using namespace embfast;
  m.doc() = "embfast's CPU kernels; use them through embfast.kernels.";
  m.def("isa", &isa::name, "Instruction set in use: baseline, avx2, avx512, avx512popcnt or avx512bf16.");
  bind_text(m);
  bind_decimals(m);
  bind_tables(m);
  bind_sequences(m);
  bind_cooccurrence(m);
  bind_glove(m);
  bind_edges(m);
  bind_ternary(m);
  bind_ranking(m);
  bind_roofline(m);
}
