// The kernels of csrc/*.cu for the CPU, by name. `python -m pytest tests/test_shim.py` builds it.
#include "../../csrc/glove.cu"
#include "../../csrc/sequences.cu"
#include "../../csrc/walks.cu"

using embfast::document_rows;
using embfast::document_seeds;
using embfast::keep_tokens;
using embfast::pack_walks;
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
