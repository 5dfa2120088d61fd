// The counts are sorted, so two queues build the tree in linear time: leaves from the rarest up, nodes in order of
// creation.
#include "sequences/huffman.h"

#include <algorithm>

namespace embfast {

HuffmanPaths huffman_paths(const int64_t* counts, int64_t n) {
  // Vertices 0..n-1 are words, n..2n-2 inner nodes in order of creation.
  std::vector<int64_t> count(2 * n - 1);
  std::vector<int64_t> parent(2 * n - 1, -1);
  std::vector<uint8_t> code(2 * n - 1, 0);
  std::copy(counts, counts + n, count.begin());
  int64_t leaf = n - 1, node = n;
  for (int64_t made = n; made < 2 * n - 1; ++made) {
    const auto smallest = [&] {
      // On a tie the inner node goes first, as in word2vec.c.
      if (leaf >= 0 && (node == made || count[leaf] < count[node])) return leaf--;
      return node++;
    };
    const int64_t first = smallest(), second = smallest();
    count[made] = count[first] + count[second];
    parent[first] = parent[second] = made;
    code[second] = 1;
  }
  HuffmanPaths paths;
  paths.offsets.assign(1, 0);
  for (int64_t word = 0; word < n; ++word) {
    const auto begin = static_cast<int64_t>(paths.nodes.size());
    for (int64_t v = word; parent[v] >= 0; v = parent[v]) {
      paths.nodes.push_back(static_cast<int32_t>(parent[v] - n));
      paths.codes.push_back(code[v]);
    }
    std::reverse(paths.nodes.begin() + begin, paths.nodes.end());
    std::reverse(paths.codes.begin() + begin, paths.codes.end());
    paths.offsets.push_back(static_cast<int64_t>(paths.nodes.size()));
  }
  return paths;
}

}  // namespace embfast
