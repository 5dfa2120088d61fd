// Reading: sources are cut into blocks that threads take in turn; each thread fills its own word table.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "core/threads.h"
#include "text/text.h"
#include "text/worker.h"

namespace embfast {

TextEncoder::TextEncoder(const Options& options) : options_(options), next_count_(options.max_distinct) {
  for (int i = 0; i < (options.pruning ? 1 : options.n_threads); ++i) {
    workers_.push_back(new Worker(options_, nullptr));
  }
}

TextEncoder::~TextEncoder() {
  for (Worker* worker : workers_) delete worker;
}

void TextEncoder::set_words(const std::vector<std::string_view>& words) {
  is_frozen_ = true;
  add_specials(frozen_, options_.tokens ? kTokens : kText);
  std::string padded;
  for (const std::string_view word : words) {
    const int32_t id = frozen_.n_words++;
    if (word.empty()) continue;
    const WordTable::Key key = padded_key(word, padded);
    if (!frozen_.find(key)) frozen_.insert(key, id);
  }
  for (Worker* worker : workers_) {
    worker->frozen = &frozen_;
    worker->frozen_counts.assign(words.size() + 2, 0);
  }
}

void TextEncoder::read_block(Worker& worker, const ReadBytes& read, int64_t block, int64_t size, bool skip_mark,
                             Segment& segment) {
  Worker::Region region{};
  if (!worker.read_region(read, block, size, skip_mark, segment, region)) return;
  segment.first_word = worker.table.n_words;
  const bool fine = worker.tokenise(region);
  segment.end_word = worker.table.n_words;
  if (!fine) {
    segment.failure = worker.failure;
    segment.failure.offset += region.from + region.start;
    return;
  }
  segment.n_documents = std::count(worker.entries.get(), worker.entries.get() + worker.n_entries, kNewline);
  if (options_.pruning) return;
  distinct_ += segment.end_word - segment.first_word;
  segment.n_packed = worker.pack();
  const int64_t bytes = segment.n_packed * static_cast<int64_t>(sizeof(uint16_t));
  if (options_.spill_fd < 0 || (memory_used_ += bytes) <= options_.memory_bytes) {
    segment.packed = worker.keep(segment.n_packed);
    return;
  }
  segment.spilled_at = spilled_.fetch_add(bytes);
  const char* data = reinterpret_cast<const char*>(worker.packed.data());
  for (int64_t done = 0; done < bytes;) {
    const int64_t n =
        pwrite(options_.spill_fd, data + done, static_cast<size_t>(bytes - done), segment.spilled_at + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      segment.failure.fault = Fault::spill_failed;
      segment.failure.error = n < 0 ? errno : ENOSPC;
      segment.failure.offset = 0;
      return;
    }
    done += n;
  }
}

bool TextEncoder::add_blocks(const ReadBytes& read, int64_t first_block, int64_t n_blocks, int64_t size,
                             int64_t origin) {
  if (state_ != State::reading) throw std::logic_error("TextEncoder: no text can be added after select");
  const size_t base = segments_.size();
  segments_.resize(base + static_cast<size_t>(n_blocks));
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  const int n_threads = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(workers_.size()), n_blocks));
  bool too_many = false;
  while (!stop && !too_many && next < n_blocks) {
    in_threads(n_threads, [&](int thread) {
      // After a fault no new block starts. All blocks before it have started, so the first fault in the text is found.
      while (!stop && distinct_ <= next_count_) {
        const int64_t i = next++;
        if (i >= n_blocks) return;
        Segment& segment = segments_[base + static_cast<size_t>(i)];
        segment.worker = thread;
        const bool skip_mark = first_block + i == 0 && origin == 0 && !options_.tokens;
        read_block(*workers_[static_cast<size_t>(thread)], read, first_block + i, size, skip_mark, segment);
        if (segment.failure.fault != Fault::none) stop = true;
      }
    });
    if (distinct_ <= next_count_) continue;
    const int64_t n = n_distinct();
    too_many = n > options_.max_distinct;
    next_count_ = distinct_ + std::max(options_.max_distinct - n, options_.max_distinct / 10);
  }
  for (size_t i = base; i < segments_.size(); ++i) {
    if (segments_[i].failure.fault != Fault::none) {
      failure_ = segments_[i].failure;
      failure_.document += n_documents_;
      failure_.offset += origin;
      return false;
    }
    n_documents_ += segments_[i].n_documents;
    n_newlines_ += segments_[i].n_documents;
  }
  if (too_many) failure_.fault = Fault::too_many_words;
  if (options_.pruning) segments_.clear();
  return !too_many;
}

int64_t TextEncoder::n_distinct() const {
  std::atomic<int64_t> n{0};
  in_threads(static_cast<int>(workers_.size()), [&](int thread) {
    const auto own = workers_.begin() + thread;
    const WordTable& table = (*own)->table;
    n += std::count_if(table.begin(), table.end(), [&](const WordTable::Slot& slot) {
      if (!slot.length || slot.id < 0) return false;
      const WordTable::Key key = table.key(slot);
      return std::none_of(workers_.begin(), own, [&](const Worker* worker) { return worker->table.find(key); });
    });
  });
  return n;
}

bool TextEncoder::add_file(int fd, int64_t begin, int64_t end, int64_t size) {
  const auto read = [fd](int64_t offset, char* bytes, int64_t n) -> int64_t {
    for (;;) {
      const int64_t got = pread(fd, bytes, static_cast<size_t>(n), offset);
      if (got >= 0 || errno != EINTR) return got < 0 ? -errno : got;
    }
  };
  const int64_t first = begin / options_.block_bytes;
  const int64_t n_blocks = (end - begin + options_.block_bytes - 1) / options_.block_bytes;
  if (!add_blocks(read, first, n_blocks, size, 0)) return false;
  if (end < size) return true;
  line_open_ = false;
  for (int64_t at = size - 1; at >= 0; --at) {
    char last = '\n';
    if (read(at, &last, 1) != 1 || last == '\r') continue;
    line_open_ = last != '\n';
    break;
  }
  return end_source();
}

bool TextEncoder::add_bytes(const char* data, int64_t n) {
  const Separators separators = options_.tokens ? kTokens : kText;
  for (int64_t at = n - 1; at >= 0; --at) {
    if (!options_.tokens && data[at] == separators.ignored) continue;
    line_open_ = data[at] != separators.document;
    break;
  }
  int64_t whole = n;  // up to the last separator
  while (whole > 0 && !separators.ends_token(data[whole - 1])) --whole;
  if (whole > 0) {
    const int64_t size = static_cast<int64_t>(pending_.size()) + whole;
    const char* bytes = data;
    if (!pending_.empty()) {
      pending_.append(data, static_cast<size_t>(whole));
      bytes = pending_.data();
    }
    const auto read = [bytes](int64_t offset, char* to, int64_t wanted) {
      std::memcpy(to, bytes + offset, static_cast<size_t>(wanted));
      return wanted;
    };
    const int64_t n_blocks = (size + options_.block_bytes - 1) / options_.block_bytes;
    if (!add_blocks(read, 0, n_blocks, size, source_bytes_)) return false;
    source_bytes_ += size;
    pending_.clear();
  }
  pending_.append(data + whole, static_cast<size_t>(n - whole));
  if (static_cast<int64_t>(pending_.size()) <= kLongestToken) return true;
  failure_.fault = Fault::long_token;
  failure_.offset = source_bytes_;
  failure_.document = n_documents_;
  failure_.bytes = pending_.substr(0, 16);
  return false;
}

bool TextEncoder::end_source() {
  const bool open = line_open_;
  if (!pending_.empty()) {
    const char token = (options_.tokens ? kTokens : kText).token;
    if (!add_bytes(&token, 1)) return false;
  }
  line_open_ = false;
  source_bytes_ = 0;
  if (!open) return true;
  ++n_documents_;
  if (options_.pruning) return true;
  Segment& segment = segments_.emplace_back();  // the newline that the file lacks
  segment.packed = std::make_shared<const uint16_t>(packing::kNewline);
  segment.n_packed = segment.n_documents = 1;
  segment.first_word = segment.end_word = 0;
  return true;
}

}  // namespace embfast
