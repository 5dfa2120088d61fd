// Training on sequences of ids: windows (skip-gram, CBOW) times outputs (negative sampling, hierarchical softmax),
// block of tokens by block of tokens, over threads that share the weights without locks (Hogwild, Niu et al. 2011).
// Documents may have rows of their own, their tags', which are members of every window in them (paragraph vectors, Le &
// Mikolov 2014, arXiv:1405.4053): with CBOW that is PV-DM, with skip-gram PV-DBOW.
#pragma once

#include <cstdint>

#include "core/random.h"
#include "core/rows.h"
#include "sequences/job.h"

namespace embfast {

constexpr int max_centers = 16;  // in a batch
constexpr int max_tile = 12;     // output rows that one pass holds in registers

// One call on the CPU: blocks first_block..last_block of an epoch. Pointers are the caller's; weights change in place.
struct Job : SequenceJob {
  Rows w_in;      // a row for each word, with concat one more; data is null where only tags predict
  Rows w_out;     // negative sampling: a row for each word; data is null without it
  Rows w_nodes;   // hierarchical softmax: a row for each inner node of the tree; data is null without it
  Rows w_docs;    // a row for each tag; data is null without documents
  int64_t width;  // floats of a row of w_in and w_docs that a kernel works on: dim, rounded up to whole registers
  int64_t hidden_width;  // the same for w_out and w_nodes: more with concat

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
  const int32_t* noise;  // negatives drawn ahead: each block reads on from a place that it draws, and around the end
  int64_t n_noise;
  const int64_t* path_offsets;  // word i has path_nodes[path_offsets[i]] onwards, with its codes
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  int64_t longest_path;
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

// Trains on the job's blocks with this many threads. One thread takes them in order: the same bits every time.
Tally train_sequences(const Job& job, int threads);

// Fits row d of w_docs to document d in so many epochs, from small random numbers in its first `dim` columns; all else
// is frozen. The row becomes the mean of what it was after each of the last `averaged` epochs (Polyak & Juditsky
// 1992): the path of single steps wanders around what it tends to. In each window the row stands most_tags times. What
// a document gets depends on its ids and the seed, not on its neighbours, its place or the threads; one without tokens
// gets zeros. blocks, tags and the token counts of the job are not looked at.
Tally infer_documents(const Job& job, int epochs, int averaged, int threads);

}  // namespace embfast
