// Runs one task per thread.
#pragma once

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace embfast {

// Runs task(0), ..., task(n - 1), each in its own thread. Rethrows the first exception once all have finished. If the
// system cannot start a thread, the remaining tasks run one after the other.
template <class Task>
void in_threads(int n, const Task& task) {
  std::exception_ptr thrown;
  std::mutex mutex;
  const auto guarded = [&](int i) {
    try {
      task(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!thrown) thrown = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(n));
  int started = 1;
  try {
    for (; started < n; ++started) threads.emplace_back(guarded, started);
  } catch (const std::exception&) {
  }
  guarded(0);
  for (; started < n; ++started) guarded(started);
  for (std::thread& thread : threads) thread.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace embfast
