// Ranking losses between images and captions, one tile of similarities at a time: order similarity, hinges, hardest.
// Source: Vendrov et al. 2016, arXiv:1511.06361, eq. 3. For float and double; tests compare double with calculus.
#pragma once

#include <cstdint>

namespace embfast {

template <class T>
struct OrderTile {
  const T *images, *captions;  // (n_images, dim) and (n_captions, dim), row after row
  int64_t n_images, n_captions, dim;
};

// scores[i, j] = -sum over d of max(0, captions[j, d] - images[i, d])^2, in parallel.
template <class T>
void order_scores(const OrderTile<T>& tile, T* scores, int threads);

// Adds the gradient of the sum of weights * scores to to_images and to_captions, either of which may be null. Threads
// divide the columns among them, so the result does not depend on their number.
template <class T>
void add_order_gradients(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int threads);

// A tile of scores in row-major order, -inf for pairs and for rows and columns of one group. The pointers for rows, or
// for columns, are null if the loss does not sum over them.
template <class T>
struct HingeTile {
  T* scores;
  int64_t n_rows, n_columns;
  const T *row_bounds, *column_bounds;  // margin - score of the pair
  T *row_active, *column_active;
};

// Compiled once per instruction set: order_tile.cpp, hinge_tile.cpp.
constexpr int64_t order_bytes = 128;  // of each row per call of add_order_columns

#define EMBFAST_RANKING_TILE                                                                                          \
  /* Fills rows first..last of the scores. */                                                                         \
  template <class T>                                                                                                  \
  void order_rows(const OrderTile<T>& tile, T* scores, int64_t first, int64_t last);                                  \
  /* Handles order_bytes of columns from `column` on; scratch holds twice that per caption. */                        \
  template <class T>                                                                                                  \
  void add_order_columns(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int64_t column,    \
                         T* scratch);                                                                                 \
  /* Returns the sum of max(0, score + bound) over both bounds. Replaces each score by its number of positive */      \
  /* terms and adds these numbers to row_active and column_active. */                                                 \
  template <class T>                                                                                                  \
  double hinges(const HingeTile<T>& tile);                                                                            \
  /* Updates best[i], the largest score of row i so far, and found[i], its column + first. Among equal scores the */  \
  /* first is kept. With `below`, only scores less than below[i] count. */                                            \
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
