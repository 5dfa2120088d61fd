// The kernels of csrc/*.cu for the CPU, by name. `python -m pytest tests/test_shim.py` builds it.
#include "../../csrc/sequences.cu"

using embfast::document_rows;
using embfast::document_seeds;
using embfast::keep_tokens;

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
