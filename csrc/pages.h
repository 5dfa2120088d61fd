// Memory in huge pages where the system has any: reads far apart should not miss the TLB as well as the cache, and
// pages of 4 KB given out one by one cost as much as what is first written to them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace embfast {

constexpr size_t huge_page = size_t{1} << 21;

// For std::free; std::bad_alloc if there is none. At least `bytes`, on a line, or on a huge page from its size on.
inline void* allocate(size_t bytes) {
  const size_t unit = bytes >= huge_page ? huge_page : 64;
  const size_t whole = (bytes + unit - 1) / unit * unit;
  void* memory = std::aligned_alloc(unit, whole);
  if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(memory, whole, MADV_HUGEPAGE);
#endif
  return memory;
}

template <class T>
struct PageAllocator {
  using value_type = T;
  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) {}  // NOLINT(google-explicit-constructor): allocators convert
  T* allocate(size_t n) { return static_cast<T*>(embfast::allocate(n * sizeof(T))); }
  void deallocate(T* memory, size_t) { std::free(memory); }
  template <class U>
  bool operator==(const PageAllocator<U>&) const {
    return true;
  }
};

// A vector for large tables that are made at their full size.
template <class T>
using PagedVector = std::vector<T, PageAllocator<T>>;

}  // namespace embfast
