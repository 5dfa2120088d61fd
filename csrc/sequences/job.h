// The settings of training on sequences: one record, filled by name in Python (kernels.SEQUENCE_JOB is its numpy dtype)
// and read by the CPU kernels and the device kernels alike.
#pragma once

#include "core/scalar.h"

namespace embfast {

struct SequenceJob {
  uint64_t seed, epoch;
  int64_t tokens_before, tokens_total;  // for the learning rate: tokens of earlier epochs, tokens of all epochs

  int32_t dim;         // numbers of a vector; the columns behind them are padding
  int32_t n_words;     // rows of w_out; set by whoever has checked the tables
  int32_t window;      // widest half-window, in kept tokens
  int32_t shrink;      // each batch draws its own half-window from 1..window
  int32_t cbow;        // the window predicts its center; otherwise each member of the window does (skip-gram)
  int32_t words;       // the words of a window predict; false leaves it to the tags alone (skip-gram)
  int32_t mean;        // CBOW: the mean of the window, each member moved by the whole error; else the sum, by its share
  int32_t concat;      // CBOW: tags and words of the full window end to end; the last row of w_in is the missing word
  int32_t frozen;      // only w_docs moves
  int32_t shared;      // CPU: one set of negatives for a batch of centers; else one for each pair, as in word2vec.c
  int32_t centers;     // CPU: centers in a batch
  int32_t drawn;       // negatives drawn for a batch, for a pair when not shared; on a device for each center
  int32_t tag_weight;  // CBOW: a tag counts as so many words of the window (device, and inference on the CPU)
  float scale;         // CPU: weight of a drawn negative, negatives / drawn
  float lr_first, lr_last;
};
static_assert(sizeof(SequenceJob) == 96, "no padding: records of Python and of a device are laid out alike");

}  // namespace embfast
