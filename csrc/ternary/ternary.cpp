// Search of ternary rows: dot products tile by tile, in threads, and one heap per query.
#include "ternary/ternary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/isa.h"
#include "core/threads.h"

namespace embfast {

namespace {

struct Found {
  double key;
  int64_t row;
};

bool better(const Found& a, const Found& b) { return a.key > b.key || (a.key == b.key && a.row < b.row); }

// Keeps the best k rows above a floor. Rows are added in ascending order.
class Best {
 public:
  Best(int64_t k, double floor) : k_(static_cast<size_t>(k)), floor_(floor) {}

  double floor() const { return floor_; }
  const std::vector<Found>& found() const { return heap_; }

  void add(const Found& found) {  // requires a key above the floor
    if (heap_.size() == k_) {
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.back() = found;
    } else {
      heap_.push_back(found);
    }
    std::push_heap(heap_.begin(), heap_.end(), better);
    if (heap_.size() == k_) floor_ = std::max(floor_, heap_.front().key);
  }

 private:
  std::vector<Found> heap_;  // the worst row in front
  size_t k_;
  double floor_;  // only a key above it can enter
};

constexpr int64_t tile_words = 1 << 15;      // words of rows per tile, which all queries read in turn: 256 KB
constexpr int64_t words_a_thread = 1 << 20;  // less work does not pay for a thread
constexpr int64_t tile_products = 1 << 16;   // dot products per tile
constexpr double none = -std::numeric_limits<double>::infinity();

void search_rows(const TernarySearch& s, const uint64_t* queries, int64_t begin, int64_t end, Best* best) {
  const auto dots = EMBFAST_CHOOSE_POPCNT(dots);
  const int64_t fitting = std::min(tile_words / (2 * s.words), tile_products / s.m) / 4 * 4;
  const int64_t tile = std::max<int64_t>(4, std::min(fitting, end - begin));
  std::vector<int32_t> products(static_cast<size_t>(tile * s.m));
  for (int64_t r = begin; r < end; r += tile) {
    const int64_t n = std::min(tile, end - r);
    dots(queries, s.m, s.planes + 2 * s.words * r, n, s.words, products.data());
    for (int64_t q = 0; q < s.m; ++q) {
      const int64_t own = s.own ? s.own[q] - s.first : -1;
      double floor = best[q].floor();
      for (int64_t i = 0; i < n; ++i) {
        const double dot = products[static_cast<size_t>(q * n + i)], nonzeros = s.nonzeros[r + i];
        const double key = nonzeros > 0.0 ? dot * std::fabs(dot) / nonzeros : 0.0;
        if (!(key > floor) || r + i == own || (s.excluded && s.excluded[r + i])) continue;
        best[q].add({key, s.first + r + i});
        floor = best[q].floor();
      }
    }
  }
}

}  // namespace

void ternary_top(const TernarySearch& s, int threads) {
  if (s.n == 0 || s.m == 0 || s.k == 0) return;
  std::vector<uint64_t> memory(static_cast<size_t>(2 * s.words * s.m + 8));
  uint64_t* queries = memory.data();
  while (reinterpret_cast<uintptr_t>(queries) % 64) ++queries;
  for (int64_t q = 0; q < s.m; ++q) {
    const uint64_t *plus = s.queries + 2 * s.words * q, *minus = plus + s.words;
    uint64_t *nonzero = queries + 2 * s.words * q, *sign = nonzero + s.words;
    for (int64_t w = 0; w < s.words; ++w) nonzero[w] = plus[w] | minus[w], sign[w] = minus[w];
  }

  const int64_t work = s.m * s.n / words_a_thread * s.words + s.m * s.n % words_a_thread * s.words / words_a_thread;
  const int parts = static_cast<int>(std::min<int64_t>({threads, s.n, 1 + work}));
  std::vector<Best> best;
  best.reserve(static_cast<size_t>(parts * s.m));
  for (int part = 0; part < parts; ++part) {
    for (int64_t q = 0; q < s.m; ++q) best.emplace_back(s.k, s.keys[(q + 1) * s.k - 1]);
  }
  in_threads(parts, [&](int part) {
    search_rows(s, queries, s.n * part / parts, s.n * (part + 1) / parts, best.data() + part * s.m);
  });

  std::vector<Found> all;
  for (int64_t q = 0; q < s.m; ++q) {
    int64_t* ids = s.ids + q * s.k;
    double* keys = s.keys + q * s.k;
    all.clear();
    for (int64_t i = 0; i < s.k && keys[i] > none; ++i) all.push_back({keys[i], ids[i]});
    for (int part = 0; part < parts; ++part) {
      const auto& found = best[static_cast<size_t>(part * s.m + q)].found();
      all.insert(all.end(), found.begin(), found.end());
    }
    const auto kept = std::min(all.size(), static_cast<size_t>(s.k));
    std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(kept), all.end(), better);
    for (size_t i = 0; i < kept; ++i) ids[i] = all[i].row, keys[i] = all[i].key;
  }
}

}  // namespace embfast
