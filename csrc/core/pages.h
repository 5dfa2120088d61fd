// Allocates huge pages where the system supports them: distant reads should not miss the TLB as well as the cache, and
// faulting in 4 KB pages one by one costs as much as the first write to them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace embfast {

constexpr size_t huge_page = size_t{1} << 21;

// Returns at least `bytes`, aligned to a cache line. Allocations of a huge page or more are zeroed, separately mapped,
// and returned to the system as soon as they are released. Throws std::bad_alloc if memory is exhausted.
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

// Frees memory from allocate(bytes).
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

// A vector for large tables that are created at their full size.
template <class T>
using PagedVector = std::vector<T, PageAllocator<T>>;

}  // namespace embfast
