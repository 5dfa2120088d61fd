// Settings of training on sequences: one record, filled by name in Python (kernels.SEQUENCE_JOB is its numpy dtype) and
// read by the CPU kernels and the device kernels alike.
#pragma once

#include "core/scalar.h"

namespace embfast {

struct SequenceJob {
  uint64_t seed, epoch;
  int64_t tokens_before, tokens_total;  // for the learning rate: tokens of earlier epochs, tokens of all epochs

  int32_t dim;      // vector size; the columns after it are padding
  int32_t n_words;  // rows of w_out; set after the tables have been checked
  int32_t window;   // largest radius, in kept tokens
  int32_t shrink;   // each batch draws its radius from 1..window
  int32_t cbow;     // the window predicts its center; otherwise each word of the window does (skip-gram)
  int32_t words;    // the words of a window predict; if false, only the tags do (skip-gram)
  int32_t mean;     // CBOW: the mean of the window, each row moved by the whole error; otherwise the sum, by its share
  int32_t concat;   // CBOW: tags and words of the full window concatenated; the last row of w_in is the missing word
  int32_t frozen;   // only w_docs is trained
  int32_t shared;   // CPU: one set of negatives per batch; otherwise one per pair, as in word2vec.c
  int32_t centers;  // CPU: centers per batch
  int32_t drawn;    // negatives per batch, or per pair if not shared; on a device per center
  int32_t tag_weight;  // CBOW: a tag counts as this many words of the window (device, and inference on the CPU)
  float scale;         // CPU: weight of a negative, negatives / drawn
  float lr_first, lr_last;
};
static_assert(sizeof(SequenceJob) == 96, "no padding: Python and the devices share this layout");

}  // namespace embfast
