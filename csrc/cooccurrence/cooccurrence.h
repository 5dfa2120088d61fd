// Counts co-occurrences of words in bounded memory: each pair within a window adds 1 / distance, or 1.
// Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162; pairs are defined as in their cooccur.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cooccurrence/entry.h"

namespace embfast {

// Counts the corpus in chunks of tokens. The centers of a chunk are listed by word; each word in turn accumulates its
// neighbours in a dense row, which is written in order of columns, so nothing is sorted and no single pair is stored. A
// corpus of one chunk becomes the matrix directly. Otherwise each chunk becomes a sorted run in the spill file, and the
// runs are merged row by row.
//
// Sums are integer multiples of 2^-bits, so they do not depend on the order of additions, the chunks or the threads.
class CooccurrenceCounter {
 public:
  struct Options {
    const int32_t* ids;
    const int64_t* offsets;  // n_documents + 1; windows do not cross document boundaries
    int64_t n_documents;
    int32_t n_words;
    int window;
    bool symmetric;           // count both directions; otherwise the row is the earlier word of a pair
    bool distance_weighting;  // a pair adds 1 / distance; otherwise 1
    int threads;
    int64_t buffer_bytes;  // size of the output buffer, at least 16 * (n_words + 1)
    int spill_fd;          // an empty file for the runs; -1 if the corpus is one chunk
    int out_fd;            // entries are written here, from byte out_begin on
    int64_t out_begin;
  };

  explicit CooccurrenceCounter(const Options& options);
  ~CooccurrenceCounter();

  // Lists the centers begin..end of the next chunk, at most 2^32. Returns false if an id in its windows is out of
  // range. `only`: the corpus is one chunk.
  bool start(int64_t begin, int64_t end, bool only);

  // Counts rows from `first` on until the buffer is full or all rows are done. Returns the row to continue with.
  // Throws std::system_error if a file cannot be written.
  int64_t count(int64_t first);

  // Merges the runs into the matrix, row by row, in the same way.
  int64_t merge(int64_t first);

  int64_t n_entries() const { return n_entries_; }

  // Bytes that a counter needs besides its buffer: per thread, for the vocabulary, and per token of a chunk.
  static int64_t bytes_per_thread(int64_t n_words) { return n_words * 13 + 64; }
  static int64_t bytes_of_words(int64_t n_words) { return (n_words + 1) * 8; }
  static constexpr int64_t bytes_per_token = 12;  // 8 for the center, 4 for the mapped id

 private:
  struct Center {
    uint32_t token;  // offset in the chunk
    uint16_t left, right;
  };
  struct Sums;
  struct Run;

  void count_row(int64_t row, Sums& sums) const;
  char* write_row(int64_t row, Sums& sums, char* to) const;
  void write(int fd, const char* data, size_t size, int64_t* at) const;

  Options options_;
  int bits_ = 0;
  std::vector<uint64_t> weight_;  // by distance
  int64_t begin_ = 0;
  bool only_ = false;
  std::vector<int64_t> first_center_;
  std::unique_ptr<Center[]> centers_;
  int64_t capacity_ = 0;
  std::vector<std::unique_ptr<Sums>> sums_;
  std::unique_ptr<char[]> buffer_;
  int64_t written_ = 0, spilled_ = 0, n_entries_ = 0;
  std::vector<std::unique_ptr<Run>> runs_;
};

}  // namespace embfast
