// Edges of a graph: lines of text to pairs of node numbers, and pairs to sorted rows (CSR).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/pages.h"
#include "text/utf8.h"
#include "core/words.h"

namespace embfast {

// Reads lines `node node [weight]` with spaces or tabs between; empty lines and those that begin with # or % are passed
// over. Nodes get numbers in the order of first sight. The text comes in pieces of any size.
class EdgeReader {
 public:
  enum class Fault { none, columns, weight, name, number, too_many_nodes };
  enum class Weights { as_found, read, ignored };
  struct Failure {
    Fault fault = Fault::none;
    int64_t line = 0;                 // from 1
    int64_t found = 0, expected = 0;  // columns
    std::string bytes;                // the first ones of what is wrong
  };

  // numbered: nodes are numbers 1..numbered and keep them, less 1; 0: names. first_line: its number, for messages.
  EdgeReader(Weights weights, int64_t numbered, int64_t first_line);
  // False after a fault. The second ends the text: a last line without newline counts too.
  bool add_bytes(const char* bytes, int64_t n);
  bool end();

  const Failure& failure() const { return failure_; }
  bool weighted() const { return columns_ == 3 && weights_ != Weights::ignored; }
  std::string names() const;  // each followed by a newline

  std::vector<int32_t> sources, targets;  // of the lines read since the caller last took them
  std::vector<float> weights;             // as many, or none

 private:
  bool read_lines(const char* begin, const char* end);
  bool read_line(const char* at, const char* end);
  bool node(const char* begin, const char* end, int32_t& number);
  bool fail(Fault fault, const char* begin, const char* end);

  Weights weights_;
  int64_t numbered_, line_;
  int columns_ = 0;  // of the first edge; all others have as many
  WordTable table_;
  std::string pending_;
  Failure failure_;
};

struct Csr {
  PagedVector<int64_t> offsets;
  PagedVector<int32_t> neighbours;
  PagedVector<float> weights;  // empty: all weigh 1
  int64_t n_repeated = 0;      // entries of `neighbours` that an edge listed before already made
  int32_t repeated[2] = {-1, -1};
};

// Rows sorted by neighbour; both_ways: every edge stands in the rows of both its ends, a self loop once. An edge listed
// again adds its weight (1 without weights), or with keep_first changes nothing. Numbers of nodes are not checked.
Csr csr(const int32_t* sources, const int32_t* targets, const float* weights, int64_t n_edges, int64_t n_nodes,
        bool both_ways, bool keep_first);

// Whether every entry has its mirror image with the same weight; else mirror_of gets one that has none.
bool symmetric(const int64_t* offsets, const int32_t* neighbours, const float* weights, int64_t n_nodes,
               int32_t* mirror_of);

}  // namespace embfast
