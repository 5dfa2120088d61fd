// Huffman codes over word counts, the tree of hierarchical softmax.
// Source: Huffman 1952; Morin and Bengio 2005; ties go the way of word2vec.c, so paths are the same as its.
#pragma once

#include <cstdint>
#include <vector>

namespace embfast {

// Word i is reached from the root through nodes[offsets[i]] up to nodes[offsets[i + 1]]: inner nodes 0..n-2, the root
// being n-2; codes say which child is next.
struct HuffmanPaths {
  std::vector<int64_t> offsets;
  std::vector<int32_t> nodes;
  std::vector<uint8_t> codes;
};

// counts in descending order, n >= 2, all positive.
HuffmanPaths huffman_paths(const int64_t* counts, int64_t n);

}  // namespace embfast
