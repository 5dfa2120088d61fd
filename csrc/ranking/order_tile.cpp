// Inner loops of order similarity; compiled once per instruction set.
#include "core/lanes.h"
#include "ranking/ranking.h"

namespace embfast::EMBFAST_ISA {

namespace {

constexpr int rows_at_once = W == 16 ? 4 : 2;  // images; with 4 captions each, the sums stay in registers

template <int N, int M, class T>
EMBFAST_INLINE void order_block(const T* images, const T* captions, int64_t dim, T* scores, int64_t stride) {
  using L = Lanes<T>;
  typename L::V acc[N * M] = {};
  int64_t d = 0;
#pragma GCC unroll 1
  for (; d + L::n <= dim; d += L::n) {
    typename L::V image[N];
    unrolled<N>(EMBFAST_UNROLLED { image[i] = L::load(images + i * dim + d); });
    unrolled<M>([&](auto j) __attribute__((always_inline)) {
      const typename L::V caption = L::load(captions + j * dim + d);
      unrolled<N>(EMBFAST_UNROLLED {
        const typename L::V outside = positive(caption - image[i]);
        acc[i * M + j] += outside * outside;
      });
    });
  }
  unrolled<N * M>(EMBFAST_UNROLLED {
    T sum = total(acc[i]);
    for (int64_t e = d; e < dim; ++e) {
      const T outside = captions[i % M * dim + e] - images[i / M * dim + e];
      if (outside > 0) sum += outside * outside;
    }
    scores[i / M * stride + i % M] = -sum;
  });
}

template <int N, class T>
EMBFAST_INLINE void order_strip(const OrderTile<T>& tile, T* scores, int64_t i) {
  const T* images = tile.images + i * tile.dim;
  T* row = scores + i * tile.n_captions;
  int64_t j = 0;
  for (; j + 4 <= tile.n_captions; j += 4) {
    order_block<N, 4>(images, tile.captions + j * tile.dim, tile.dim, row + j, tile.n_captions);
  }
  for (; j < tile.n_captions; ++j) {
    order_block<N, 1>(images, tile.captions + j * tile.dim, tile.dim, row + j, tile.n_captions);
  }
}

// A strip of columns of N images against all captions, packed and padded with zeros, which contribute nothing.
template <int N, class T>
EMBFAST_INLINE void add_strip(const OrderTile<T>& tile, const T* weights, T* to_images, int64_t i, int64_t column,
                              int64_t width, const T* packed, T* back) {
  using L = Lanes<T>;
  constexpr int columns = order_bytes / sizeof(T), parts = columns / L::n < 2 ? 1 : 2;
  for (int64_t at = 0; at < columns; at += parts * L::n) {
    T padded[N * parts * L::n] = {};
    for (int n = 0; n < N; ++n) {
      for (int64_t d = at; d < at + parts * L::n && d < width; ++d) {
        padded[n * parts * L::n + d - at] = tile.images[(i + n) * tile.dim + column + d];
      }
    }
    typename L::V image[N * parts], sum[N * parts] = {};
    unrolled<N * parts>([&](auto v) __attribute__((always_inline)) { image[v] = L::load(padded + v * L::n); });
#pragma GCC unroll 1
    for (int64_t j = 0; j < tile.n_captions; ++j) {
      T weight[N];
      bool used = false;
      for (int n = 0; n < N; ++n) {
        weight[n] = weights[(i + n) * tile.n_captions + j];
        used |= weight[n] != 0;
      }
      if (!used) continue;
      unrolled<parts>([&](auto p) __attribute__((always_inline)) {
        const typename L::V caption = L::load(packed + j * columns + at + p * L::n);
        typename L::V moved = L::load(back + j * columns + at + p * L::n);
        unrolled<N>(EMBFAST_UNROLLED {
          const typename L::V outside = positive(caption - image[i * parts + p]) * weight[i];
          sum[i * parts + p] += outside;
          moved += outside;
        });
        L::store(back + j * columns + at + p * L::n, moved);
      });
    }
    if (!to_images) continue;
    unrolled<N * parts>([&](auto v) __attribute__((always_inline)) { L::store(padded + v * L::n, sum[v]); });
    for (int n = 0; n < N; ++n) {
      for (int64_t d = at; d < at + parts * L::n && d < width; ++d) {
        to_images[(i + n) * tile.dim + column + d] += 2 * padded[n * parts * L::n + d - at];
      }
    }
  }
}

}  // namespace

template <class T>
void order_rows(const OrderTile<T>& tile, T* scores, int64_t first, int64_t last) {
  int64_t i = first;
  for (; i + rows_at_once <= last; i += rows_at_once) order_strip<rows_at_once>(tile, scores, i);
  for (; i < last; ++i) order_strip<1>(tile, scores, i);
}

template <class T>
void add_order_columns(const OrderTile<T>& tile, const T* weights, T* to_images, T* to_captions, int64_t column,
                       T* scratch) {
  constexpr int64_t columns = order_bytes / sizeof(T);
  const int64_t width = tile.dim - column < columns ? tile.dim - column : columns;
  T *packed = scratch, *back = scratch + tile.n_captions * columns;
  for (int64_t j = 0; j < tile.n_captions; ++j) {
    for (int64_t d = 0; d < columns; ++d) {
      packed[j * columns + d] = d < width ? tile.captions[j * tile.dim + column + d] : T(0);
      back[j * columns + d] = 0;
    }
  }
  int64_t i = 0;
  for (; i + rows_at_once <= tile.n_images; i += rows_at_once) {
    add_strip<rows_at_once>(tile, weights, to_images, i, column, width, packed, back);
  }
  for (; i < tile.n_images; ++i) add_strip<1>(tile, weights, to_images, i, column, width, packed, back);
  if (!to_captions) return;
  for (int64_t j = 0; j < tile.n_captions; ++j) {
    for (int64_t d = 0; d < width; ++d) to_captions[j * tile.dim + column + d] -= 2 * back[j * columns + d];
  }
}

template void order_rows(const OrderTile<float>&, float*, int64_t, int64_t);
template void order_rows(const OrderTile<double>&, double*, int64_t, int64_t);
template void add_order_columns(const OrderTile<float>&, const float*, float*, float*, int64_t, float*);
template void add_order_columns(const OrderTile<double>&, const double*, double*, double*, int64_t, double*);

}  // namespace embfast::EMBFAST_ISA
