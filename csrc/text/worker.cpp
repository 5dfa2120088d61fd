// One thread's part of reading: a region of bytes is cut into tokens with SIMD, and tokens become provisional ids.
#include "text/worker.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/pages.h"
#include "text/utf8.h"

namespace embfast {
namespace {

constexpr int64_t kPadding = 128;  // after every region: 64 bytes for the scan, 16 for loading a word

}  // namespace

WordTable::Key padded_key(std::string_view word, std::string& padded) {
  padded.assign(word);
  padded.append(WordTable::kInline, '\0');
  return WordTable::key(padded.data(), static_cast<uint32_t>(word.size()));
}

void add_specials(WordTable& table, const Separators& separators) {
  std::string padded;
  const char newline[] = {separators.document};
  table.insert(padded_key({newline, 1}, padded), kNewline);
  table.insert(padded_key("</s>", padded), kDropped);
}

TextEncoder::Worker::Worker(const Options& options, const WordTable* frozen)
    : options(options), frozen(frozen), separators(options.tokens ? kTokens : kText) {
  add_specials(table, separators);
}

// A region runs from behind the first separator at or after the byte before the block, to the first such separator of
// the next block. Regions therefore meet at separators and every token is whole; a token longer than a block is read by
// the block it starts in, and the blocks it covers have no region.
bool TextEncoder::Worker::read_region(const ReadBytes& read, int64_t block, int64_t size, bool skip_mark,
                                      Segment& segment, Region& region) {
  const auto failed = [&](Fault fault, int error, int64_t offset) {
    segment.failure.fault = fault;
    segment.failure.error = error;
    segment.failure.offset = offset;
    return false;
  };
  const int64_t block_bytes = options.block_bytes;
  const int64_t from = std::max<int64_t>(block * block_bytes - 1, 0);
  const int64_t until = std::min((block + 1) * block_bytes, size);  // one past the first byte of the end's search
  int64_t filled = 0;
  const auto fill = [&](int64_t wanted) {  // bytes [from, from + wanted) of the source
    if (static_cast<int64_t>(buffer_.size()) < wanted + kPadding)
      buffer_.resize(static_cast<size_t>(wanted + kPadding));
    while (filled < wanted) {
      const int64_t n = read(from + filled, buffer_.data() + filled, wanted - filled);
      if (n <= 0) return failed(n < 0 ? Fault::read_failed : Fault::shrank, static_cast<int>(-n), from + filled);
      filled += n;
    }
    return true;
  };
  const auto ends_token = [&](int64_t i) { return separators.ends_token(buffer_[static_cast<size_t>(i)]); };
  if (!fill(until - from)) return false;

  int64_t start = 0;  // start and end are relative to `from`
  if (block > 0) {
    const int64_t last = until - from - (until == size ? 0 : 1);
    while (start < last && !ends_token(start)) ++start;
    if (start == last) return false;
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
          segment.failure.bytes.assign(buffer_.data() + end - block_bytes, 16);
          return failed(Fault::long_token, 0, from + end);
        }
        // 1/8 more each time: a very long token costs a few passes, an ordinary one a page
        if (!fill(std::min(filled + std::max<int64_t>(4096, filled / 8), size - from))) return false;
      }
    }
    if (end + from < size) ++end;  // the separator itself, which may be a newline
  }
  if (skip_mark && end >= 3 && !std::memcmp(buffer_.data(), "\xEF\xBB\xBF", 3)) start = 3;
  // Bytes behind the region were read for the search only: separators overwrite them.
  if (static_cast<int64_t>(buffer_.size()) < end + kPadding) buffer_.resize(static_cast<size_t>(end + kPadding));
  std::fill_n(buffer_.begin() + end, kPadding, separators.token);
  region = {from, start, end};
  return true;
}

bool TextEncoder::Worker::tokenise(const Region& region) {
  const char* const begin = buffer_.data() + region.start;
  const int64_t length = region.end - region.start;
  if (length + 1 > n_allocated_) {
    n_allocated_ = std::max(length + 1, options.block_bytes + options.block_bytes / 4 + 1);
    entries.reset(new int32_t[static_cast<size_t>(n_allocated_)]);
  }
  n_entries = 0;
  n_batch_ = 0;
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

// Functions on the way of every token are inline: without it, GCC 12 reads 5 % fewer bytes a second.
inline bool TextEncoder::Worker::push(const char* bytes, uint32_t length, int64_t position) {
  WordTable::Key& key = batch_[n_batch_];
  key = WordTable::key(bytes, length);
  key.position = position;
  (frozen ? *frozen : table).prefetch(key.hash);
  return ++n_batch_ < kBatch || flush();
}

inline bool TextEncoder::Worker::push_without_ignored(const char* start, const char* end, const char* begin) {
  if (!flush()) return false;
  scratch_.clear();
  for (const char* at = start; at < end; ++at) {
    if (*at != separators.ignored) scratch_ += *at;
  }
  const size_t length = scratch_.size();
  scratch_.append(WordTable::kInline, '\0');
  if (!length) return true;
  return push(scratch_.data(), static_cast<uint32_t>(length), start - begin) && flush();  // before scratch_ changes
}

inline bool TextEncoder::Worker::flush() {
  const int n = std::exchange(n_batch_, 0);
  int32_t* out = entries.get() + n_entries;
  if (frozen) {
    for (int k = 0; k < n; ++k) {
      const WordTable::Slot* slot = frozen->find(batch_[k]);
      if (slot) {
        out[k] = slot->id;
      } else {
        n_entries += k;  // fail() counts the documents before this token
        out[k] = mended(batch_[k]);
        if (failure.fault != Fault::none) return false;
        n_entries -= k;
      }
      ++frozen_counts[static_cast<size_t>(out[k] - kDropped)];
    }
  } else {
    for (int k = 0; k < n; ++k) {
      WordTable::Slot* slot = table.find(batch_[k]);
      if (!slot) [[unlikely]] {
        n_entries += k;  // fail() counts the documents before this token
        out[k] = add(batch_[k]);
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

// The id of a token whose bytes are not a frozen word: ill-formed bytes may be one once U+FFFD replaces them.
inline int32_t TextEncoder::Worker::mended(const WordTable::Key& key) {
  if (is_text({key.bytes, key.length})) return kDropped;
  if (options.errors == Errors::strict) fail(Fault::bad_bytes, key.bytes, key.length, key.position);
  if (options.errors != Errors::replace) return kDropped;
  std::string padded;
  const WordTable::Slot* slot = frozen->find(padded_key(replaced({key.bytes, key.length}), padded));
  return slot ? slot->id : kDropped;
}

// Counts a token whose bytes are not in the table and returns its id. Ill-formed bytes get no slot.
inline int32_t TextEncoder::Worker::add(const WordTable::Key& key) {
  if (is_text({key.bytes, key.length})) {
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
  const WordTable::Key mended = padded_key(replaced({key.bytes, key.length}), padded);
  if (WordTable::Slot* slot = table.find(mended)) {
    ++slot->count;
    return slot->id;
  }
  return add(mended);
}

inline bool TextEncoder::Worker::fail(Fault fault, const char* bytes, int64_t length, int64_t position) {
  failure.fault = fault;
  failure.offset = position;
  failure.document = std::count(entries.get(), entries.get() + n_entries, kNewline);
  failure.bytes.assign(bytes, static_cast<size_t>(std::min<int64_t>(length, 64)));
  return false;
}

int64_t TextEncoder::Worker::pack() {
  if (static_cast<int64_t>(packed.size()) < 2 * n_entries) packed.resize(static_cast<size_t>(2 * n_entries));
  uint16_t* to = packed.data();
  for (int64_t k = 0; k < n_entries; ++k) to = packing::put(to, entries[static_cast<size_t>(k)]);
  return to - packed.data();
}

std::shared_ptr<const uint16_t> TextEncoder::Worker::keep(int64_t n) {
  if (n > slab_left_) {
    const int64_t n_slab = std::max<int64_t>(n, 2 * huge_page / sizeof(uint16_t));
    const size_t bytes = static_cast<size_t>(n_slab) * sizeof(uint16_t);
    slab_ = {static_cast<uint16_t*>(allocate(bytes)), [bytes](uint16_t* memory) { release(memory, bytes); }};
    slab_left_ = n_slab;
  }
  std::shared_ptr<uint16_t> to = slab_;
  std::copy_n(packed.data(), n, to.get());
  slab_ = {slab_, slab_.get() + n};
  slab_left_ -= n;
  return to;
}

void TextEncoder::Worker::forget() {
  WordTable().swap(table);
  std::vector<char>().swap(buffer_);
  std::vector<uint16_t>().swap(packed);
  entries.reset();
  n_allocated_ = n_entries = 0;
  slab_.reset();
  slab_left_ = 0;
}

std::vector<WordTable::Slot*> TextEncoder::Worker::words_by_id() {
  std::vector<WordTable::Slot*> slots(static_cast<size_t>(table.n_words));
  for (WordTable::Slot& slot : table) {
    if (slot.length && slot.id >= 0) slots[static_cast<size_t>(slot.id)] = &slot;
  }
  return slots;
}

// word2vec.c's ReduceVocab: drops words seen min_reduce_ times or less, then raises min_reduce_.
inline void TextEncoder::Worker::prune() {
  WordTable kept;
  add_specials(kept, separators);
  std::string padded;
  for (const WordTable::Slot* slot : words_by_id()) {
    if (static_cast<int64_t>(slot->count) <= min_reduce_) continue;
    kept.insert(padded_key(table.word(*slot), padded), kept.n_words++)->count = slot->count;
  }
  table.swap(kept);
  ++min_reduce_;
}

}  // namespace embfast
