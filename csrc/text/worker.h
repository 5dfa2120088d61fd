// What one thread of a TextEncoder owns: its word table, its read buffer and its provisional ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/words.h"
#include "text/text.h"

namespace embfast {

constexpr int32_t kNewline = -1, kDropped = -2;
constexpr int64_t kLongestToken = (int64_t{1} << 30) - 1;

// Provisional ids in 16-bit units: kNewline is 0, kDropped 1, word k is k + 2. From 2^15 on an id takes two units, the
// first with its top bit set.
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

// Bytes that end a token or a document. `ignored` (CR) ends nothing, but it is cut out of a word.
struct Separators {
  char token, other_token, document, ignored;
  bool ends_token(char c) const { return c == token || c == other_token || c == document; }
  uint64_t find(const char* bytes) const;  // bit i: byte i of 64 is one of the four
};

inline uint64_t Separators::find(const char* bytes) const {
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

constexpr Separators kText{' ', '\t', '\n', '\r'};
constexpr Separators kTokens{'\xFE', '\xFE', '\xFF', '\xFE'};

// The key of a word; `padded` holds its bytes, followed by the zeros that WordTable::key may read.
WordTable::Key padded_key(std::string_view word, std::string& padded);
// Newlines go through the table like words, so the loop over tokens needs no branch for them. </s> is word2vec.c's name
// for a newline and cannot be a word.
void add_specials(WordTable& table, const Separators& separators);

struct TextEncoder::Worker {
  Worker(const Options& options, const WordTable* frozen);

  const Options& options;
  const WordTable* frozen;  // nullptr: new words are added to `table`
  Separators separators;
  WordTable table;
  std::vector<int64_t> frozen_counts;  // indexed by id - kDropped
  Failure failure;
  std::unique_ptr<int32_t[]> entries;  // provisional ids of the last region, kNewline and kDropped
  int64_t n_entries = 0;
  std::vector<uint16_t> packed;  // the same, packed

  struct Region {
    int64_t from, start, end;  // bytes [start, end) of the buffer, whose first byte is at `from` in the source
  };
  // Reads a block of a source of `size` bytes into the buffer and finds its region. False: the block has none, or the
  // source failed, as segment.failure says.
  bool read_region(const ReadBytes& read, int64_t block, int64_t size, bool skip_mark, Segment& segment,
                   Region& region);
  // Turns a region into entries. False: a fault, as `failure` says.
  bool tokenise(const Region& region);
  // Packs the entries: 2 bytes each, or 4 for words numbered 2^15 - 2 and up. Returns the number of 16-bit units.
  int64_t pack();
  // A copy of the packed entries. Copies share huge pages, which are released with the last copy in them.
  std::shared_ptr<const uint16_t> keep(int64_t n);
  // Frees what only reading needs.
  void forget();
  std::vector<WordTable::Slot*> words_by_id();

 private:
  static constexpr int kBatch = 64;  // keys whose slots are prefetched together

  bool push(const char* bytes, uint32_t length, int64_t position);
  bool push_without_ignored(const char* start, const char* end, const char* begin);
  bool flush();
  int32_t mended(const WordTable::Key& key);
  int32_t add(const WordTable::Key& key);
  bool fail(Fault fault, const char* bytes, int64_t length, int64_t position);
  void prune();

  int64_t min_reduce_ = 1;
  std::vector<char> buffer_;
  int64_t n_allocated_ = 0;
  std::shared_ptr<uint16_t> slab_;
  int64_t slab_left_ = 0;
  WordTable::Key batch_[kBatch];
  int n_batch_ = 0;
  std::string scratch_;
};

}  // namespace embfast
