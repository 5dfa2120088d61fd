// Co-occurrence counting: centers by word, dense sums, sorted runs and their merge.
#include "cooccurrence/cooccurrence.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/threads.h"

namespace embfast {

namespace {

constexpr int ahead = 12;                // centers between the prefetch of their tokens and their use
constexpr int64_t sum_bytes = 12;        // a pair in a run: int32 column, uint64 sum
constexpr int64_t most_bits = 40;        // 1 / 1000 is exact to 2^-31
constexpr int64_t run_buffer = 1 << 18;  // bytes read from a run at a time
constexpr int64_t smallest_buffer = 1 << 12;

[[noreturn]] void fail(int error, const char* what) { throw std::system_error(error, std::generic_category(), what); }

}  // namespace

// A row of the matrix being counted: sums by column and the list of nonzero columns.
struct CooccurrenceCounter::Sums {
  std::vector<uint64_t> sum;
  std::vector<int32_t> touched;  // n_words + 1 entries: a column is written before it is known to be new
  std::vector<uint64_t> bits;
  int64_t n = 0;

  explicit Sums(int64_t n_words) : sum(n_words), touched(n_words + 1), bits(n_words / 64 + 1) {}

  __attribute__((always_inline)) void add(int32_t column, uint64_t weight) {
    const uint64_t before = sum[column];
    touched[n] = column;
    n += before == 0;
    sum[column] = before + weight;
  }

  // Calls f(column, sum) for each nonzero column in order and resets the sums to zero.
  template <class F>
  void drain(F&& f) {
    const auto take = [&](int32_t column) {
      f(column, sum[column]);
      sum[column] = 0;
    };
    if (n * static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(n))) * 4 < static_cast<int64_t>(bits.size())) {
      std::sort(touched.begin(), touched.begin() + n);
      for (int64_t i = 0; i < n; ++i) take(touched[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) bits[touched[i] / 64] |= uint64_t{1} << (touched[i] % 64);
      for (size_t word = 0; word < bits.size(); ++word) {
        for (uint64_t left = bits[word]; left; left &= left - 1) {
          take(static_cast<int32_t>(64 * word + std::countr_zero(left)));
        }
        bits[word] = 0;
      }
    }
    n = 0;
  }
};

// A range of the spill file: for each row an int32 n, then n pairs of int32 column and uint64 sum.
struct CooccurrenceCounter::Run {
  int64_t at, end;
  std::vector<char> buffer;
  size_t place = 0, filled = 0;

  Run(int64_t begin, int64_t end) : at(begin), end(end) {}

  const char* take(int fd, size_t n) {
    if (filled - place < n) {
      std::memmove(buffer.data(), buffer.data() + place, filled - place);
      filled -= place, place = 0;
      while (filled < n) {
        const size_t room = std::min<size_t>(buffer.size() - filled, end - at);
        const ssize_t got = room ? pread(fd, buffer.data() + filled, room, at) : 0;
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) fail(got < 0 ? errno : EIO, "read a run");
        filled += got, at += got;
      }
    }
    place += n;
    return buffer.data() + place - n;
  }
};

CooccurrenceCounter::CooccurrenceCounter(const Options& options) : options_(options) {
  // The largest precision at which a corpus with a single pair of words stays below 2^63.
  const double tokens = static_cast<double>(options.offsets[options.n_documents]);
  const double weight = options.distance_weighting ? 1 + std::log(options.window) : options.window;
  bits_ = static_cast<int>(std::clamp<int64_t>(62 - std::ilogb(4 * (tokens + 1) * weight), 0, most_bits));
  if (!options.distance_weighting) bits_ = 0;
  weight_.resize(options.window + 1);
  for (int d = 1; d <= options.window; ++d) {
    weight_[d] = std::llround(std::ldexp(options.distance_weighting ? 1.0 / d : 1.0, bits_));
  }
  for (int t = 0; t < options.threads; ++t) sums_.push_back(std::make_unique<Sums>(options.n_words));
  buffer_ = std::make_unique_for_overwrite<char[]>(options.buffer_bytes);
  first_center_.resize(options.n_words + int64_t{1});
}

CooccurrenceCounter::~CooccurrenceCounter() = default;

bool CooccurrenceCounter::start(int64_t begin, int64_t end, bool only) {
  const int64_t n_tokens = options_.offsets[options_.n_documents];
  uint32_t largest = 0;
  for (int64_t p = std::max<int64_t>(begin - options_.window, 0); p < std::min(end + options_.window, n_tokens); ++p) {
    largest = std::max(largest, static_cast<uint32_t>(options_.ids[p]));
  }
  if (largest >= static_cast<uint32_t>(options_.n_words)) return false;

  begin_ = begin, only_ = only;
  if (end - begin > capacity_) {
    centers_.reset();  // before the new ones are allocated
    centers_ = std::make_unique_for_overwrite<Center[]>(end - begin);
    capacity_ = end - begin;
  }
  std::fill(first_center_.begin(), first_center_.end(), 0);
  for (int64_t p = begin; p < end; ++p) ++first_center_[options_.ids[p]];
  int64_t sum = 0;
  for (int64_t& first : first_center_) first = std::exchange(sum, sum + first);

  // The document of the first token is the last one that starts at or before it.
  const int64_t* last = options_.offsets + options_.n_documents;
  int64_t document = std::upper_bound(options_.offsets, last, begin) - options_.offsets - 1;
  for (int64_t p = begin; p < end; ++document) {
    const int64_t from = options_.offsets[document], to = options_.offsets[document + 1];
    for (const int64_t stop = std::min(to, end); p < stop; ++p) {
      const auto left = static_cast<uint16_t>(std::min<int64_t>(p - from, options_.window));
      const auto right = static_cast<uint16_t>(std::min<int64_t>(to - 1 - p, options_.window));
      centers_[first_center_[options_.ids[p]]++] = {static_cast<uint32_t>(p - begin), left, right};
    }
  }
  std::copy_backward(first_center_.begin(), first_center_.end() - 1, first_center_.end());
  first_center_[0] = 0;
  if (!only) runs_.push_back(std::make_unique<Run>(spilled_, spilled_));
  return true;
}

void CooccurrenceCounter::count_row(int64_t row, Sums& sums) const {
  const int32_t* ids = options_.ids + begin_;
  const uint64_t* weight = weight_.data();
  const Center* last = centers_.get() + first_center_[row + 1];
  for (const Center* c = centers_.get() + first_center_[row]; c < last; ++c) {
    if (c + ahead < last) {
      const Center& later = c[ahead];
      const int32_t* p = ids + later.token;
      for (int d = options_.symmetric ? -later.left : 0; d <= later.right; d += 16) __builtin_prefetch(p + d);
      __builtin_prefetch(p + later.right);
    }
    const int32_t* p = ids + c->token;
    for (int d = 1; d <= c->right; ++d) sums.add(p[d], weight[d]);
    if (options_.symmetric) {
      for (int d = 1; d <= c->left; ++d) sums.add(p[-d], weight[d]);
    }
  }
}

char* CooccurrenceCounter::write_row(int64_t row, Sums& sums, char* to) const {
  if (only_) {
    const double unit = std::ldexp(1.0, -bits_);
    sums.drain([&](int32_t column, uint64_t sum) {
      const Entry entry{static_cast<int32_t>(row), column, static_cast<float>(static_cast<double>(sum) * unit)};
      std::memcpy(to, &entry, sizeof entry);
      to += sizeof entry;
    });
    return to;
  }
  const auto n = static_cast<int32_t>(sums.n);
  std::memcpy(to, &n, sizeof n);
  to += sizeof n;
  sums.drain([&](int32_t column, uint64_t sum) {
    std::memcpy(to, &column, sizeof column);
    std::memcpy(to + sizeof column, &sum, sizeof sum);
    to += sum_bytes;
  });
  return to;
}

void CooccurrenceCounter::write(int fd, const char* data, size_t size, int64_t* at) const {
  while (size) {
    const ssize_t done = pwrite(fd, data, size, *at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail(done < 0 ? errno : ENOSPC, "write entries");
    data += done, size -= done, *at += done;
  }
}

int64_t CooccurrenceCounter::count(int64_t first) {
  // Takes as many rows as are sure to fit into the buffer, in blocks of about equal size for the threads.
  const int64_t n_words = options_.n_words, sides = options_.symmetric ? 2 : 1;
  struct Block {
    int64_t first, last;
    char *from, *to;
  };
  std::vector<Block> blocks;
  int64_t room = 0, last = first;
  const int64_t share = options_.buffer_bytes / (options_.threads * int64_t{8});
  for (; last < n_words; ++last) {
    const int64_t pairs = (first_center_[last + 1] - first_center_[last]) * options_.window * sides;
    const int64_t bytes = 4 + sum_bytes * std::min(pairs, n_words);
    if (room + bytes > options_.buffer_bytes) break;
    if (blocks.empty() || buffer_.get() + room - blocks.back().from >= share) {
      blocks.push_back({last, last, buffer_.get() + room, nullptr});
    }
    blocks.back().last = last + 1;
    room += bytes;
  }
  std::atomic<size_t> next{0};
  in_threads(options_.threads, [&](int t) {
    Sums& sums = *sums_[t];
    for (size_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < blocks.size();) {
      char* to = blocks[b].from;
      for (int64_t row = blocks[b].first; row < blocks[b].last; ++row) {
        count_row(row, sums);
        to = write_row(row, sums, to);
      }
      blocks[b].to = to;
    }
  });

  char* end = buffer_.get();  // close the gaps
  for (const Block& block : blocks) {
    std::memmove(end, block.from, block.to - block.from);
    end += block.to - block.from;
  }
  const int64_t size = end - buffer_.get();
  if (only_) {
    int64_t at = options_.out_begin + written_;
    write(options_.out_fd, buffer_.get(), size, &at);
    written_ += size, n_entries_ += size / static_cast<int64_t>(sizeof(Entry));
  } else {
    write(options_.spill_fd, buffer_.get(), size, &spilled_);
    runs_.back()->end = spilled_;
  }
  return last;
}

int64_t CooccurrenceCounter::merge(int64_t first) {
  if (first == 0) {  // the memory of the centers is now free for the runs
    centers_.reset();
    const int64_t each = capacity_ * bytes_per_token / std::max<int64_t>(runs_.size(), 1);
    capacity_ = 0;
    for (auto& run : runs_) run->buffer.resize(std::clamp(each, smallest_buffer, run_buffer));
    only_ = true;
  }
  Sums& sums = *sums_[0];
  char* to = buffer_.get();
  int64_t row = first;
  const char* end = to + options_.buffer_bytes - options_.n_words * static_cast<int64_t>(sizeof(Entry));
  for (; row < options_.n_words && to <= end; ++row) {
    for (auto& run : runs_) {
      int32_t n = 0;
      std::memcpy(&n, run->take(options_.spill_fd, sizeof n), sizeof n);
      for (; n > 0; --n) {
        const char* pair = run->take(options_.spill_fd, sum_bytes);
        int32_t column = 0;
        uint64_t sum = 0;
        std::memcpy(&column, pair, sizeof column);
        std::memcpy(&sum, pair + sizeof column, sizeof sum);
        sums.add(column, sum);
      }
    }
    to = write_row(row, sums, to);
  }
  const int64_t size = to - buffer_.get();
  int64_t at = options_.out_begin + written_;
  write(options_.out_fd, buffer_.get(), size, &at);
  written_ += size, n_entries_ += size / static_cast<int64_t>(sizeof(Entry));
  return row;
}

}  // namespace embfast
