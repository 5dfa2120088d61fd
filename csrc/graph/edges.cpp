#include "graph/edges.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace embfast {
namespace {

constexpr size_t kPadding = 16;  // WordTable::key reads past a short name

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r'; }

}  // namespace

EdgeReader::EdgeReader(Weights weights, int64_t numbered, int64_t first_line)
    : weights_(weights), numbered_(numbered), line_(first_line - 1) {}

bool EdgeReader::add_bytes(const char* bytes, int64_t n) {
  if (failure_.fault != Fault::none) return false;
  pending_.append(bytes, static_cast<size_t>(n));
  const size_t last = pending_.rfind('\n');
  if (last == std::string::npos) return true;
  const size_t size = pending_.size();
  pending_.append(kPadding, '\0');
  const bool fine = read_lines(pending_.data(), pending_.data() + last + 1);
  pending_.resize(size);
  pending_.erase(0, last + 1);
  return fine;
}

bool EdgeReader::end() { return pending_.empty() || add_bytes("\n", 1); }

bool EdgeReader::read_lines(const char* begin, const char* end) {
  while (begin < end) {
    const char* newline = static_cast<const char*>(std::memchr(begin, '\n', static_cast<size_t>(end - begin)));
    ++line_;
    if (!read_line(begin, newline)) return false;
    begin = newline + 1;
  }
  return true;
}

bool EdgeReader::read_line(const char* at, const char* end) {
  const char* begin = at;
  const char* field[4][2];
  int n = 0;
  for (;;) {
    while (at < end && is_space(*at)) ++at;
    if (at == end) break;
    if (n == 0 && (*at == '#' || *at == '%')) return true;
    field[std::min(n, 3)][0] = at;
    while (at < end && !is_space(*at)) ++at;
    field[std::min(n, 3)][1] = at;
    ++n;
  }
  if (n == 0) return true;
  const int first = columns_ ? columns_ : weights_ == Weights::read ? 3 : n;
  if (n != first || n < 2 || n > 3) {
    failure_.found = n, failure_.expected = columns_ || weights_ == Weights::read ? first : 0;
    return fail(Fault::columns, begin, end);
  }
  columns_ = n;
  float weight = 1.0f;
  if (weighted()) {
    const char* number = field[2][0] + (*field[2][0] == '+');
    const auto [stop, error] = std::from_chars(number, field[2][1], weight);
    if (error != std::errc() || stop != field[2][1] || !(weight > 0.0f) || !std::isfinite(weight)) {
      return fail(Fault::weight, field[2][0], field[2][1]);
    }
  }
  int32_t from = 0, to = 0;
  if (!node(field[0][0], field[0][1], from) || !node(field[1][0], field[1][1], to)) return false;
  sources.push_back(from);
  targets.push_back(to);
  if (weighted()) weights.push_back(weight);
  return true;
}

bool EdgeReader::node(const char* begin, const char* end, int32_t& number) {
  if (numbered_) {
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc() || stop != end || value < 1 || value > numbered_) {
      failure_.expected = numbered_;
      return fail(Fault::number, begin, end);
    }
    number = static_cast<int32_t>(value - 1);
    return true;
  }
  constexpr int64_t longest = 1 << 30;
  if (end - begin > longest) return fail(Fault::name, begin, end);
  const WordTable::Key key = WordTable::key(begin, static_cast<uint32_t>(end - begin));
  if (const WordTable::Slot* slot = table_.find(key)) {
    number = slot->id;
    return true;
  }
  if (!is_text({begin, static_cast<size_t>(end - begin)})) return fail(Fault::name, begin, end);
  if (table_.n_words == std::numeric_limits<int32_t>::max()) return fail(Fault::too_many_nodes, begin, end);
  number = table_.n_words++;
  table_.insert(key, number);
  return true;
}

bool EdgeReader::fail(Fault fault, const char* begin, const char* end) {
  failure_.fault = fault;
  failure_.line = line_;
  failure_.bytes.assign(begin, static_cast<size_t>(std::min<int64_t>(end - begin, 80)));
  return false;
}

std::string EdgeReader::names() const {
  std::vector<const WordTable::Slot*> slot_of(static_cast<size_t>(table_.n_words));
  size_t size = 0;
  for (const WordTable::Slot* slot = table_.begin(); slot < table_.end(); ++slot) {
    if (!slot->length) continue;
    slot_of[static_cast<size_t>(slot->id)] = slot;
    size += slot->length + 1;
  }
  std::string text;
  text.reserve(size);
  for (const WordTable::Slot* slot : slot_of) {
    text += table_.word(*slot);
    text += '\n';
  }
  return text;
}

Csr csr(const int32_t* sources, const int32_t* targets, const float* weights, int64_t n_edges, int64_t n_nodes,
        bool both_ways, bool keep_first) {
  Csr graph;
  PagedVector<int64_t>& offsets = graph.offsets;
  offsets.assign(static_cast<size_t>(n_nodes) + 1, 0);
  // Row r is counted at r + 2 and then filled from offsets[r + 1], which ends at the beginning of row r + 1.
  const auto each = [&](const auto& take) {
    for (int64_t i = 0; i < n_edges; ++i) {
      take(sources[i], targets[i], i);
      if (both_ways && sources[i] != targets[i]) take(targets[i], sources[i], i);
    }
  };
  int64_t n = 0;
  each([&](int32_t row, int32_t, int64_t) {
    ++n;
    if (row + int64_t{2} <= n_nodes) ++offsets[static_cast<size_t>(row) + 2];
  });
  for (size_t i = 1; i < offsets.size(); ++i) offsets[i] += offsets[i - 1];
  graph.neighbours.resize(static_cast<size_t>(n));
  if (weights) graph.weights.resize(static_cast<size_t>(n));
  each([&](int32_t row, int32_t neighbour, int64_t i) {
    const auto place = static_cast<size_t>(offsets[static_cast<size_t>(row) + 1]++);
    graph.neighbours[place] = neighbour;
    if (weights) graph.weights[place] = weights[i];
  });

  std::vector<std::pair<int32_t, float>> entries;  // one row
  const auto sort_row = [&](int64_t begin, int64_t end) {
    int32_t* const ids = graph.neighbours.data();
    if (std::is_sorted(ids + begin, ids + end)) return;
    if (!weights) {
      std::sort(ids + begin, ids + end);
      return;
    }
    entries.clear();
    for (int64_t i = begin; i < end; ++i) entries.emplace_back(ids[i], graph.weights[static_cast<size_t>(i)]);
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (int64_t i = begin; i < end; ++i) {
      ids[i] = entries[static_cast<size_t>(i - begin)].first;
      graph.weights[static_cast<size_t>(i)] = entries[static_cast<size_t>(i - begin)].second;
    }
  };
  for (int64_t row = 0; row < n_nodes; ++row) {
    const int64_t begin = offsets[static_cast<size_t>(row)], end = offsets[static_cast<size_t>(row) + 1];
    sort_row(begin, end);
    for (int64_t i = begin + 1; i < end; ++i) {
      if (graph.neighbours[static_cast<size_t>(i)] != graph.neighbours[static_cast<size_t>(i - 1)]) continue;
      if (!graph.n_repeated++) {
        graph.repeated[0] = static_cast<int32_t>(row);
        graph.repeated[1] = graph.neighbours[static_cast<size_t>(i)];
      }
    }
  }
  if (!graph.n_repeated) return graph;

  if (!weights && !keep_first) graph.weights.assign(static_cast<size_t>(n), 1.0f);
  const bool sums = !keep_first, carries = !graph.weights.empty();
  int64_t kept = 0, begin = 0;
  for (int64_t row = 0; row < n_nodes; ++row) {
    const int64_t end = offsets[static_cast<size_t>(row) + 1], first = kept;
    double sum = 0.0;  // so that both rows of an edge round the same sum
    for (int64_t i = begin; i < end; ++i) {
      const auto from = static_cast<size_t>(i);
      const bool again = kept > first && graph.neighbours[static_cast<size_t>(kept - 1)] == graph.neighbours[from];
      if (again && !sums) continue;
      if (!again) graph.neighbours[static_cast<size_t>(kept++)] = graph.neighbours[from];
      if (!carries) continue;
      sum = again ? sum + graph.weights[from] : graph.weights[from];
      graph.weights[static_cast<size_t>(kept - 1)] = static_cast<float>(sum);
    }
    begin = end;
    offsets[static_cast<size_t>(row) + 1] = kept;
  }
  graph.neighbours.resize(static_cast<size_t>(kept));
  if (carries) graph.weights.resize(static_cast<size_t>(kept));
  return graph;
}

bool symmetric(const int64_t* offsets, const int32_t* neighbours, const float* weights, int64_t n_nodes,
               int32_t* mirror_of) {
  // Rows are visited in order, so the counterparts of row v's entries come in the order of row v: one cursor per row.
  std::vector<int64_t> next(offsets, offsets + n_nodes);
  for (int64_t row = 0; row < n_nodes; ++row) {
    for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      const int32_t other = neighbours[i];
      const int64_t mirror = next[static_cast<size_t>(other)]++;
      if (mirror < offsets[other + 1] && neighbours[mirror] == row && (!weights || weights[mirror] == weights[i])) {
        continue;
      }
      mirror_of[0] = static_cast<int32_t>(row), mirror_of[1] = other;
      return false;
    }
  }
  return true;
}

}  // namespace embfast
