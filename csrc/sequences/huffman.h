// Huffman codes of word counts: the tree of hierarchical softmax.
// Sources: Huffman 1952; Morin & Bengio 2005. Ties are resolved as in word2vec.c, which gives the same paths.
#pragma once

#include <cstdint>
#include <vector>

namespace embfast {

// The path from the root to word i is nodes[offsets[i]] up to nodes[offsets[i + 1]]. Inner nodes are 0..n-2 and n-2 is
// the root; codes give the next child.
struct HuffmanPaths {
  std::vector<int64_t> offsets;
  std::vector<int32_t> nodes;
  std::vector<uint8_t> codes;
};

// counts in descending order, n >= 2, all positive.
HuffmanPaths huffman_paths(const int64_t* counts, int64_t n);

}  // namespace embfast
