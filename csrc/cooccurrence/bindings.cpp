// Python bindings of co-occurrence counting.
#include "core/bindings.h"

#include <memory>
#include <string>
#include <system_error>

#include "cooccurrence/cooccurrence.h"
#include "core/check.h"

namespace embfast {

namespace {

// Runs f without the GIL; turns std::system_error into an OSError with its errno.
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
               throw py::value_error("offsets: expected to rise from 0 to the number of ids");
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

}  // namespace embfast
