// Python bindings of training on sequences of ids, of the noise table and of the Huffman tree.
#include "core/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/alias.h"
#include "core/check.h"
#include "core/random.h"
#include "sequences/huffman.h"
#include "sequences/sequences.h"

namespace embfast {

namespace {

// A copy for tests and for the reference.
template <class T, class U = T>
py::array_t<T> copied(const std::vector<U>& v) {
  py::array_t<T> a(static_cast<py::ssize_t>(v.size()));
  std::copy(v.begin(), v.end(), a.mutable_data());
  return a;
}

constexpr int64_t max_noise = int64_t{1} << 31;

struct NoiseTable {
  std::vector<AliasCell> cells;
};

constexpr int most = 1 << 20;  // bound of window, negatives and tags, so that sizes computed from them do not overflow

// The arrays of a call, by name. None equals a missing name; a name that is never read is an error.
class Arrays {
 public:
  explicit Arrays(const py::dict& given) {
    for (const auto& [name, value] : given) {
      if (!value.is_none())
        left_.insert_or_assign(py::cast<std::string>(name), py::reinterpret_borrow<py::object>(value));
    }
  }
  bool has(const char* name) const { return left_.count(name) > 0; }
  std::optional<py::array> find(const char* name) {
    const auto found = left_.extract(name);
    if (!found) return std::nullopt;
    if (!py::isinstance<py::array>(found.mapped())) {
      throw py::type_error(std::string(name) + ": expected a numpy array, got " +
                           py::str(py::type::of(found.mapped())).cast<std::string>());
    }
    return py::reinterpret_borrow<py::array>(found.mapped());
  }
  py::array take(const char* name) {
    std::optional<py::array> found = find(name);
    if (!found) throw py::value_error(std::string(name) + " is required");
    return *found;
  }
  const HuffmanPaths* tree() {
    const auto found = left_.extract("tree");
    return found ? found.mapped().cast<const HuffmanPaths*>() : nullptr;
  }
  void finish() const {
    if (!left_.empty()) throw py::value_error("unexpected array: " + left_.begin()->first);
  }

 private:
  std::map<std::string, py::object> left_;
};

using Record = py::array_t<SequenceJob, py::array::c_style>;

// Reads and validates the settings that do not depend on any array.
Job settings(const Record& record, bool frozen) {
  if (record.size() != 1) throw py::value_error("job: expected one record, got " + std::to_string(record.size()));
  Job job{};
  static_cast<SequenceJob&>(job) = *record.data();
  if (job.drawn < 0 || job.drawn > most || job.centers < 1 || job.centers > max_centers || job.window < 1 ||
      job.window > most) {
    throw py::value_error("expected drawn in 0..2^20, window in 1..2^20 and centers in 1.." +
                          std::to_string(max_centers));
  }
  if (job.concat && (!job.cbow || job.shrink)) throw py::value_error("concat requires cbow and shrink = False");
  if (frozen) job.frozen = job.shared = true, job.words = job.cbow;
  job.words = job.words || job.cbow;
  job.tokens_total = std::max<int64_t>(job.tokens_total, 1);
  return job;
}

// Sets the tables of a job and returns the number of words.
int64_t set_tables(Job& job, Arrays& arrays) {
  std::optional<py::array> w_in = arrays.find("w_in"), w_out = arrays.find("w_out"), w_docs = arrays.find("w_docs");
  std::optional<py::array> w_nodes = arrays.find("w_nodes");
  const HuffmanPaths* tree = arrays.tree();
  if (w_in) job.w_in = check::rows(*w_in, "w_in");
  if (w_docs) job.w_docs = check::rows(*w_docs, "w_docs", w_in ? job.w_in.dim : -1);
  if (!w_in && (!w_docs || job.words)) throw py::value_error("w_in is required unless only tags predict words");
  if (!w_out && !w_nodes) throw py::value_error("w_out or w_nodes is required");
  job.width = w_in ? job.w_in.dim : job.w_docs.dim;
  if (job.dim < 1 || job.dim > job.width) throw py::value_error("dim: expected 1.." + std::to_string(job.width));
  job.hidden_width = job.concat ? (job.most_tags + 2 * int64_t{job.window}) * job.width : job.width;
  if (w_out) job.w_out = check::rows(*w_out, "w_out", job.hidden_width);
  if (w_nodes) job.w_nodes = check::rows(*w_nodes, "w_nodes", job.hidden_width);
  const int64_t n_words = w_in ? job.w_in.n - job.concat : w_out ? job.w_out.n : job.w_nodes.n + 1;
  if (w_out && job.w_out.n != n_words) {
    check::fail("w_out", std::to_string(n_words) + (job.concat ? " rows, one less than w_in" : " rows, like w_in"),
                *w_out);
  }
  if (w_nodes) {
    if (!tree || static_cast<int64_t>(tree->offsets.size()) != n_words + 1 || job.w_nodes.n < n_words - 1) {
      throw py::value_error("w_nodes requires a tree of " + std::to_string(n_words) +
                            " words, and a row for each inner node");
    }
    if (job.centers != 1) throw py::value_error("w_nodes requires centers = 1");
    job.path_offsets = tree->offsets.data(), job.path_nodes = tree->nodes.data();
    job.path_codes = tree->codes.data();
    for (int64_t i = 0; i < n_words; ++i) {
      job.longest_path = std::max(job.longest_path, tree->offsets[i + 1] - tree->offsets[i]);
    }
  }
  return n_words;
}

void set_draws(Job& job, Arrays& arrays, int64_t n_words) {
  const std::optional<py::array> keep = arrays.find("keep"), noise = arrays.find("noise");
  if (keep) job.keep = check::vector<uint32_t>(*keep, "keep", n_words);
  if (job.drawn > 0 && (!noise || !job.w_out.data)) throw py::value_error("drawn > 0 requires noise and w_out");
  if (noise && job.drawn > 0) {
    job.noise = check::vector<int32_t>(*noise, "noise"), job.n_noise = noise->shape(0);
    const int64_t at_once = int64_t{job.drawn} * (job.shared || job.cbow ? 1 : 2 * int64_t{job.window});
    if (job.n_noise < at_once || job.n_noise > max_noise) {
      check::fail("noise", std::to_string(at_once) + "..2^31 entries", *noise);
    }
    check::ids(job.noise, job.n_noise, "noise", n_words);
  }
}

// Checks that n + 1 offsets ascend from 0 to n_entries.
const int64_t* ascending(const py::array& offsets, const char* name, int64_t n, int64_t n_entries) {
  const int64_t* o = check::vector<int64_t>(offsets, name, n + 1);
  bool ascends = o[0] == 0 && o[n] == n_entries;
  for (int64_t i = 0; i < n; ++i) ascends &= o[i] <= o[i + 1];
  if (!ascends)
    throw py::value_error(std::string(name) + ": expected to ascend from 0 to " + std::to_string(n_entries));
  return o;
}

// Sets the tags of the documents and returns their total number.
int64_t set_tags(Job& job, Arrays& arrays) {
  const std::optional<py::array> tag_offsets = arrays.find("tag_offsets"), tags = arrays.find("tags");
  if (!tag_offsets || !tags) throw py::value_error("w_docs requires tag_offsets and tags");
  job.tags = check::vector<int32_t>(*tags, "tags");
  job.tag_offsets = ascending(*tag_offsets, "tag_offsets", job.n_documents, tags->shape(0));
  int64_t fewest = most;
  for (int64_t d = 0; d < job.n_documents; ++d) {
    const int64_t n = job.tag_offsets[d + 1] - job.tag_offsets[d];
    fewest = std::min(fewest, n), job.most_tags = std::max(job.most_tags, n);
  }
  if (job.most_tags > most) throw py::value_error("tags: expected at most 2^20 per document");
  if (job.concat && fewest != job.most_tags) {
    throw py::value_error("tags: concat requires the same number for every document, got " + std::to_string(fewest) +
                          " to " + std::to_string(job.most_tags));
  }
  return tags->shape(0);
}

// Sets blocks first..last of the n_ids tokens and checks that their ids are words.
void set_blocks(Job& job, const py::array& blocks, int64_t n_ids, int64_t first, int64_t last, int64_t n_words) {
  job.blocks = check::vector<int64_t>(blocks, "blocks");
  if (first < 0 || last < first || last >= std::max<int64_t>(blocks.shape(0), 1)) {
    throw py::value_error("blocks " + std::to_string(first) + ".." + std::to_string(last) +
                          ": expected a range within 0.." + std::to_string(blocks.shape(0) - 1));
  }
  job.first_block = first, job.last_block = last;
  for (int64_t b = first; b < last; ++b) {
    if (job.blocks[b] < 0 || job.blocks[b + 1] < job.blocks[b] || job.blocks[b + 1] > n_ids) {
      throw py::value_error("blocks: entry " + std::to_string(b) + " does not ascend, or exceeds the number of ids");
    }
    job.longest_block = std::max(job.longest_block, job.blocks[b + 1] - job.blocks[b]);
  }
  if (first < last) check::ids(job.ids + job.blocks[first], job.blocks[last] - job.blocks[first], "ids", n_words);
}

py::tuple train(const Record& record, const py::dict& given, int64_t first_block, int64_t last_block, int threads) {
  Arrays arrays(given);
  Job job = settings(record, false);
  const py::array ids = arrays.take("ids"), offsets = arrays.take("offsets"), blocks = arrays.take("blocks");
  job.ids = check::vector<int32_t>(ids, "ids");
  job.offsets = check::vector<int64_t>(offsets, "offsets");
  job.n_documents = offsets.shape(0) - 1;
  if (job.n_documents < 1) throw py::value_error("offsets: expected at least 2 entries");
  const int64_t n_tags = arrays.has("w_docs") ? set_tags(job, arrays) : 0;
  const int64_t n_words = set_tables(job, arrays);
  if (job.w_docs.data) check::ids(job.tags, n_tags, "tags", job.w_docs.n);
  set_blocks(job, blocks, ids.shape(0), first_block, last_block, n_words);
  set_draws(job, arrays, n_words);
  arrays.finish();
  if (!job.shared && job.centers != 1) throw py::value_error("per-pair negatives (shared = False) require centers = 1");
  if (!job.shared && !job.cbow && job.w_docs.data) throw py::value_error("w_docs requires shared negatives");
  check::threads(threads);
  Tally tally;
  {
    py::gil_scoped_release no_gil;
    tally = train_sequences(job, threads);
  }
  return py::make_tuple(tally.loss, tally.examples, tally.kept);
}

py::tuple infer(const Record& record, const py::dict& given, int epochs, int averaged, int threads) {
  Arrays arrays(given);
  Job job = settings(record, true);
  job.most_tags = job.tag_weight;
  if (job.tag_weight < 1 || job.tag_weight > most) throw py::value_error("tag_weight: expected 1..2^20");
  if (job.tag_weight > 1 && (!job.cbow || job.concat)) {
    throw py::value_error("tag_weight > 1 requires cbow without concat");
  }
  if (!arrays.has("w_docs")) throw py::value_error("w_docs is required");
  const int64_t n_words = set_tables(job, arrays);
  const py::array ids = arrays.take("ids"), offsets = arrays.take("offsets");
  job.ids = check::vector<int32_t>(ids, "ids");
  check::ids(job.ids, ids.shape(0), "ids", n_words);
  job.n_documents = job.w_docs.n;
  job.offsets = ascending(offsets, "offsets", job.n_documents, ids.shape(0));
  for (int64_t d = 0; d < job.n_documents; ++d) {
    job.longest_block = std::max(job.longest_block, job.offsets[d + 1] - job.offsets[d]);
  }
  set_draws(job, arrays, n_words);
  arrays.finish();
  if (epochs < 1) throw py::value_error("epochs: expected 1 or more");
  if (averaged < 1 || averaged > epochs) throw py::value_error("averaged: expected 1.." + std::to_string(epochs));
  check::threads(threads);
  Tally tally;
  {
    py::gil_scoped_release no_gil;
    tally = infer_documents(job, epochs, averaged, threads);
  }
  return py::make_tuple(tally.loss, tally.examples, tally.kept);
}

}  // namespace

void bind_tables(py::module_& m) {
  py::class_<NoiseTable>(m, "NoiseTable", "An alias table: samples word i with probability weights[i] / sum(weights).")
      .def(py::init([](const py::array& weights) {
             const double* w = check::vector<double>(weights, "weights");
             const int64_t n = weights.shape(0);
             double total = 0.0;
             for (int64_t i = 0; i < n; ++i) {
               if (!(w[i] >= 0.0)) throw py::value_error("weights: entry " + std::to_string(i) + " is negative or NaN");
               total += w[i];
             }
             if (!(total > 0.0) || total > 1e300) throw py::value_error("weights: the sum must be positive and finite");
             return NoiseTable{alias_table(w, n)};
           }),
           "weights"_a)
      .def("__len__", [](const NoiseTable& t) { return t.cells.size(); })
      .def(
          "sample",
          [](const NoiseTable& t, int64_t n, uint64_t seed, uint64_t epoch, uint64_t first) {
            if (n < 0 || n > max_noise) throw py::value_error("n: expected 0..2^31, got " + std::to_string(n));
            py::array_t<int32_t> words(n);
            int32_t* word = words.mutable_data();
            py::gil_scoped_release no_gil;
            const Stream draw(seed, epoch, Purpose::negative);
            const auto cells = static_cast<uint32_t>(t.cells.size());
            for (int64_t i = 0; i < n; ++i) word[i] = alias_draw(t.cells.data(), cells, draw(first + i));
            return words;
          },
          "n"_a, "seed"_a, "epoch"_a, "first"_a = 0,
          "int32 (n,): draws first, first + 1, ... of this seed and epoch: a pool of negatives for train_sequences.")
      .def_property_readonly("thresholds",
                             [](const NoiseTable& t) {
                               std::vector<uint32_t> v;
                               for (const AliasCell& c : t.cells) v.push_back(c.threshold);
                               return copied<uint32_t>(v);
                             })
      .def_property_readonly("aliases", [](const NoiseTable& t) {
        std::vector<int32_t> v;
        for (const AliasCell& c : t.cells) v.push_back(c.alias);
        return copied<int32_t>(v);
      });

  py::class_<HuffmanPaths>(m, "HuffmanTree", "Huffman paths of words with positive counts in descending order.")
      .def(py::init([](const py::array& counts) {
             const int64_t* c = check::vector<int64_t>(counts, "counts");
             const int64_t n = counts.shape(0);
             if (n < 2) throw py::value_error("counts: expected at least 2 words");
             int64_t total = 0;
             for (int64_t i = 0; i < n; ++i) {
               if (c[i] <= 0 || (i && c[i] > c[i - 1])) {
                 throw py::value_error("counts: entry " + std::to_string(i) +
                                       " is not positive, or exceeds the one before");
               }
               if (__builtin_add_overflow(total, c[i], &total))
                 throw py::value_error("counts: the sum exceeds 2^63 - 1");
             }
             py::gil_scoped_release no_gil;
             return huffman_paths(c, n);
           }),
           "counts"_a)
      .def("__len__", [](const HuffmanPaths& t) { return t.offsets.size() - 1; })
      .def_property_readonly("offsets", [](const HuffmanPaths& t) { return copied<int64_t>(t.offsets); })
      .def_property_readonly("nodes", [](const HuffmanPaths& t) { return copied<int32_t>(t.nodes); })
      .def_property_readonly("codes", [](const HuffmanPaths& t) { return copied<uint8_t>(t.codes); });
}

void bind_sequences(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(SequenceJob, seed, epoch, tokens_before, tokens_total, dim, n_words, window, shrink, cbow, words,
                       mean, concat, frozen, shared, centers, drawn, tag_weight, scale, lr_first, lr_last);
  m.attr("sequence_job") = py::dtype::of<SequenceJob>();
  m.attr("max_centers") = max_centers;
  m.def(
      "train_sequences", &train, "job"_a.noconvert(), "arrays"_a, "first_block"_a, "last_block"_a, "threads"_a,
      "Trains on blocks of ids; returns summed loss (nats), examples and kept tokens. See reference.train_sequences.");
  m.def("infer_documents", &infer, "job"_a.noconvert(), "arrays"_a, "epochs"_a, "averaged"_a, "threads"_a,
        "Fits the rows of w_docs to documents; all other rows are frozen. See reference.infer_documents.");
}

}  // namespace embfast
