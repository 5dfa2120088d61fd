// Text to ids: tokens counted and encoded in one pass over the bytes, by any number of threads, with one result.
// Source of the rules: ReadWord, SortVocab and ReduceVocab of word2vec.c (Mikolov et al. 2013).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/words.h"

namespace embfast {

// Whether these bytes are UTF-8 without a NUL; fewer than 2^32 of them.
bool is_text(std::string_view bytes);

class TextEncoder {
 public:
  enum class Errors { strict, replace, skip };
  enum class Fault { none, bad_bytes, long_token, too_many_words, read_failed, shrank, spill_failed };
  struct Options {
    int n_threads;
    int64_t block_bytes;   // what one thread takes at a time
    int64_t memory_bytes;  // provisional ids kept in memory, packed; the rest goes to spill_fd
    int spill_fd;
    Errors errors;
    int64_t max_distinct;  // distinct words at which to stop, or to prune
    bool tokens;   // bytes 0xFE and 0xFF, which no UTF-8 holds, end a token and a document, and nothing else does
    bool pruning;  // counts only, one thread, dropping rare words at max_distinct as ReduceVocab does
  };
  struct Failure {
    Fault fault = Fault::none;
    int64_t offset = 0;    // in its source, bytes
    int64_t document = 0;  // complete documents before it, in all sources
    int error = 0;         // errno
    std::string bytes;     // the token's first bytes
  };
  struct Vocabulary {
    std::vector<int32_t> order;  // provisional id of word 0, 1, ...
    std::vector<int64_t> counts;
    int64_t n_tokens = 0, n_distinct = 0, largest_count = 0;
  };

  explicit TextEncoder(const Options& options);
  ~TextEncoder();

  // Only these words from now on, numbered as they come; a word given twice keeps its first number.
  void set_words(const std::vector<std::string_view>& words);
  // Bytes [begin, end) of an open file of `size` bytes; begin is a multiple of block_bytes. end == size ends the
  // source. All three return false after a fault, which failure() describes: the first in the text, whatever the
  // threads did.
  bool add_file(int fd, int64_t begin, int64_t end, int64_t size);
  bool add_bytes(const char* data, int64_t n);
  bool end_source();  // after the last add_bytes of a source: what follows the last newline is a document too
  const Failure& failure() const { return failure_; }
  int64_t n_documents() const { return n_documents_; }
  int64_t n_newlines() const { return n_newlines_; }

  // Words that occur min_count times or are in `keep`, most frequent first, ties by first occurrence; at most max_vocab
  // (0: any number) but for those of `keep`. fixed: the words of set_words in their order, whatever their counts.
  const Vocabulary& select(int64_t min_count, int64_t max_vocab, const std::vector<std::string_view>& keep, bool fixed);
  std::string_view word(int64_t rank) const;
  int64_t n_tokens() const { return vocabulary_.n_tokens; }
  // ids (vocabulary.n_tokens) and offsets (n_documents + 1) of the selected words. Comes last, since it gives back what
  // it has read: words and provisional ids are gone afterwards. False: the spill file failed.
  bool write(int32_t* ids, int64_t* offsets);

 private:
  struct Worker;
  struct Segment {
    std::shared_ptr<const uint16_t> packed;  // provisional ids, kNewline and kDropped, when kept in memory
    int64_t spilled_at = -1, n_packed = 0, n_documents = 0;
    int32_t first_word = 0, end_word = 0;  // ids that the worker handed out here
    int worker = 0;
    Failure failure;
  };
  template <class Read>
  bool add_blocks(const Read& read, int64_t first_block, int64_t n_blocks, int64_t size, int64_t origin);
  int64_t n_distinct() const;  // words of all workers, while none of them runs; slow
  void merge();

  Options options_;
  std::vector<Worker*> workers_;
  std::vector<Segment> segments_;
  WordTable frozen_, merged_;
  bool is_frozen_ = false;
  enum class State { reading, selected, written } state_ = State::reading;
  std::atomic<int64_t> memory_used_{0}, spilled_{0};
  std::atomic<int64_t> distinct_{0};  // a word that several workers have seen counts as several
  int64_t next_count_ = 0;            // above this many distinct_ the words are counted
  Failure failure_;
  int64_t n_documents_ = 0, n_newlines_ = 0;
  std::string pending_;  // add_bytes: what follows the last separator
  int64_t source_bytes_ = 0;
  bool line_open_ = false;                       // add_bytes: something but CR follows the last newline
  std::vector<std::vector<int32_t>> global_id_;  // worker's id -> id in merged_; empty: the same
  std::vector<const WordTable::Slot*> slot_of_;
  std::vector<int64_t> global_count_;
  std::vector<int32_t> rank_of_;  // provisional id -> rank, or -1
  Vocabulary vocabulary_;
};

}  // namespace embfast
