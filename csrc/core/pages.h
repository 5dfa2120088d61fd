// Memory in huge pages where the system has any: reads far apart should not miss the TLB as well as the cache, and
// pages of 4 KB given out one by one cost as much as what is first written to them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace embfast {

constexpr size_t huge_page = size_t{1} << 21;

// At least `bytes`, on a line; from the size of a huge page on, zeros on pages of their own, which go back to the
// system at once when they are released. std::bad_alloc if there is none.
inline void* allocate(size_t bytes) {
  const size_t unit = bytes >= huge_page ? huge_page : 64;
  const size_t whole = (bytes + unit - 1) / unit * unit;
  if (whole < bytes) throw std::bad_alloc();
  if (bytes < huge_page) {
    void* memory = std::aligned_alloc(unit, whole);
    if (!memory) throw std::bad_alloc();
    return memory;
  }
  void* mapped = mmap(nullptr, whole + unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* start = static_cast<char*>(mapped);
  const size_t before = (unit - reinterpret_cast<uintptr_t>(start) % unit) % unit;
  if (before) munmap(start, before);
  if (before < unit) munmap(start + before + whole, unit - before);
#if defined(MADV_HUGEPAGE)
  madvise(start + before, whole, MADV_HUGEPAGE);
#endif
  return start + before;
}

// What allocate(bytes) gave.
inline void release(void* memory, size_t bytes) {
  if (bytes < huge_page) return std::free(memory);
  if (memory) munmap(memory, (bytes + huge_page - 1) / huge_page * huge_page);
}

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}  // NOLINT(google-explicit-constructor): allocators convert
  T* allocate(size_t n) { return static_cast<T*>(embfast::allocate(n * sizeof(T))); }
  void deallocate(T* memory, size_t n) { release(memory, n * sizeof(T)); }
  template <class U>
  bool operator==(const PageAllocator<U>&) const {
    return true;
  }
};

// A vector for large tables that are made at their full size.
template <class T>
using PagedVector = std::vector<T, PageAllocator<T>>;

}  // namespace embfast
