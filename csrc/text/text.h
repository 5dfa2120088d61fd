// Text to ids: tokens are counted and encoded in one pass over the bytes. The result is the same for any number of
// threads. Source of the rules: ReadWord, SortVocab and ReduceVocab of word2vec.c (Mikolov et al. 2013).
// read.cpp cuts sources into blocks, worker.cpp is one thread's part of that, select.cpp merges the threads' tables and
// selects the vocabulary, write.cpp writes the ids.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/words.h"

namespace embfast {

// Reads up to n bytes at an offset of a source; returns the number of bytes, or -errno.
using ReadBytes = std::function<int64_t(int64_t offset, char* bytes, int64_t n)>;

class TextEncoder {
 public:
  enum class Errors { strict, replace, skip };
  enum class Fault { none, bad_bytes, long_token, too_many_words, read_failed, shrank, spill_failed };
  struct Options {
    int n_threads;
    int64_t block_bytes;   // a thread takes one block at a time
    int64_t memory_bytes;  // packed provisional ids kept in memory; the rest goes to spill_fd
    int spill_fd;
    Errors errors;
    int64_t max_distinct;  // number of distinct words at which to stop, or to prune
    bool tokens;           // only the bytes 0xFE and 0xFF, which UTF-8 never uses, end a token and a document
    bool pruning;          // only count, in one thread, and drop rare words at max_distinct as ReduceVocab does
  };
  struct Failure {
    Fault fault = Fault::none;
    int64_t offset = 0;    // byte in its source
    int64_t document = 0;  // number of complete documents before it, in all sources
    int error = 0;         // errno
    std::string bytes;     // first bytes of the token
  };
  struct Vocabulary {
    std::vector<int32_t> order;  // provisional ids of word 0, 1, ...
    std::vector<int64_t> counts;
    int64_t n_tokens = 0, n_distinct = 0, largest_count = 0;
  };

  explicit TextEncoder(const Options& options);
  ~TextEncoder();

  // Fixes the vocabulary to these words in this order; a word given twice keeps its first number.
  void set_words(const std::vector<std::string_view>& words);
  // Adds bytes [begin, end) of an open file of `size` bytes; begin is a multiple of block_bytes. end == size ends the
  // source. All three functions return false after a fault, which failure() describes: the first one in the text, for
  // any number of threads.
  bool add_file(int fd, int64_t begin, int64_t end, int64_t size);
  bool add_bytes(const char* data, int64_t n);
  bool end_source();  // comes after the last add_bytes of a source: text behind the last newline is a document too
  const Failure& failure() const { return failure_; }
  int64_t n_documents() const { return n_documents_; }
  int64_t n_newlines() const { return n_newlines_; }

  // Selects the words that occur min_count times or are in `keep`, most frequent first, ties by first occurrence. Above
  // max_vocab words (0: no limit) the rarest are dropped, except those in `keep`. fixed: selects the words of set_words
  // in their order, for any counts.
  const Vocabulary& select(int64_t min_count, int64_t max_vocab, const std::vector<std::string_view>& keep, bool fixed);
  std::string_view word(int64_t rank) const;
  int64_t n_tokens() const { return vocabulary_.n_tokens; }
  // Writes ids (n_tokens) and offsets (n_documents + 1) of the selected words. Comes last: it frees words and
  // provisional ids on the way. False: the spill file could not be read back.
  bool write(int32_t* ids, int64_t* offsets);

 private:
  struct Worker;
  struct Segment {
    std::shared_ptr<const uint16_t> packed;  // provisional ids, kNewline and kDropped, if kept in memory
    int64_t spilled_at = -1, n_packed = 0, n_documents = 0;
    int32_t first_word = 0, end_word = 0;  // ids that the worker assigned to new words here
    int worker = 0;
    Failure failure;
  };
  struct Renumbered;
  // Reads blocks of a source of `size` bytes in all threads; `origin` is the number of its bytes before offset 0.
  bool add_blocks(const ReadBytes& read, int64_t first_block, int64_t n_blocks, int64_t size, int64_t origin);
  void read_block(Worker& worker, const ReadBytes& read, int64_t block, int64_t size, bool skip_mark, Segment& segment);
  int64_t n_distinct() const;  // number of distinct words of all workers, while none of them runs; slow
  void merge();
  std::vector<std::vector<int32_t>> rank_tables() const;
  bool renumber(Segment& segment, const int32_t* ranks, Renumbered& out) const;

  Options options_;
  std::vector<Worker*> workers_;
  std::vector<Segment> segments_;
  WordTable frozen_, merged_;
  bool is_frozen_ = false;
  enum class State { reading, selected, written } state_ = State::reading;
  std::atomic<int64_t> memory_used_{0}, spilled_{0};
  std::atomic<int64_t> distinct_{0};  // a word seen by several workers counts once for each
  int64_t next_count_ = 0;            // above this value of distinct_, n_distinct() is called
  Failure failure_;
  int64_t n_documents_ = 0, n_newlines_ = 0;
  std::string pending_;  // add_bytes: bytes behind the last separator
  int64_t source_bytes_ = 0;
  bool line_open_ = false;                       // add_bytes: bytes other than CR follow the last newline
  std::vector<std::vector<int32_t>> global_id_;  // worker's id -> id in merged_; empty: they are equal
  std::vector<const WordTable::Slot*> slot_of_;
  std::vector<int64_t> global_count_;
  std::vector<int32_t> rank_of_;  // provisional id -> rank, or -1
  Vocabulary vocabulary_;
};

}  // namespace embfast
