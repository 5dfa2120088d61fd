// Edges of a graph: lines of text to pairs of node numbers, and pairs to sorted rows (CSR).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/pages.h"
#include "core/words.h"
#include "text/utf8.h"

namespace embfast {

// Reads lines `node node [weight]`, separated by spaces or tabs; skips empty lines and lines that begin with # or %.
// Nodes are numbered by first occurrence. The text arrives in pieces of any size.
class EdgeReader {
 public:
  enum class Fault { none, columns, weight, name, number, too_many_nodes };
  enum class Weights { as_found, read, ignored };
  struct Failure {
    Fault fault = Fault::none;
    int64_t line = 0;                 // from 1
    int64_t found = 0, expected = 0;  // columns
    std::string bytes;                // the first bytes of the fault
  };

  // numbered: nodes are numbers 1..numbered, stored minus 1; 0: nodes are names. first_line: number of the first line,
  // for messages.
  EdgeReader(Weights weights, int64_t numbered, int64_t first_line);
  // False after a fault. end() also reads a last line without newline.
  bool add_bytes(const char* bytes, int64_t n);
  bool end();

  const Failure& failure() const { return failure_; }
  bool weighted() const { return columns_ == 3 && weights_ != Weights::ignored; }
  std::string names() const;  // one per line

  std::vector<int32_t> sources, targets;  // of the lines read since the caller last took them
  std::vector<float> weights;             // same length, or empty

 private:
  bool read_lines(const char* begin, const char* end);
  bool read_line(const char* at, const char* end);
  bool node(const char* begin, const char* end, int32_t& number);
  bool fail(Fault fault, const char* begin, const char* end);

  Weights weights_;
  int64_t numbered_, line_;
  int columns_ = 0;  // of the first edge; all others must have the same
  WordTable table_;
  std::string pending_;
  Failure failure_;
};

struct Csr {
  PagedVector<int64_t> offsets;
  PagedVector<int32_t> neighbours;
  PagedVector<float> weights;  // empty: all 1
  int64_t n_repeated = 0;      // entries that an earlier edge already made
  int32_t repeated[2] = {-1, -1};
};

// Rows sorted by neighbour. both_ways: every edge is in the rows of both its ends, a self loop once. A repeated edge
// adds its weight (1 without weights), or is ignored with keep_first. Node numbers are not checked.
Csr csr(const int32_t* sources, const int32_t* targets, const float* weights, int64_t n_edges, int64_t n_nodes,
        bool both_ways, bool keep_first);

// Whether every entry has a counterpart with the same weight; if not, mirror_of receives one that has none.
bool symmetric(const int64_t* offsets, const int32_t* neighbours, const float* weights, int64_t n_nodes,
               int32_t* mirror_of);

}  // namespace embfast
