// Writing: provisional ids, in memory or in the spill file, become ranks of the selected words.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>

#include "core/threads.h"
#include "text/text.h"
#include "text/worker.h"

namespace embfast {

// A segment's kept words as ranks, and for each of its documents how many of them come before its end. A thread uses
// one for all its segments, to reuse the memory.
struct TextEncoder::Renumbered {
  std::vector<uint16_t> spilled;
  std::vector<int32_t> kept;
  std::vector<int64_t> ends;
  int64_t n = 0;
};

// Ranks indexed by a packed entry, one table per worker (one in all when workers share their ids): -1 for newlines and
// dropped words, then the ranks of the worker's words.
std::vector<std::vector<int32_t>> TextEncoder::rank_tables() const {
  std::vector<std::vector<int32_t>> rank_of(std::max<size_t>(global_id_.size(), 1));
  for (size_t w = 0; w < rank_of.size(); ++w) {
    rank_of[w].assign(packing::kFirstWord, -1);
    if (global_id_.empty()) {
      rank_of[w].insert(rank_of[w].end(), rank_of_.begin(), rank_of_.end());
      continue;
    }
    rank_of[w].reserve(packing::kFirstWord + global_id_[w].size());
    for (const int32_t id : global_id_[w]) rank_of[w].push_back(rank_of_[static_cast<size_t>(id)]);
  }
  return rank_of;
}

bool TextEncoder::renumber(Segment& segment, const int32_t* ranks, Renumbered& out) const {
  const uint16_t* packed = segment.packed.get();
  if (segment.spilled_at >= 0) {
    out.spilled.resize(static_cast<size_t>(segment.n_packed));
    const int64_t bytes = segment.n_packed * static_cast<int64_t>(sizeof(uint16_t));
    for (int64_t done = 0; done < bytes;) {
      const int64_t got = pread(options_.spill_fd, reinterpret_cast<char*>(out.spilled.data()) + done,
                                static_cast<size_t>(bytes - done), segment.spilled_at + done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      done += got;
    }
    packed = out.spilled.data();
  }
  if (static_cast<int64_t>(out.kept.size()) <= segment.n_packed)
    out.kept.resize(static_cast<size_t>(segment.n_packed) + 1);
  out.ends.clear();
  int32_t* const kept = out.kept.data();
  int64_t n = 0;
  for (const uint16_t* const end = packed + segment.n_packed; packed < end;) {
    const uint32_t entry = packing::next(packed);
    if (entry == packing::kNewline) [[unlikely]]
      out.ends.push_back(n);
    const int32_t rank = ranks[entry];
    kept[n] = rank;
    n += rank >= 0;  // no branch: a dropped word is overwritten by the next
  }
  out.n = n;
  segment.packed.reset();
  return true;
}

bool TextEncoder::write(int32_t* ids, int64_t* offsets) {
  if (state_ != State::selected) throw std::logic_error("TextEncoder: write comes once, after select");
  state_ = State::written;
  const std::vector<std::vector<int32_t>> rank_of = rank_tables();
  slot_of_.clear();
  WordTable().swap(merged_);
  WordTable().swap(frozen_);
  for (Worker* worker : workers_) worker->forget();
  std::vector<int64_t> first_document(segments_.size() + 1, 0);
  for (size_t i = 0; i < segments_.size(); ++i) first_document[i + 1] = first_document[i] + segments_[i].n_documents;
  offsets[0] = 0;

  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable turned;
  size_t turn = 0;        // the next segment to get its place among the ids
  int64_t n_written = 0;  // its place
  bool failed = false;
  in_threads(static_cast<int>(workers_.size()), [&](int) {
    Renumbered found;
    for (;;) {
      const size_t i = next++;
      if (i >= segments_.size()) return;
      Segment& segment = segments_[i];
      const int32_t* ranks = rank_of[global_id_.empty() ? 0 : static_cast<size_t>(segment.worker)].data();
      int64_t place = 0;
      bool fine = false;
      std::exception_ptr thrown;
      found.n = 0;
      try {
        fine = renumber(segment, ranks, found);
      } catch (...) {  // out of memory: pass the turn on, or the other threads wait forever
        thrown = std::current_exception();
      }
      {
        std::unique_lock lock(mutex);
        turned.wait(lock, [&] { return turn == i; });
        place = n_written;
        n_written += found.n;
        failed = failed || !fine;
        ++turn;
        turned.notify_all();
      }
      if (thrown) std::rethrow_exception(thrown);
      if (!fine) continue;
      std::copy_n(found.kept.data(), found.n, ids + place);
      for (size_t d = 0; d < found.ends.size(); ++d) {
        offsets[first_document[i] + static_cast<int64_t>(d) + 1] = place + found.ends[d];
      }
    }
  });
  return !failed;
}

}  // namespace embfast
