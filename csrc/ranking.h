// Order similarity of images and captions, a tile at a time: minus the squared length of max(0, caption - image).
// Source: Vendrov et al. 2016, arXiv:1511.06361, eq. 3. float and double alike, so that it can be held to calculus.
#pragma once

#include <cstdint>

namespace embfast {

template <class T>
struct OrderTile {
  const T *images, *captions;  // (n_images, dim) and (n_captions, dim), row after row
  int64_t n_images, n_captions, dim;
};

// scores[i, j] = -sum over d of max(0, captions[j, d] - images[i, d])^2, over threads.
template <class T>
void order_scores(const OrderTile<T>& tile, T* scores, int threads);

// Adds to to_images and to_captions, one of which may be null, the gradient of the sum of weights * scores. Threads
// share out the columns: the result does not depend on their number.
template <class T>
void add_order_gradients(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int threads);

// Compiled once per instruction set: order_tile.cpp.
constexpr int64_t order_bytes = 128;  // of a row that add_order_columns takes at once

#define EMBFAST_ORDER_TILE                                                                                         \
  /* Rows first..last of the scores. */                                                                            \
  template <class T>                                                                                               \
  void order_rows(const OrderTile<T>& tile, T* scores, int64_t first, int64_t last);                               \
  /* Columns from `column` on, order_bytes of them; scratch holds twice as many of each caption. */                \
  template <class T>                                                                                               \
  void add_order_columns(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int64_t column, \
                         T* scratch);

namespace baseline {
EMBFAST_ORDER_TILE
}
namespace avx2 {
EMBFAST_ORDER_TILE
}
namespace avx512 {
EMBFAST_ORDER_TILE
}

}  // namespace embfast
