// Each thread takes consecutive lines: it parses them into their rows, or formats them into a separate buffer.
#include "text/decimals.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/threads.h"

namespace embfast {
namespace {

constexpr int64_t kLongest = 15;                  // characters, of -1.17549435e-38
constexpr int64_t kMinBytesPerThread = 64 << 10;  // bytes of text; less is not worth starting a thread

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

int useful_threads(int threads, int64_t n_bytes, int64_t n_lines) {
  return static_cast<int>(std::clamp<int64_t>(std::min(n_bytes / kMinBytesPerThread, n_lines), 1, threads));
}

bool parse_line(const char* text, int64_t dim, Line& line, float* out) {
  const char *at = text + line.begin, *end = text + line.end;
  while (at < end && is_space(*at)) ++at;
  const char* const key = at;
  while (at < end && !is_space(*at)) ++at;
  const char* const key_end = at;
  for (int64_t d = 0; d < dim; ++d) {
    while (at < end && is_space(*at)) ++at;
    if (end - at > 1 && at[0] == '+' && at[1] != '-') ++at;  // from_chars rejects a plus
    const auto [stop, error] = std::from_chars(at, end, out[d]);
    if (error != std::errc{} || !std::isfinite(out[d]) || (stop < end && !is_space(*stop))) return false;
    at = stop;
  }
  while (at < end && is_space(*at)) ++at;
  if (at < end) return false;
  line.begin = key - text;
  line.end = key_end - text;
  return true;
}

}  // namespace

std::vector<Line> find_lines(std::string_view text, int64_t dim) {
  std::vector<Line> lines;
  int64_t n_rows = 0;
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at < end;) {
    const auto* newline = static_cast<const char*>(std::memchr(at, '\n', static_cast<size_t>(end - at)));
    if (!newline) newline = end;
    const bool fits = (newline - at) / 2 >= dim;  // a digit and a space per number, a character of the key
    lines.push_back({at - text.data(), newline - text.data(), fits ? n_rows++ : -1, false});
    at = newline + 1;
  }
  return lines;
}

void parse_lines(std::string_view text, int64_t dim, std::vector<Line>& lines, float* values, int threads) {
  const auto n = static_cast<int64_t>(lines.size());
  const int n_threads = useful_threads(threads, static_cast<int64_t>(text.size()), n);
  in_threads(n_threads, [&](int t) {
    for (int64_t i = n * t / n_threads; i < n * (t + 1) / n_threads; ++i) {
      Line& line = lines[static_cast<size_t>(i)];
      if (line.row >= 0) line.plain = parse_line(text.data(), dim, line, values + line.row * dim);
    }
  });
}

std::vector<Text> format_lines(const std::vector<std::string_view>& keys, const float* rows, int64_t n, int64_t dim,
                               char separator, int threads) {
  const int n_threads = useful_threads(threads, n * dim * 8, n);
  std::vector<Text> texts(static_cast<size_t>(n_threads));
  in_threads(n_threads, [&](int t) {
    const int64_t first = n * t / n_threads, last = n * (t + 1) / n_threads;
    int64_t most = (last - first) * ((kLongest + 1) * dim + 1);
    for (int64_t i = first; i < last && !keys.empty(); ++i) most += std::ssize(keys[static_cast<size_t>(i)]);
    Text& text = texts[static_cast<size_t>(t)];
    text.bytes.reset(new char[static_cast<size_t>(most)]);
    char* at = text.bytes.get();
    for (int64_t i = first; i < last; ++i) {
      if (!keys.empty()) {
        const std::string_view key = keys[static_cast<size_t>(i)];
        at = std::copy(key.begin(), key.end(), at);
      }
      for (int64_t d = 0; d < dim; ++d) {
        if (d || !keys.empty()) *at++ = separator;
        at = std::to_chars(at, at + kLongest, rows[i * dim + d]).ptr;
      }
      *at++ = '\n';
    }
    text.size = at - text.bytes.get();
  });
  return texts;
}

}  // namespace embfast
