// Lines of a key and decimal numbers (word2vec, fastText and GloVe text) to float32 and back.
// Source: std::from_chars rounds correctly; std::to_chars writes the fewest characters that read back to the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace embfast {

struct Line {
  int64_t begin, end;  // bytes of the text: the key of a plain line, otherwise the whole line
  int64_t row;         // row of its numbers; -1: the line is too short for dim numbers
  bool plain;
};

// Finds the lines of a text that ends with a newline. A line gets a row if it is long enough for a key and dim numbers.
std::vector<Line> find_lines(std::string_view text, int64_t dim);
// Parses the numbers of all lines into rows of `values`. A line is plain if it is a key and dim finite numbers,
// separated by white space; other lines keep their bounds. Numbers are as in C and within the range of float32: 1e-60
// is not plain.
void parse_lines(std::string_view text, int64_t dim, std::vector<Line>& lines, float* values, int threads);

struct Text {
  std::unique_ptr<char[]> bytes;
  int64_t size = 0;
};

// Formats float32 (n, dim) as lines, one Text per thread: a key, unless `keys` is empty, and the numbers, all separated
// by `separator`.
std::vector<Text> format_lines(const std::vector<std::string_view>& keys, const float* rows, int64_t n, int64_t dim,
                               char separator, int threads);

}  // namespace embfast
