// Training on sequences of ids: windows (skip-gram, CBOW) times outputs (negative sampling, hierarchical softmax),
// block of tokens by block of tokens, over threads that share the weights without locks (Hogwild, Niu et al. 2011).
// Documents may have rows of their own, their tags', which are members of every window in them (paragraph vectors, Le &
// Mikolov 2014, arXiv:1405.4053): with CBOW that is PV-DM, with skip-gram PV-DBOW.
#pragma once

#include <cstdint>

#include "core/random.h"
#include "core/rows.h"

namespace embfast {

constexpr int max_centers = 16;  // in a batch
constexpr int max_tile = 12;     // output rows that one pass holds in registers

// One call: blocks first..last of an epoch. Pointers are the caller's; weights change in place.
struct Job {
  Rows w_in;           // a row for each word, with concat one more; data is null where only tags predict
  Rows w_out;          // negative sampling: a row for each word; data is null without it
  Rows w_nodes;        // hierarchical softmax: a row for each inner node of the tree; data is null without it
  Rows w_docs;         // a row for each tag; data is null without documents
  int64_t dim;         // floats of a row of w_in and w_docs that are in use; those behind are zeros
  int64_t hidden_dim;  // of a row of w_out and w_nodes: with concat more than dim

  const int64_t* tag_offsets;  // document d has the tags tags[tag_offsets[d]] onwards, all distinct; with CBOW by mean
                               // or sum one may stand there k times, and then counts as k words of the window do
  const int32_t* tags;
  int64_t most_tags;  // of a document

  const int32_t* ids;
  const int64_t* offsets;  // document d is ids[offsets[d]] up to ids[offsets[d + 1]]
  int64_t n_documents;
  const int64_t* blocks;  // block b is ids[blocks[b]] up to ids[blocks[b + 1]]; windows do not cross its edges
  int64_t first_block, last_block;
  int64_t longest_block;

  const uint32_t* keep;  // a token is kept when its 32-bit draw is at most keep[id]; null keeps all
  const int32_t* noise;  // words drawn ahead: each block reads on from a place of its own, and around the end
  int64_t n_noise;
  const int64_t* path_offsets;  // word i has path_nodes[path_offsets[i]] onwards, with its codes
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  int64_t longest_path;

  int window;
  bool shrink;  // each batch draws its own width from 1..window
  bool cbow;
  bool words;   // the words of a window predict its center; false leaves it to the tags alone (skip-gram)
  bool mean;    // CBOW: the mean of the window, each word moved by the whole error; else the sum, moved by its share
  bool concat;  // CBOW: tags and words of the full window end to end; the last row of w_in stands for a missing word
  bool frozen;  // only w_docs moves
  bool shared;  // one set of draws for a batch of centers; else for each pair, as in word2vec.c
  int centers;  // centers in a batch
  int drawn;    // negatives drawn for a batch, or for a pair when not shared
  float scale;  // weight of a drawn negative: negatives / drawn

  uint64_t seed, epoch;
  float lr_first, lr_last;
  int64_t tokens_before, tokens_total;  // for the schedule: of earlier epochs, of all epochs
};

struct Tally {
  double loss = 0.0;     // nats, summed over examples
  int64_t examples = 0;  // (center, context) pairs of skip-gram, centers of CBOW
  int64_t kept = 0;      // tokens left by subsampling
};

// The memory of one thread, and tables shared by all: skip-gram windows with every word distinct and no edge near have
// weights that depend on the width alone.
struct Scratch {
  const float* plain_label;
  const float* const* plain_weight;
  int32_t* token;         // kept tokens of the block, with room for a window before and after
  int32_t* repeat;        // tokens back to the same word, where that is within the widest window
  int32_t* sentence_end;  // one past the last kept token of each sentence
  int64_t* document;      // of each sentence
  struct Batch* flight;   // batches planned and not yet trained, a ring
  int32_t* word;          // distinct words of a window, or for each token the row that it shares with a twin
  int32_t* column;
  float **in, **out, **rows;
  float *weight, *label, *step;
  float *tile_weight, *tile_label, *tile_step;
  float *hidden, *delta;  // one row for each center, one for each input row
  float* pairs;           // of Block
  float** ahead;          // rows that later batches need
  float* top;             // the thread's own copies of the n_top nodes nearest to the root; none without other threads
  float* top_before;      // what the copies were made of
  int64_t n_top;
  int top_steps;  // of a row until its copies are merged
};

// Up to job.centers neighbouring centers of one sentence, with one width and one set of draws; or, per pair, one center
// with a set for each word of its window.
struct Batch {
  int first, last;  // the sentence, in kept tokens
  int center, n_centers, radius, n_tags;
  const int32_t* drawn;
  const int32_t* tags;
};
constexpr int batches_in_flight = 64;
constexpr int batches_ahead = 2;  // between the prefetch of a row and its use
constexpr int pairs_ahead = 3;    // pairs, likewise

using TrainBlock = void (*)(const Job&, int64_t block, const Scratch&, Tally&);
namespace baseline {
void train_block(const Job&, int64_t block, const Scratch&, Tally&);
}
namespace avx2 {
void train_block(const Job&, int64_t block, const Scratch&, Tally&);
}
namespace avx512 {
void train_block(const Job&, int64_t block, const Scratch&, Tally&);
}
namespace avx512bf16 {
void train_block(const Job&, int64_t block, const Scratch&, Tally&);
}

// Trains on the job's blocks, the first `columns` columns of rows, with this many threads. One thread takes them in
// order: the same bits every time.
Tally train_sequences(const Job& job, int64_t columns, int threads);

// Fits row d of w_docs to document d in so many epochs, from small random numbers in its first `columns` columns; all
// else is frozen. The row becomes the mean of what it was after each of the last `averaged` epochs (Polyak & Juditsky
// 1992): the path of single steps wanders around what it tends to. In each window the row stands most_tags times. What
// a document gets depends on its ids and the seed, not on its neighbours, its place or the threads; one without tokens
// gets zeros. blocks, tags and the token counts of the job are not looked at.
Tally infer_documents(const Job& job, int64_t columns, int epochs, int averaged, int threads);

// The pair weights of a skip-gram window. Position p of token[first..last) counts for center t (token[center + t])
// when it is at most radius away and not the center itself; a negative that is the center counts for nothing. A word
// that stands twice gets one row with both weights. Outputs are the path of the first center (n_path columns, with
// hierarchical softmax), the centers, then the drawn negatives. Returns the number of distinct input words; pairs
// gets the number of (center, context) pairs.
EMBFAST_HD inline int skip_gram_weights(const int32_t* token, int first, int last, int center, int n_centers,
                                        int radius, int n_path, const uint8_t* codes, bool sampling,
                                        const int32_t* negative, int n_negatives, float scale, int32_t* word,
                                        float* weight, float* label, int64_t* pairs) {
  const int n_targets = sampling ? n_centers : 0, n_out = n_path + n_targets + n_negatives;
  int n = 0;
  for (int p = first; p < last; ++p) {
    int row = 0;
    while (row < n && word[row] != token[p]) ++row;
    float* w = weight + row * n_out;
    bool counts = row < n;
    for (int t = 0; t < n_centers; ++t) {
      const int distance = p - center - t;
      if (distance == 0 || distance > radius || -distance > radius) continue;
      if (!counts) {
        for (int j = 0; j < n_out; ++j) w[j] = 0.0f;
        for (int j = 0; j < n_out; ++j) {
          label[row * n_out + j] = j < n_path ? 1.0f - codes[j] : j < n_path + n_targets ? 1.0f : 0.0f;
        }
        word[n++] = token[p];
        counts = true;
      }
      ++*pairs;
      for (int j = 0; j < n_path; ++j) w[j] += 1.0f;
      if (sampling) w[n_path + t] += 1.0f;
      for (int k = 0; k < n_negatives; ++k) {
        if (negative[k] != token[center + t]) w[n_path + n_targets + k] += scale;
      }
    }
  }
  return n;
}

}  // namespace embfast
