// GloVe: weighted least squares on the logarithms of co-occurrences, trained by AdaGrad one entry at a time.
// Source: Pennington, Socher, Manning 2014, https://aclanthology.org/D14-1162, eq. 8; steps as in their glove.c.
#pragma once

#include <cstdint>

#include "glove/job.h"

namespace embfast {

constexpr float clip = 100.0f;  // each component of a gradient is clipped to -100..100

struct GloveScratch {
  Entry* entry;   // the entries of a group in training order
  float* log;     // logarithms of their values
  float* weight;  // weights of their losses
};

struct GloveTally {
  double loss = 0.0;  // sum of weight * difference^2 / 2, each computed before its step
  int64_t entries = 0;
};

// Trains on the groups order[first..last] in several threads without locks (Hogwild).
GloveTally train_entries(const GloveJob& job, int threads);

// Trains on one group. Compiled once per instruction set in train_group.cpp.
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

// How entries are sorted into groups. Each id becomes place[id]. Entries of a tile are shuffled, so any part of a tile
// is a random sample of it; entries of a random group keep their order.
struct Grouping {
  const Entry* entries;
  int64_t n_entries;
  const int32_t* place;
  int64_t n_words;  // ids are below n_words, places below n_rows
  int64_t n_rows;
  int64_t tile;      // width and height of a tile; 0 for random groups
  int64_t n_groups;  // number of tiles or random groups
  uint64_t seed;
};

// Sorts the entries into groups: group g becomes grouped[groups[g]] to grouped[groups[g + 1]]. Returns -1 on success.
// Otherwise groups nothing and returns the first faulty entry: an id out of range, or a value that is not positive,
// normal and finite.
int64_t group_entries(const Grouping& grouping, int64_t* groups, Entry* grouped);

// A random order of 0..n-1.
void random_order(int32_t* order, uint32_t n, uint64_t seed, uint64_t epoch);

}  // namespace embfast
