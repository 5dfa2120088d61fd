// Lines of a key and decimal numbers, as word2vec, fastText and GloVe write them, to float32 and back.
// Source: std::from_chars rounds correctly; std::to_chars writes the fewest characters that read back to the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace embfast {

struct Line {
  int64_t begin, end;  // in the text: of its key when it is plain, else of the whole line
  int64_t row;         // of its numbers; -1: too short to hold dim of them
  bool plain;
};

// The lines of a text that ends with a newline. A line gets a row when it is long enough for a key and dim numbers.
std::vector<Line> find_lines(std::string_view text, int64_t dim);
// Reads the numbers of all lines to rows of `values`. A line is plain when it is a key and dim finite numbers, with
// white space between; others keep their bounds. Numbers are as in C, and end where float32 does: 1e-60 is not plain.
void parse_lines(std::string_view text, int64_t dim, std::vector<Line>& lines, float* values, int threads);

struct Text {
  std::unique_ptr<char[]> bytes;
  int64_t size = 0;
};

// float32 (n, dim) as lines, in pieces: a key, `separator` and the numbers, with `separator` between. No keys: no key.
std::vector<Text> format_lines(const std::vector<std::string_view>& keys, const float* rows, int64_t n, int64_t dim,
                               char separator, int threads);

}  // namespace embfast
