// How text becomes ids: separators by SIMD, one hash table per thread, then tables merged and ids renumbered.
#include "text/text.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/pages.h"
#include "core/threads.h"

namespace embfast {
namespace {

constexpr int32_t kNewline = -1, kDropped = -2;
constexpr int64_t kLongestToken = (int64_t{1} << 30) - 1;
constexpr int64_t kPadding = 128;  // after every buffer: 64 bytes for the scan, 16 for loading a word

// Entries as they wait for their final numbers: kNewline is 0, kDropped 1, word k is k + 2; from 2^15 on, two units,
// the first of which has its top bit set.
namespace packing {
constexpr uint16_t kNewline = 0;
constexpr int32_t kFirstWord = 2;

inline uint16_t* put(uint16_t* to, int32_t entry) {
  const uint32_t value = entry >= 0 ? static_cast<uint32_t>(entry + kFirstWord) : static_cast<uint32_t>(-1 - entry);
  const bool is_wide = value >> 15;
  to[0] = static_cast<uint16_t>(is_wide ? 0x8000 | value >> 16 : value);
  to[1] = static_cast<uint16_t>(value);
  return to + 1 + is_wide;
}

inline uint32_t next(const uint16_t*& from) {
  uint32_t value = *from++;
  if (value >> 15) [[unlikely]]
    value = (value & 0x7FFF) << 16 | *from++;
  return value;
}
}  // namespace packing

// One step of UTF-8 (RFC 3629): bytes of the character at `at`, or minus the length of the maximal ill-formed part,
// which a decoder replaces by one U+FFFD. A NUL counts as ill-formed: no format of vectors can hold it.
int64_t character(const unsigned char* at, const unsigned char* end) {
  const unsigned char first = *at;
  if (first < 0x80) return first ? 1 : -1;
  int64_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 0;
  if (first >= 0xF0 && first <= 0xF4) length = 4;
  if (!length) return -1;
  for (int64_t i = 1; i < length; ++i) {
    if (at + i == end) return -i;
    unsigned char least = 0x80, most = 0xBF;
    if (i == 1) {  // overlong forms, surrogates, beyond U+10FFFF
      if (first == 0xE0) least = 0xA0;
      if (first == 0xED) most = 0x9F;
      if (first == 0xF0) least = 0x90;
      if (first == 0xF4) most = 0x8F;
    }
    if (at[i] < least || at[i] > most) return -i;
  }
  return length;
}

bool is_text(const char* bytes, uint32_t length) {
  const auto* at = reinterpret_cast<const unsigned char*>(bytes);
  const auto* end = at + length;
  while (at < end) {
    const int64_t step = character(at, end);
    if (step < 0) return false;
    at += step;
  }
  return true;
}

std::string replaced(const char* bytes, uint32_t length) {
  const auto* at = reinterpret_cast<const unsigned char*>(bytes);
  const auto* end = at + length;
  std::string text;
  while (at < end) {
    const int64_t step = character(at, end);
    if (step > 0) {
      text.append(reinterpret_cast<const char*>(at), static_cast<size_t>(step));
    } else {
      text += "\xEF\xBF\xBD";
    }
    at += step < 0 ? -step : step;
  }
  return text;
}

// The bytes that end something. CR ends nothing, but a word has to be put together without it.
struct Separators {
  char token, other_token, document, ignored;
  bool ends_token(char c) const { return c == token || c == other_token || c == document; }

  uint64_t find(const char* bytes) const {  // one bit for each of 64 bytes
    uint64_t mask = 0;
#if defined(__SSE2__)
    for (int part = 0; part < 4; ++part) {
      const __m128i chunk = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * part));
      const __m128i found = _mm_or_si128(
          _mm_or_si128(_mm_cmpeq_epi8(chunk, _mm_set1_epi8(token)), _mm_cmpeq_epi8(chunk, _mm_set1_epi8(other_token))),
          _mm_or_si128(_mm_cmpeq_epi8(chunk, _mm_set1_epi8(document)), _mm_cmpeq_epi8(chunk, _mm_set1_epi8(ignored))));
      mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(found))) << (16 * part);
    }
#else
    for (int i = 0; i < 64; ++i) {
      mask |= static_cast<uint64_t>(ends_token(bytes[i]) || bytes[i] == ignored) << i;
    }
#endif
    return mask;
  }
};
constexpr Separators kText{' ', '\t', '\n', '\r'};
constexpr Separators kTokens{'\xFE', '\xFE', '\xFF', '\xFE'};

WordTable::Key padded_key(std::string_view word, std::string& padded) {
  padded.assign(word);
  padded.append(WordTable::kInline, '\0');
  return WordTable::key(padded.data(), static_cast<uint32_t>(word.size()));
}

// Newlines go through the table like words, so the loop over tokens has no branch for them; </s> is word2vec.c's name
// for a newline and cannot be a word.
void add_specials(WordTable& table, const Separators& separators) {
  std::string padded;
  const char newline[] = {separators.document};
  table.insert(padded_key({newline, 1}, padded), kNewline);
  table.insert(padded_key("</s>", padded), kDropped);
}

}  // namespace

bool is_text(std::string_view bytes) { return is_text(bytes.data(), static_cast<uint32_t>(bytes.size())); }

struct TextEncoder::Worker {
  static constexpr int kBatch = 64;  // keys whose slots are on their way from memory at the same time

  Worker(const Options& options, const WordTable* frozen)
      : options(options), frozen(frozen), separators(options.tokens ? kTokens : kText) {
    add_specials(table, separators);
  }

  const Options& options;
  const WordTable* frozen;  // nullptr: every word is welcome
  Separators separators;
  WordTable table;
  std::vector<int64_t> frozen_counts;  // of id - kDropped
  int64_t min_reduce = 1;
  std::vector<char> buffer;
  std::unique_ptr<int32_t[]> entries;
  int64_t n_allocated = 0, n_entries = 0;
  std::vector<uint16_t> packed;  // the same entries, to be kept
  std::shared_ptr<uint16_t> slab;
  int64_t slab_left = 0;
  WordTable::Key batch[kBatch];
  int n_batch = 0;
  std::string scratch;
  Failure failure;

  // Packs the entries: 2 bytes each but for the words that came late, which take 4. Returns how many units that is.
  int64_t pack() {
    if (static_cast<int64_t>(packed.size()) < 2 * n_entries) packed.resize(static_cast<size_t>(2 * n_entries));
    uint16_t* to = packed.data();
    for (int64_t k = 0; k < n_entries; ++k) to = packing::put(to, entries[static_cast<size_t>(k)]);
    return to - packed.data();
  }

  // A copy of what is packed, in huge pages with others; they are released with the last of them.
  std::shared_ptr<const uint16_t> keep(int64_t n) {
    if (n > slab_left) {
      const int64_t n_slab = std::max<int64_t>(n, 2 * huge_page / sizeof(uint16_t));
      const size_t bytes = static_cast<size_t>(n_slab) * sizeof(uint16_t);
      slab = {static_cast<uint16_t*>(allocate(bytes)), [bytes](uint16_t* memory) { release(memory, bytes); }};
      slab_left = n_slab;
    }
    std::shared_ptr<uint16_t> to = slab;
    std::copy_n(packed.data(), n, to.get());
    slab = {slab, slab.get() + n};
    slab_left -= n;
    return to;
  }

  // The tokens of one region; 128 separators follow its last byte. False: a fault.
  bool tokenise(const char* begin, int64_t length) {
    if (length + 1 > n_allocated) {
      n_allocated = std::max(length + 1, options.block_bytes + options.block_bytes / 4 + 1);
      entries.reset(new int32_t[static_cast<size_t>(n_allocated)]);
    }
    n_entries = 0;
    n_batch = 0;
    failure = {};
    const char* start = begin;
    const char* const end = begin + length;
    bool with_ignored = false;
    for (const char* chunk = begin; chunk <= end; chunk += 64) {  // <=: the first separator past the end closes a word
      for (uint64_t mask = separators.find(chunk); mask; mask &= mask - 1) {
        const char* at = chunk + std::countr_zero(mask);
        if (!separators.ends_token(*at)) [[unlikely]] {
          with_ignored = true;
          continue;
        }
        if (at - start > kLongestToken) [[unlikely]]
          return fail(Fault::long_token, start, 64, start - begin);
        if (at > start) {
          if (with_ignored) [[unlikely]] {
            if (!push_without_ignored(start, at, begin)) return false;
          } else if (!push(start, static_cast<uint32_t>(at - start), start - begin)) {
            return false;
          }
        }
        with_ignored = false;
        if (*at == separators.document && at < end) [[unlikely]] {
          if (!push(at, 1, at - begin)) return false;
        }
        start = at + 1;
      }
    }
    return flush();
  }

  bool push(const char* bytes, uint32_t length, int64_t position) {
    WordTable::Key& key = batch[n_batch];
    key = WordTable::key(bytes, length);
    key.position = position;
    (frozen ? *frozen : table).prefetch(key.hash);
    return ++n_batch < kBatch || flush();
  }

  bool push_without_ignored(const char* start, const char* end, const char* begin) {
    if (!flush()) return false;
    scratch.clear();
    for (const char* at = start; at < end; ++at) {
      if (*at != separators.ignored) scratch += *at;
    }
    const size_t length = scratch.size();
    scratch.append(WordTable::kInline, '\0');
    if (!length) return true;
    return push(scratch.data(), static_cast<uint32_t>(length), start - begin) && flush();  // before scratch changes
  }

  bool flush() {
    const int n = std::exchange(n_batch, 0);
    int32_t* out = entries.get() + n_entries;
    if (frozen) {
      for (int k = 0; k < n; ++k) {
        const WordTable::Slot* slot = frozen->find(batch[k]);
        if (slot) {
          out[k] = slot->id;
        } else {
          n_entries += k;  // fail() counts the documents before this token
          out[k] = mended(batch[k]);
          if (failure.fault != Fault::none) return false;
          n_entries -= k;
        }
        ++frozen_counts[static_cast<size_t>(out[k] - kDropped)];
      }
    } else {
      for (int k = 0; k < n; ++k) {
        WordTable::Slot* slot = table.find(batch[k]);
        if (!slot) [[unlikely]] {
          n_entries += k;  // fail() counts the documents before this token
          out[k] = add(batch[k]);
          if (failure.fault != Fault::none) return false;
          n_entries -= k;
          continue;
        }
        ++slot->count;
        out[k] = slot->id;
      }
    }
    n_entries += n;
    return true;
  }

  // The id of a token that is not among the frozen words as it stands: bytes that are no text may be once mended.
  int32_t mended(const WordTable::Key& key) {
    if (is_text(key.bytes, key.length)) return kDropped;
    if (options.errors == Errors::strict) fail(Fault::bad_bytes, key.bytes, key.length, key.position);
    if (options.errors != Errors::replace) return kDropped;
    std::string padded;
    const WordTable::Slot* slot = frozen->find(padded_key(replaced(key.bytes, key.length), padded));
    return slot ? slot->id : kDropped;
  }

  // A token that is not in the table as it stands, counted once; returns its id. Bytes that are no text get no slot.
  int32_t add(const WordTable::Key& key) {
    if (is_text(key.bytes, key.length)) {
      const int32_t id = table.n_words++;
      table.insert(key, id)->count = 1;
      if (options.pruning && table.n_words > options.max_distinct) prune();
      return id;
    }
    if (options.errors == Errors::strict) {
      fail(Fault::bad_bytes, key.bytes, key.length, key.position);
      return kDropped;
    }
    if (options.errors == Errors::skip) return kDropped;
    std::string padded;
    const WordTable::Key mended = padded_key(replaced(key.bytes, key.length), padded);
    if (WordTable::Slot* slot = table.find(mended)) {
      ++slot->count;
      return slot->id;
    }
    return add(mended);
  }

  bool fail(Fault fault, const char* bytes, int64_t length, int64_t position) {
    failure.fault = fault;
    failure.offset = position;
    failure.document = std::count(entries.get(), entries.get() + n_entries, kNewline);
    failure.bytes.assign(bytes, static_cast<size_t>(std::min<int64_t>(length, 64)));
    return false;
  }

  // What only reading needs.
  void forget() {
    WordTable().swap(table);
    std::vector<char>().swap(buffer);
    std::vector<uint16_t>().swap(packed);
    entries.reset();
    n_allocated = n_entries = 0;
    slab.reset();
    slab_left = 0;
  }

  // Slots of words by id.
  std::vector<WordTable::Slot*> words_by_id() {
    std::vector<WordTable::Slot*> slots(static_cast<size_t>(table.n_words));
    for (WordTable::Slot& slot : table) {
      if (slot.length && slot.id >= 0) slots[static_cast<size_t>(slot.id)] = &slot;
    }
    return slots;
  }

  // word2vec.c's ReduceVocab: drops the words seen min_reduce times or less; the bar rises each time.
  void prune() {
    WordTable kept;
    add_specials(kept, separators);
    std::string padded;
    for (const WordTable::Slot* slot : words_by_id()) {
      if (static_cast<int64_t>(slot->count) <= min_reduce) continue;
      kept.insert(padded_key(table.word(*slot), padded), kept.n_words++)->count = slot->count;
    }
    table.swap(kept);  // aliases are found anew when they come again
    ++min_reduce;
  }
};

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

// Blocks of the source that `read(offset, bytes, n)` gives out; it returns how many bytes it read, or -errno.
// A block's region runs from behind the first separator at or after the byte before it, to the first such separator of
// the next block: so regions meet at separators, every token is whole, and a token longer than many blocks is read by
// the block it starts in while the others find nothing of theirs.
template <class Read>
bool TextEncoder::add_blocks(const Read& read, int64_t first_block, int64_t n_blocks, int64_t size, int64_t origin) {
  if (state_ != State::reading) throw std::logic_error("TextEncoder: no text can be added after select");
  const size_t base = segments_.size();
  segments_.resize(base + static_cast<size_t>(n_blocks));
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  const int64_t block_bytes = options_.block_bytes;

  const auto one_block = [&](Worker& worker, int64_t block, Segment& segment) {
    const auto failed = [&](Fault fault, int error, int64_t offset) {
      segment.failure.fault = fault;
      segment.failure.error = error;
      segment.failure.offset = offset;
    };
    std::vector<char>& buffer = worker.buffer;
    const int64_t from = std::max<int64_t>(block * block_bytes - 1, 0);
    const int64_t until = std::min((block + 1) * block_bytes, size);  // one past the first byte of the end's search
    int64_t filled = 0;
    const auto fill = [&](int64_t wanted) {  // bytes [from, from + wanted) of the source
      if (static_cast<int64_t>(buffer.size()) < wanted + kPadding)
        buffer.resize(static_cast<size_t>(wanted + kPadding));
      while (filled < wanted) {
        const int64_t n = read(from + filled, buffer.data() + filled, wanted - filled);
        if (n <= 0) {
          failed(n < 0 ? Fault::read_failed : Fault::shrank, static_cast<int>(-n), from + filled);
          return false;
        }
        filled += n;
      }
      return true;
    };
    const auto ends_token = [&](int64_t i) { return worker.separators.ends_token(buffer[static_cast<size_t>(i)]); };
    if (!fill(until - from)) return;

    int64_t start = 0;  // both relative to `from`
    if (block > 0) {
      const int64_t last = until - from - (until == size ? 0 : 1);
      while (start < last && !ends_token(start)) ++start;
      if (start == last) return;
      ++start;
    }
    int64_t end = (block + 1) * block_bytes - 1 - from;
    if (from + end >= size) {
      end = size - from;
    } else {
      while (!ends_token(end)) {
        if (++end + from == size) break;
        if (end == filled) {
          if (end - start > kLongestToken + block_bytes) {
            std::string bytes(buffer.data() + end - block_bytes, 16);
            failed(Fault::long_token, 0, from + end);
            segment.failure.bytes = bytes;
            return;
          }
          // 1/8 more each time, so that a very long token costs a few passes and an ordinary one a page
          if (!fill(std::min(filled + std::max<int64_t>(4096, filled / 8), size - from))) return;
        }
      }
      if (end + from < size) ++end;  // the separator itself, which may be a newline
    }
    const bool begins = block == 0 && origin == 0 && !options_.tokens;
    if (begins && end >= 3 && !std::memcmp(buffer.data(), "\xEF\xBB\xBF", 3)) start = 3;  // a byte order mark
    // What lies behind the region was read for the search only: cover it with separators.
    if (static_cast<int64_t>(buffer.size()) < end + kPadding) buffer.resize(static_cast<size_t>(end + kPadding));
    std::fill_n(buffer.begin() + end, kPadding, worker.separators.token);

    segment.first_word = worker.table.n_words;
    const bool fine = worker.tokenise(buffer.data() + start, end - start);
    segment.end_word = worker.table.n_words;
    if (!fine) {
      segment.failure = worker.failure;
      segment.failure.offset += from + start;
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
      if (n <= 0) return failed(Fault::spill_failed, n < 0 ? errno : ENOSPC, 0);
      done += n;
    }
  };

  const int n_threads = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(workers_.size()), n_blocks));
  bool too_many = false;
  while (!stop && !too_many && next < n_blocks) {
    in_threads(n_threads, [&](int thread) {
      // After a fault no new block starts; those before it have started, so the first fault of all is found.
      while (!stop && distinct_ <= next_count_) {
        const int64_t i = next++;
        if (i >= n_blocks) return;
        Segment& segment = segments_[base + static_cast<size_t>(i)];
        segment.worker = thread;
        one_block(*workers_[static_cast<size_t>(thread)], first_block + i, segment);
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
  Segment& segment = segments_.emplace_back();  // the newline that the file does not have
  segment.packed = std::make_shared<const uint16_t>(packing::kNewline);
  segment.n_packed = segment.n_documents = 1;
  segment.first_word = segment.end_word = 0;
  return true;
}

// Tables to one table, whose ids follow the first occurrence in the text: segments stand in the text's order, and in a
// segment the new words of its worker have rising ids.
void TextEncoder::merge() {
  if (is_frozen_) {
    global_count_.assign(static_cast<size_t>(frozen_.n_words), 0);
    for (const Worker* worker : workers_) {
      for (size_t i = 0; i < global_count_.size(); ++i) global_count_[i] += worker->frozen_counts[i + 2];
    }
    slot_of_.assign(global_count_.size(), nullptr);
    for (const WordTable::Slot& slot : frozen_) {
      if (slot.length && slot.id >= 0) slot_of_[static_cast<size_t>(slot.id)] = &slot;
    }
    return;
  }
  if (workers_.size() == 1) {
    const auto slots = workers_[0]->words_by_id();
    slot_of_.assign(slots.begin(), slots.end());
    for (const WordTable::Slot* slot : slots) global_count_.push_back(static_cast<int64_t>(slot->count));
    return;
  }
  std::vector<std::vector<WordTable::Slot*>> words(workers_.size());
  in_threads(static_cast<int>(workers_.size()), [&](int i) {
    const auto w = static_cast<size_t>(i);
    words[w] = workers_[w]->words_by_id();
  });
  global_id_.resize(workers_.size());
  for (size_t w = 0; w < workers_.size(); ++w) global_id_[w].resize(words[w].size());
  merged_.reserve(
      std::max_element(workers_.begin(), workers_.end(),
                       [](const Worker* a, const Worker* b) { return a->table.n_words < b->table.n_words; })[0]
          ->table.n_words);
  constexpr size_t kAhead = 16;  // words whose slots, there and here, are on their way from memory
  std::vector<WordTable::Key> keys;
  for (const Segment& segment : segments_) {
    const auto w = static_cast<size_t>(segment.worker);
    const WordTable& table = workers_[w]->table;
    const auto first = static_cast<size_t>(segment.first_word), n = static_cast<size_t>(segment.end_word) - first;
    keys.resize(n);
    for (size_t k = 0; k < n + kAhead; ++k) {
      if (k + kAhead < n) __builtin_prefetch(words[w][first + k + kAhead]);
      if (k < n) {
        keys[k] = table.key(*words[w][first + k]);
        merged_.prefetch(keys[k].hash);
      }
      if (k < kAhead) continue;
      const WordTable::Key& key = keys[k - kAhead];
      WordTable::Slot* slot = merged_.find(key);
      if (!slot) {
        slot = merged_.insert(key, merged_.n_words++);
        global_count_.push_back(0);
      }
      const size_t id = first + k - kAhead;
      global_id_[w][id] = slot->id;
      global_count_[static_cast<size_t>(slot->id)] += static_cast<int64_t>(words[w][id]->count);
    }
  }
  slot_of_.resize(global_count_.size());
  for (const WordTable::Slot& slot : merged_) {
    if (slot.length) slot_of_[static_cast<size_t>(slot.id)] = &slot;
  }
}

const TextEncoder::Vocabulary& TextEncoder::select(int64_t min_count, int64_t max_vocab,
                                                   const std::vector<std::string_view>& keep, bool fixed) {
  if (state_ == State::written) throw std::logic_error("TextEncoder: select comes before write");
  if (state_ == State::reading) merge();
  state_ = State::selected;
  vocabulary_ = {};
  const auto count_of = [&](int32_t id) { return global_count_[static_cast<size_t>(id)]; };
  std::vector<int32_t>& order = vocabulary_.order;
  std::vector<char> is_kept(keep.empty() ? 0 : global_count_.size(), 0);
  const WordTable& table = is_frozen_ ? frozen_ : workers_.size() == 1 ? workers_[0]->table : merged_;
  std::string padded;
  for (const std::string_view word : keep) {
    if (word.empty()) continue;
    const WordTable::Slot* slot = table.find(padded_key(word, padded));
    if (slot && slot->id >= 0) is_kept[static_cast<size_t>(slot->id)] = 1;
  }
  const auto kept = [&](int32_t id) { return !is_kept.empty() && is_kept[static_cast<size_t>(id)]; };
  for (int32_t id = 0; id < static_cast<int32_t>(global_count_.size()); ++id) {
    vocabulary_.n_distinct += count_of(id) > 0;
    vocabulary_.largest_count = std::max(vocabulary_.largest_count, count_of(id));
    if (fixed || count_of(id) >= min_count || (kept(id) && count_of(id) > 0)) order.push_back(id);
  }
  if (!fixed) {
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return count_of(a) != count_of(b) ? count_of(a) > count_of(b) : a < b; });
    if (max_vocab > 0 && static_cast<int64_t>(order.size()) > max_vocab) {
      int64_t room = max_vocab - std::count_if(order.begin(), order.end(), kept);
      std::erase_if(order, [&](int32_t id) { return !kept(id) && room-- <= 0; });
    }
  }
  rank_of_.assign(global_count_.size(), -1);
  for (size_t rank = 0; rank < order.size(); ++rank) {
    rank_of_[static_cast<size_t>(order[rank])] = static_cast<int32_t>(rank);
    vocabulary_.counts.push_back(count_of(order[rank]));
    vocabulary_.n_tokens += vocabulary_.counts.back();
  }
  return vocabulary_;
}

std::string_view TextEncoder::word(int64_t rank) const {
  const WordTable::Slot* slot = slot_of_[static_cast<size_t>(vocabulary_.order[static_cast<size_t>(rank)])];
  if (!slot) return {};
  const WordTable& table = is_frozen_ ? frozen_ : workers_.size() == 1 ? workers_[0]->table : merged_;
  return table.word(*slot);
}

bool TextEncoder::write(int32_t* ids, int64_t* offsets) {
  if (state_ != State::selected) throw std::logic_error("TextEncoder: write comes once, after select");
  state_ = State::written;
  // By the number of a packed entry: -1 for newlines and dropped words, then the ranks of each worker's words.
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
  slot_of_.clear();
  WordTable().swap(merged_);
  WordTable().swap(frozen_);
  for (Worker* worker : workers_) worker->forget();
  std::vector<int64_t> first_document(segments_.size() + 1, 0);
  for (size_t i = 0; i < segments_.size(); ++i) first_document[i + 1] = first_document[i] + segments_[i].n_documents;
  offsets[0] = 0;

  // The kept words of a segment by rank, and how many of them stand before the end of each of its documents.
  const auto renumber = [&](Segment& segment, std::vector<uint16_t>& spilled, std::vector<int32_t>& kept,
                            std::vector<int64_t>& ends, int64_t& n) {
    const uint16_t* packed = segment.packed.get();
    if (segment.spilled_at >= 0) {
      spilled.resize(static_cast<size_t>(segment.n_packed));
      const int64_t bytes = segment.n_packed * static_cast<int64_t>(sizeof(uint16_t));
      for (int64_t done = 0; done < bytes;) {
        const int64_t got = pread(options_.spill_fd, reinterpret_cast<char*>(spilled.data()) + done,
                                  static_cast<size_t>(bytes - done), segment.spilled_at + done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        done += got;
      }
      packed = spilled.data();
    }
    const int32_t* ranks = rank_of[global_id_.empty() ? 0 : static_cast<size_t>(segment.worker)].data();
    if (static_cast<int64_t>(kept.size()) <= segment.n_packed) kept.resize(static_cast<size_t>(segment.n_packed) + 1);
    ends.clear();
    for (const uint16_t* const end = packed + segment.n_packed; packed < end;) {
      const uint32_t entry = packing::next(packed);
      if (entry == packing::kNewline) [[unlikely]]
        ends.push_back(n);
      const int32_t rank = ranks[entry];
      kept[static_cast<size_t>(n)] = rank;
      n += rank >= 0;  // no branch: a dropped word is overwritten by the next
    }
    segment.packed.reset();
    return true;
  };

  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable turned;
  size_t turn = 0;        // the segment whose place among the ids is known
  int64_t n_written = 0;  // that place
  bool failed = false;
  in_threads(static_cast<int>(workers_.size()), [&](int) {
    std::vector<uint16_t> spilled;
    std::vector<int32_t> kept;
    std::vector<int64_t> ends;
    for (;;) {
      const size_t i = next++;
      if (i >= segments_.size()) return;
      Segment& segment = segments_[i];
      int64_t n = 0, place = 0;
      bool fine = false;
      std::exception_ptr thrown;
      try {
        fine = renumber(segment, spilled, kept, ends, n);
      } catch (...) {  // out of memory: the turn must pass all the same, or the other threads wait for ever
        thrown = std::current_exception();
        n = 0;
      }
      {
        std::unique_lock lock(mutex);
        turned.wait(lock, [&] { return turn == i; });
        place = n_written;
        n_written += n;
        failed = failed || !fine;
        ++turn;
        turned.notify_all();
      }
      if (thrown) std::rethrow_exception(thrown);
      if (!fine) continue;
      std::copy_n(kept.data(), n, ids + place);
      for (size_t d = 0; d < ends.size(); ++d) {
        offsets[first_document[i] + static_cast<int64_t>(d) + 1] = place + ends[d];
      }
    }
  });
  return !failed;
}

}  // namespace embfast
