// Hinges and hardest negatives of a tile of scores, in one pass over it; compiled once per instruction set.
#include <limits>

#include "core/lanes.h"
#include "ranking/ranking.h"

namespace embfast::EMBFAST_ISA {

namespace {

template <class T>
constexpr T none = -std::numeric_limits<T>::infinity();

// The largest number and its first position.
template <class T>
struct Largest {
  T value = none<T>;
  int64_t place = 0;

  EMBFAST_INLINE void take(T x, int64_t at) {
    if (x > value || (x == value && at < place)) value = x, place = at;
  }
};

// The largest number of each lane and its first position.
template <class T>
struct Running {
  using L = Lanes<T>;
  typename L::V value = L::filled(none<T>);
  typename L::I place = {};

  EMBFAST_INLINE void take(typename L::V x, typename L::I at) {
    const typename L::I better = x > value;
    value = better ? x : value;
    place = better ? at : place;
  }
};

}  // namespace

template <class T>
double hinges(const HingeTile<T>& tile) {
  using L = Lanes<T>;
  const typename L::V one = L::filled(1), nothing = {};
  double loss = 0.0;
  for (int64_t i = 0; i < tile.n_rows; ++i) {
    T* row = tile.scores + i * tile.n_columns;
    const T own = tile.row_bounds ? tile.row_bounds[i] : none<T>;
    const typename L::V bound = L::filled(own);
    typename L::V sum = {}, count = {};
    int64_t j = 0;
#pragma GCC unroll 1
    for (; j + L::n <= tile.n_columns; j += L::n) {
      const typename L::V score = L::load(row + j);
      const typename L::V by_row = score + bound;
      sum += positive(by_row);
      typename L::V weight = by_row > nothing ? one : nothing;
      count += weight;
      if (tile.column_bounds) {
        const typename L::V by_column = score + L::load(tile.column_bounds + j);
        sum += positive(by_column);
        const typename L::V active = by_column > nothing ? one : nothing;
        L::store(tile.column_active + j, L::load(tile.column_active + j) + active);
        weight += active;
      }
      L::store(row + j, weight);
    }
    loss += total(sum);
    T counted = total(count);
    for (; j < tile.n_columns; ++j) {
      const T by_row = row[j] + own, by_column = tile.column_bounds ? row[j] + tile.column_bounds[j] : none<T>;
      row[j] = (by_row > 0) + (by_column > 0);
      if (by_row > 0) loss += by_row, counted += 1;
      if (by_column > 0) loss += by_column, tile.column_active[j] += 1;
    }
    if (tile.row_bounds) tile.row_active[i] += counted;
  }
  return loss;
}

template <class T>
void hardest_of_rows(const T* scores, int64_t n_rows, int64_t n_columns, const T* below, int64_t first, T* best,
                     int64_t* found) {
  using L = Lanes<T>;
  const typename L::V out = L::filled(none<T>);
  for (int64_t i = 0; i < n_rows; ++i) {
    const T* row = scores + i * n_columns;
    const typename L::V limit = L::filled(below ? below[i] : T(0));
    Running<T> running;
    typename L::I at = L::numbered();
    int64_t j = 0;
#pragma GCC unroll 1
    for (; j + L::n <= n_columns; j += L::n, at += L::n) {
      typename L::V score = L::load(row + j);
      if (below) score = score < limit ? score : out;
      running.take(score, at);
    }
    Largest<T> largest{best[i], -1};  // from an earlier tile, so it precedes all positions of this one
    for (int k = 0; k < L::n; ++k) largest.take(running.value[k], running.place[k]);
    for (; j < n_columns; ++j) {
      if (!below || row[j] < below[i]) largest.take(row[j], j);
    }
    if (largest.place >= 0) best[i] = largest.value, found[i] = first + largest.place;
  }
}

template <class T>
void hardest_of_columns(const T* scores, int64_t n_rows, int64_t n_columns, const T* below, int64_t first, T* best,
                        int64_t* found) {
  using L = Lanes<T>;
  const typename L::V out = L::filled(none<T>);
  int64_t j = 0;
  for (; j + L::n <= n_columns; j += L::n) {
    const typename L::V limit = below ? L::load(below + j) : out;
    Running<T> running;
    typename L::I at = {};
#pragma GCC unroll 1
    for (int64_t i = 0; i < n_rows; ++i, at += 1) {
      typename L::V score = L::load(scores + i * n_columns + j);
      if (below) score = score < limit ? score : out;
      running.take(score, at);
    }
    for (int k = 0; k < L::n; ++k) {
      if (running.value[k] > best[j + k]) best[j + k] = running.value[k], found[j + k] = first + running.place[k];
    }
  }
  for (; j < n_columns; ++j) {
    for (int64_t i = 0; i < n_rows; ++i) {
      const T score = scores[i * n_columns + j];
      if ((!below || score < below[j]) && score > best[j]) best[j] = score, found[j] = first + i;
    }
  }
}

template double hinges(const HingeTile<float>&);
template double hinges(const HingeTile<double>&);
template void hardest_of_rows(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t*);
template void hardest_of_rows(const double*, int64_t, int64_t, const double*, int64_t, double*, int64_t*);
template void hardest_of_columns(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t*);
template void hardest_of_columns(const double*, int64_t, int64_t, const double*, int64_t, double*, int64_t*);

}  // namespace embfast::EMBFAST_ISA
