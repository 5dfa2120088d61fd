"""Every kernel in plain numpy, with the names and arguments of embfast.kernels: the specification, never a fallback.

It makes the same random draws as the kernels. Weights may be float64, so that tests can compare it with calculus.
"""

from embfast.reference.decimals import format_lines, nearest_float32, parse_lines
from embfast.reference.device_sequences import (
    DeviceWindow,
    device_infer_documents,
    device_outputs,
    device_predict,
    device_skip_gram,
    device_train_sequences,
)
from embfast.reference.draws import GOLDEN, NoiseTable, Purpose, Stream, alias_draw, below, mix64, random_order
from embfast.reference.glove import count_pairs, entry_step, entry_weight, group_entries, train_entries
from embfast.reference.images import (
    full_network_embedding,
    ternary_levels,
    ternary_nonzeros,
    ternary_pack,
    ternary_top,
    ternary_unpack,
)
from embfast.reference.ranking import (
    add_order_gradients,
    hardest,
    hinges,
    info_nce,
    order_scores,
    ranking_loss,
    rankings,
    similarity,
)
from embfast.reference.sequences import (
    Batch,
    HuffmanTree,
    Model,
    cbow_batch,
    concat_batch,
    document_row,
    document_seed,
    edges,
    infer_documents,
    linear_decay,
    logistic_step,
    skip_gram_batch,
    skip_gram_pairs,
    subsample,
    train_sequences,
)
from embfast.reference.walks import bias, edge_weight, noise_thresholds, random_walk, transition_probabilities
