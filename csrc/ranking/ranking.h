// Ranking losses of images and captions, a tile of their similarities at a time: order similarity, hinges, the hardest.
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

// A tile of scores, row after row; -inf where row and column are of one group. Null pointers for columns, or for rows,
// where the loss does not sum over them.
template <class T>
struct HingeTile {
  T* scores;
  int64_t n_rows, n_columns;
  const T *row_bounds, *column_bounds;  // margin less the score of the pair
  T *row_active, *column_active;
};

// Compiled once per instruction set: order_tile.cpp, hinge_tile.cpp.
constexpr int64_t order_bytes = 128;  // of a row that add_order_columns takes at once

#define EMBFAST_RANKING_TILE                                                                                          \
  /* Rows first..last of the scores. */                                                                               \
  template <class T>                                                                                                  \
  void order_rows(const OrderTile<T>& tile, T* scores, int64_t first, int64_t last);                                  \
  /* Columns from `column` on, order_bytes of them; scratch holds twice as many of each caption. */                   \
  template <class T>                                                                                                  \
  void add_order_columns(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int64_t column,    \
                         T* scratch);                                                                                 \
  /* Sum of max(0, score + bound) over both bounds. Adds to the active ones their number of terms above 0, and */     \
  /* leaves in place of each score how many it has. */                                                                \
  template <class T>                                                                                                  \
  double hinges(const HingeTile<T>& tile);                                                                            \
  /* best[i] and found[i]: the largest score of row i so far, and its column + first. The first of equals stays. */   \
  /* With below, only scores less than below[i] count. */                                                             \
  template <class T>                                                                                                  \
  void hardest_of_rows(const T* scores, int64_t n_rows, int64_t n_columns, const T* below, int64_t first, T* best,    \
                       int64_t* found);                                                                               \
  /* The same for columns. */                                                                                         \
  template <class T>                                                                                                  \
  void hardest_of_columns(const T* scores, int64_t n_rows, int64_t n_columns, const T* below, int64_t first, T* best, \
                          int64_t* found);

namespace baseline {
EMBFAST_RANKING_TILE
}
namespace avx2 {
EMBFAST_RANKING_TILE
}
namespace avx512 {
EMBFAST_RANKING_TILE
}

}  // namespace embfast
