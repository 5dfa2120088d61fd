// Counts which words stand near which, in memory of a chosen size: sums over pairs of 1 / distance, or of 1.
// Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162; what is a pair is as in their cooccur.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace embfast {

// One entry of the matrix, as files hold it: 12 bytes.
struct Entry {
  int32_t row, column;
  float value;
};
static_assert(sizeof(Entry) == 12);

// The corpus is counted in chunks of tokens. A chunk's centers are listed by word; each word in turn adds up its
// neighbours in a dense row and writes them in order: there is nothing to sort, and no pair is stored alone. A corpus
// of one chunk becomes the matrix at once. Otherwise each chunk becomes a sorted run in the spill file, and the runs
// are merged row by row.
//
// Sums are whole numbers of 2^-bits: they do not depend on the order of adding, hence neither on chunks nor threads.
class CooccurrenceCounter {
 public:
  struct Options {
    const int32_t* ids;
    const int64_t* offsets;  // n_documents + 1; windows do not leave a document
    int64_t n_documents;
    int32_t n_words;
    int window;
    bool symmetric;           // both sides; otherwise the row is the earlier word of a pair, the column the later one
    bool distance_weighting;  // 1 / distance; otherwise 1
    int threads;
    int64_t buffer_bytes;  // of entries between two writes, at least 16 * (n_words + 1)
    int spill_fd;          // empty, for the runs; -1 when all is one chunk
    int out_fd;            // entries are written here from out_begin on
    int64_t out_begin;
  };

  explicit CooccurrenceCounter(const Options& options);
  ~CooccurrenceCounter();

  // Lists the centers begin..end of the next chunk, at most 2^32; false when one of the ids that it will read is no
  // word. `only`: the corpus is this chunk alone.
  bool start(int64_t begin, int64_t end, bool only);

  // Counts the rows from `first` on until the buffer is full or all are done; returns the row to go on with.
  // Throws std::system_error where a file cannot be written.
  int64_t count(int64_t first);

  // Merges the runs into the matrix, row by row, in the same way.
  int64_t merge(int64_t first);

  int64_t n_entries() const { return n_entries_; }

  // Bytes that a counter takes beside its buffer: for each thread, for the words, and for each token of a chunk.
  static int64_t bytes_per_thread(int64_t n_words) { return n_words * 13 + 64; }
  static int64_t bytes_of_words(int64_t n_words) { return (n_words + 1) * 8; }
  static constexpr int64_t bytes_per_token = 12;  // 8 of a center, 4 of the mapped id

 private:
  struct Center {
    uint32_t token;  // from the beginning of the chunk
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
