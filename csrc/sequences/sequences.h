// Training on sequences of ids: windows (skip-gram, CBOW) times outputs (negative sampling, hierarchical softmax). The
// corpus is processed block by block, by threads that share the weights without locks (Hogwild, Niu et al. 2011).
// Documents may have tags, whose rows join every window of the document (paragraph vectors, Le & Mikolov 2014,
// arXiv:1405.4053): PV-DM with CBOW, PV-DBOW with skip-gram.
#pragma once

#include <cstdint>

#include "core/random.h"
#include "core/rows.h"
#include "sequences/job.h"

namespace embfast {

constexpr int max_centers = 16;  // per batch
constexpr int max_tile = 12;     // output rows that one pass holds in registers

// One call on the CPU: blocks first_block..last_block of an epoch. The caller owns all memory; weights change in place.
struct Job : SequenceJob {
  Rows w_in;      // one row per word, with concat one more; data is null if only tags predict
  Rows w_out;     // negative sampling: one row per word; data is null without it
  Rows w_nodes;   // hierarchical softmax: one row per inner node of the tree; data is null without it
  Rows w_docs;    // one row per tag; data is null without documents
  int64_t width;  // floats per row of w_in and w_docs that a kernel processes: dim, rounded up to whole registers
  int64_t hidden_width;  // the same for w_out and w_nodes: more with concat

  const int64_t* tag_offsets;  // document d has the tags tags[tag_offsets[d]] onwards, all distinct; only with CBOW by
                               // mean or sum a tag may be repeated k times, and then counts as k words of the window
  const int32_t* tags;
  int64_t most_tags;  // largest number of tags of a document

  const int32_t* ids;
  const int64_t* offsets;  // document d is ids[offsets[d]] up to ids[offsets[d + 1]]
  int64_t n_documents;
  const int64_t* blocks;  // block b is ids[blocks[b]] up to ids[blocks[b + 1]]; windows do not cross its edges
  int64_t first_block, last_block;
  int64_t longest_block;

  const uint32_t* keep;  // keep thresholds: a token is kept if its 32-bit draw is at most keep[id]; null keeps all
  const int32_t* noise;  // pool of negatives: each block starts reading at a random place and wraps around at the end
  int64_t n_noise;
  const int64_t* path_offsets;  // word i has path_nodes[path_offsets[i]] onwards, with their codes
  const int32_t* path_nodes;
  const uint8_t* path_codes;
  int64_t longest_path;
};

struct Tally {
  double loss = 0.0;     // nats, summed over examples
  int64_t examples = 0;  // (center, context) pairs of skip-gram, centers of CBOW
  int64_t kept = 0;      // tokens kept by subsampling
};

// Working memory of one thread, and two tables that all threads share: the weights and labels of a full batch (see
// FullBatchWeights in sequences.cpp), which depend on the radius alone.
struct ThreadMemory {
  const float* full_label;
  const float* const* full_weight;
  int32_t* token;         // kept tokens of the block, padded by the width of a window before and after
  int32_t* repeat;        // distance back to the same word, if that is within the widest window
  int32_t* sentence_end;  // one past the last kept token of each sentence
  int64_t* document;      // document of each sentence
  struct Batch* flight;   // ring of batches that are planned and not yet trained
  int32_t* word;          // distinct words of a window, or for each token the row that it shares with its repetition
  int32_t* column;
  float **in, **out, **rows;
  float *weight, *label, *step;
  float *tile_weight, *tile_label, *tile_step;
  float *hidden, *delta;  // one row per center, one per input row
  float* pairs;           // see Product
  float** prefetch_rows;  // rows that later batches need
  float* node_copy;       // the thread's copies of the n_copies nodes nearest to the root; none with a single thread
  float* node_before;     // values of these nodes at the last merge
  int64_t n_copies;
  int merge_interval;  // steps of a row between merges of its copies
};

// Up to job.centers neighbouring centers of one sentence, with one radius and one set of negatives; or, per pair, one
// center with one set for each word of its window.
struct Batch {
  int first, last;  // the sentence, in kept tokens
  int center, n_centers, radius, n_tags;
  const int32_t* drawn;
  const int32_t* tags;
};
constexpr int batches_in_flight = 64;
constexpr int batches_ahead = 2;  // batches between the prefetch of a row and its use
constexpr int pairs_ahead = 3;    // likewise, pairs

using TrainBlock = void (*)(const Job&, int64_t block, const ThreadMemory&, Tally&);
namespace baseline {
void train_block(const Job&, int64_t block, const ThreadMemory&, Tally&);
}
namespace avx2 {
void train_block(const Job&, int64_t block, const ThreadMemory&, Tally&);
}
namespace avx512 {
void train_block(const Job&, int64_t block, const ThreadMemory&, Tally&);
}
namespace avx512bf16 {
void train_block(const Job&, int64_t block, const ThreadMemory&, Tally&);
}

// Trains on the blocks of the job with this number of threads. One thread takes them in order: the same bits each time.
Tally train_sequences(const Job& job, int threads);

// Fits row d of w_docs to document d for this number of epochs, starting from small random values in its first `dim`
// columns; all other rows are frozen. The result is the mean of the row after each of the last `averaged` epochs
// (Polyak & Juditsky 1992), since the path of single steps wanders around its limit. The row counts most_tags times in
// each window. The result depends only on the ids of the document and the seed, not on other documents, its position or
// the threads; a document without tokens gets zeros. The job's blocks, tags and token counts are ignored.
Tally infer_documents(const Job& job, int epochs, int averaged, int threads);

}  // namespace embfast
