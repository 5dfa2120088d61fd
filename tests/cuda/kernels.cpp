// Registers the kernels of csrc/*/*.cu with the shim by name. Compiled by tests/support/shim.py.
#include "../../csrc/glove/glove.cu"
#include "../../csrc/graph/walks.cu"
#include "../../csrc/ranking/ranking.cu"
#include "../../csrc/sequences/sequences.cu"
#include "../../csrc/ternary/ternary.cu"

using embfast::document_rows;
using embfast::document_seeds;
using embfast::keep_tokens;
using embfast::pack_walks;
using embfast::ranking_add_hardest;
using embfast::ranking_add_pairs;
using embfast::ranking_finish;
using embfast::ranking_hardest;
using embfast::ranking_hardest_order;
using embfast::ranking_pairs;
using embfast::ranking_scales;
using embfast::ranking_sum;
using embfast::ranking_sum_order;
using embfast::ternary_best;
using embfast::ternary_dots;
using embfast::ternary_levels;
using embfast::ternary_nonzeros;
using embfast::ternary_pack;
using embfast::train_runs_warp;
using embfast::train_runs_warps;
using embfast::walk_first_order;
using embfast::walk_second_order;

SHIM_KERNEL(keep_tokens);
SHIM_KERNEL(document_seeds);
SHIM_KERNEL(document_rows);
SHIM_KERNEL(skip_gram_warp);
SHIM_KERNEL(skip_gram_warps);
SHIM_KERNEL(skip_gram_wide);
SHIM_KERNEL(skip_gram_documents_warp);
SHIM_KERNEL(skip_gram_documents_warps);
SHIM_KERNEL(skip_gram_documents_wide);
SHIM_KERNEL(cbow_warp);
SHIM_KERNEL(cbow_warps);
SHIM_KERNEL(cbow_wide);
SHIM_KERNEL(cbow_documents_warp);
SHIM_KERNEL(cbow_documents_warps);
SHIM_KERNEL(cbow_documents_wide);
SHIM_KERNEL(train_runs_warp);
SHIM_KERNEL(train_runs_warps);
SHIM_KERNEL(walk_first_order);
SHIM_KERNEL(walk_second_order);
SHIM_KERNEL(pack_walks);
SHIM_KERNEL(ranking_scales);
SHIM_KERNEL(ranking_pairs);
SHIM_KERNEL(ranking_sum);
SHIM_KERNEL(ranking_sum_order);
SHIM_KERNEL(ranking_add_pairs);
SHIM_KERNEL(ranking_hardest);
SHIM_KERNEL(ranking_hardest_order);
SHIM_KERNEL(ranking_add_hardest);
SHIM_KERNEL(ranking_finish);
SHIM_KERNEL(ternary_pack);
SHIM_KERNEL(ternary_levels);
SHIM_KERNEL(ternary_nonzeros);
SHIM_KERNEL(ternary_dots);
SHIM_KERNEL(ternary_best);
