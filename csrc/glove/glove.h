// GloVe: weighted least squares on the logarithms of co-occurrences, by AdaGrad, an entry at a time.
// Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162, eq. 8; steps as in their glove.c.
#pragma once

#include <cstdint>

#include "cooccurrence/cooccurrence.h"
#include "core/rows.h"

namespace embfast {

// Entries stand in groups: parts of tiles of the matrix, or random ones. Groups are trained in a given order, and each
// one's entries in a random order that changes with the epoch.
struct GloveJob {
  // Column dim of w_in and w_out holds the bias, and what follows is zero. The sums of squares lie alike, and are
  // positive everywhere.
  Rows w_in, w_out, sums_in, sums_out;
  int64_t dim;

  const Entry* entries;
  const int64_t* groups;  // n_groups + 1 edges
  const int32_t* order;
  int64_t first, last;  // of order
  int64_t longest;      // entries of a group

  float x_max, alpha;  // an entry x weighs min(1, (x / x_max)^alpha)
  float lr;
  uint64_t seed, epoch;
};

constexpr float clip = 100.0f;  // no component of a gradient is larger

struct GloveScratch {
  Entry* entry;   // of a group, in the order of training
  float* log;     // of its values
  float* weight;  // of its entries
};

struct GloveTally {
  double loss = 0.0;  // sum of weight * difference^2 / 2, each before its step
  int64_t entries = 0;
};

// Trains on the groups order[first..last] over threads, without locks.
GloveTally train_entries(const GloveJob& job, int threads);

// One group, compiled once per instruction set: train_group.cpp.
using TrainGroup = void (*)(const GloveJob&, int64_t, const GloveScratch&, GloveTally&);
namespace baseline {
void train_group(const GloveJob& job, int64_t group, const GloveScratch& scratch, GloveTally& tally);
}
namespace avx2 {
void train_group(const GloveJob& job, int64_t group, const GloveScratch& scratch, GloveTally& tally);
}
namespace avx512 {
void train_group(const GloveJob& job, int64_t group, const GloveScratch& scratch, GloveTally& tally);
}

// How entries are sorted into groups. The id of a word becomes place[id]. In a tile, entries stand in random order, so
// that any part of them is a random one; in a random group they keep their order.
struct Grouping {
  const Entry* entries;
  int64_t n_entries;
  const int32_t* place;
  int64_t n_words;  // ids below it; places are below n_rows
  int64_t n_rows;
  int64_t tile;      // rows and columns of a tile; 0 for random groups
  int64_t n_groups;  // tiles in all, or random groups
  uint64_t seed;
};

// Sorts the entries into groups; group g is then grouped[groups[g]] to grouped[groups[g + 1]]. Returns -1, or with
// nothing grouped the first faulty entry: one whose id is no word, or whose value is not a positive normal number.
int64_t group_entries(const Grouping& grouping, int64_t* groups, Entry* grouped);

// A random order of 0..n-1.
void random_order(int32_t* order, uint32_t n, uint64_t seed, uint64_t epoch);

}  // namespace embfast
