// Memory safety: checks shape, dtype, contiguity and id range of the arrays that Python passes to a kernel.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/rows.h"

namespace embfast::check {

namespace py = pybind11;

[[noreturn]] inline void fail(const char* name, const std::string& expected, const py::array& got) {
  std::string shape;
  for (py::ssize_t i = 0; i < got.ndim(); ++i) shape.append(i ? ", " : "").append(std::to_string(got.shape(i)));
  throw py::value_error(std::string(name) + ": expected " + expected + ", got " +
                        py::str(got.dtype()).cast<std::string>() + " (" + shape + ")" +
                        ((got.flags() & py::array::c_style) ? "" : ", not C-contiguous"));
}

// A C-contiguous array of exactly this dtype and rank. Never converts: training would silently update a copy.
template <class T>
const T* array(const py::array& a, const char* name, int64_t ndim, const char* expected) {
  if (!py::isinstance<py::array_t<T>>(a) || a.ndim() != ndim || !(a.flags() & py::array::c_style) ||
      reinterpret_cast<uintptr_t>(a.data()) % alignof(T) != 0) {
    fail(name, expected, a);
  }
  return static_cast<const T*>(a.data());
}

// A 1-D array of n entries; n = -1 accepts any length.
template <class T>
const T* vector(const py::array& a, const char* name, int64_t n = -1) {
  const T* data = array<T>(a, name, 1, "an aligned, C-contiguous 1-D array of the kernel's dtype");
  if (n >= 0 && a.shape(0) != n) fail(name, std::to_string(n) + " entries", a);
  return data;
}

// A writable float32 matrix whose rows fill whole SIMD registers: 64-byte aligned, columns a multiple of 16.
inline Rows rows(py::array& a, const char* name, int64_t dim = -1) {
  const char* expected = "a writable C-contiguous float32 matrix, 64-byte aligned, columns a multiple of 16";
  array<float>(a, name, 2, expected);
  if (!a.writeable() || a.shape(1) % 16 != 0 || reinterpret_cast<uintptr_t>(a.data()) % 64 != 0) {
    fail(name, expected, a);
  }
  if (dim >= 0 && a.shape(1) != dim) fail(name, std::to_string(dim) + " columns", a);
  return {static_cast<float*>(a.mutable_data()), a.shape(0), a.shape(1)};
}

// An array that a kernel writes to.
template <class T>
T* writable(py::array& a, const char* name) {
  if (!py::isinstance<py::array_t<T>>(a) || !a.writeable()) fail(name, "a writable array of the kernel's dtype", a);
  return static_cast<T*>(a.mutable_data());
}

template <class T>
T* writable(py::array& a, const char* name, int64_t n) {
  vector<T>(a, name, n);
  return writable<T>(a, name);
}

template <class T>
T* writable(py::array& a, const char* name, int64_t n, int64_t dim) {
  array<T>(a, name, 2, "an aligned, C-contiguous matrix of the kernel's dtype");
  if (!a.writeable() || a.shape(0) != n || a.shape(1) != dim) {
    fail(name, "a writable matrix (" + std::to_string(n) + ", " + std::to_string(dim) + ")", a);
  }
  return static_cast<T*>(a.mutable_data());
}

inline void ids(const int32_t* ids, int64_t n, const char* name, int64_t n_words) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<uint32_t>(ids[i]));
  if (n > 0 && largest >= n_words) {
    throw py::value_error(std::string(name) + ": expected 0 <= id < " + std::to_string(n_words));
  }
}

inline void threads(int n) {
  if (n < 1 || n > 4096) throw py::value_error("threads: expected 1..4096");
}

inline std::string_view bytes(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != 1 || (info.size && info.strides[0] != 1)) {
    throw py::value_error("bytes: expected contiguous bytes");
  }
  return {static_cast<const char*>(info.ptr), static_cast<size_t>(info.size)};
}

}  // namespace embfast::check
