// Order similarity over threads, and the selection of the instruction set.
#include "ranking/ranking.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "core/threads.h"

namespace embfast {

template <class T>
void order_scores(const OrderTile<T>& tile, T* scores, int threads) {
  constexpr int64_t rows = 32;  // per thread at a time; their captions are read again from cache
  const auto fill = EMBFAST_CHOOSE(order_rows<T>);
  std::atomic<int64_t> next{0};
  const auto n_parts = static_cast<int>(std::min<int64_t>(threads, (tile.n_images + rows - 1) / rows));
  in_threads(n_parts, [&](int) {
    for (int64_t i; (i = next.fetch_add(rows, std::memory_order_relaxed)) < tile.n_images;) {
      fill(tile, scores, i, std::min(i + rows, tile.n_images));
    }
  });
}

template <class T>
void add_order_gradients(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int threads) {
  constexpr int64_t columns = order_bytes / sizeof(T);
  const auto add = EMBFAST_CHOOSE(add_order_columns<T>);
  std::atomic<int64_t> next{0};
  const auto n_parts = static_cast<int>(std::min<int64_t>(threads, (tile.dim + columns - 1) / columns));
  std::vector<std::unique_ptr<T[]>> scratch;
  for (int t = 0; t < n_parts; ++t) scratch.push_back(std::make_unique<T[]>(2 * columns * tile.n_captions));
  in_threads(n_parts, [&](int t) {
    for (int64_t d; (d = next.fetch_add(columns, std::memory_order_relaxed)) < tile.dim;) {
      add(tile, weights, to_images, to_captions, d, scratch[t].get());
    }
  });
}

template void order_scores(const OrderTile<float>&, float*, int);
template void order_scores(const OrderTile<double>&, double*, int);
template void add_order_gradients(const OrderTile<float>&, const float*, float*, float*, int);
template void add_order_gradients(const OrderTile<double>&, const double*, double*, double*, int);

}  // namespace embfast
