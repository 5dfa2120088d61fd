// The only file that knows Python: check what came, release the GIL, call the kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "alias.h"
#include "check.h"
#include "cooccurrence.h"
#include "decimals.h"
#include "edges.h"
#include "glove.h"
#include "huffman.h"
#include "isa.h"
#include "ranking.h"
#include "roofline.h"
#include "sequences.h"
#include "ternary.h"
#include "text.h"

namespace py = pybind11;
using namespace py::literals;
using namespace embfast;

namespace {

// Text ---------------------------------------------------------------------------------------------------------------

std::string_view utf8(py::handle text) {  // lives as long as the str does
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!bytes) throw py::error_already_set();
  return {bytes, static_cast<size_t>(size)};
}

std::vector<std::string_view> utf8_list(const py::list& words) {
  std::vector<std::string_view> views;
  views.reserve(words.size());
  for (const py::handle word : words) views.push_back(utf8(word));
  return views;
}

// None, or (fault, offset, document, errno, first bytes of the token).
py::object failure(const TextEncoder& encoder, bool fine) {
  if (fine) return py::none();
  static constexpr const char* kNames[] = {"",       "bad_bytes",   "long_token", "too_many_words", "read_failed",
                                           "shrank", "spill_failed"};
  const TextEncoder::Failure& f = encoder.failure();
  return py::make_tuple(kNames[static_cast<int>(f.fault)], f.offset, f.document, f.error, py::bytes(f.bytes));
}

// Adds one sentence, an iterable of str, to `text` in the form that TextEncoder takes with Options::tokens.
void append_sentence(std::string& text, py::handle sentence, int64_t number) {
  const auto wrong = [number](const std::string& what) {
    throw py::type_error("sentence " + std::to_string(number) + ": " + what);
  };
  if (PyUnicode_Check(sentence.ptr()) || PyBytes_Check(sentence.ptr())) {
    wrong("expected a list of str, got one " + std::string(Py_TYPE(sentence.ptr())->tp_name) +
          "; split it first, say with .split()");
  }
  if (!PySequence_Check(sentence.ptr()) && !PyIter_Check(sentence.ptr())) {
    wrong("expected a list of str, got " + std::string(Py_TYPE(sentence.ptr())->tp_name));
  }
  const auto tokens = py::reinterpret_steal<py::object>(PySequence_Fast(sentence.ptr(), "expected a list of str"));
  if (!tokens) throw py::error_already_set();
  const Py_ssize_t n = PySequence_Fast_GET_SIZE(tokens.ptr());
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* token = PySequence_Fast_GET_ITEM(tokens.ptr(), i);
    if (!PyUnicode_Check(token)) {
      wrong("expected str, got " + std::string(Py_TYPE(token)->tp_name) + " as token " + std::to_string(i));
    }
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(token, &size);
    if (bytes) {
      text.append(bytes, static_cast<size_t>(size));
    } else {  // lone surrogates: ill-formed UTF-8, for the encoder to judge
      PyErr_Clear();
      const auto raw = py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(token, "utf-8", "surrogatepass"));
      if (!raw) throw py::error_already_set();
      text.append(std::string_view(raw));
    }
    text += '\xFE';
  }
  text += '\xFF';
}

void bind_text(py::module_& m) {
  py::class_<TextEncoder>(m, "TextEncoder")
      .def(py::init([](int n_threads, int64_t block_bytes, int64_t memory_bytes, int spill_fd,
                       const std::string& errors, int64_t max_distinct, bool tokens, bool pruning) {
             const auto policy = errors == "strict"    ? TextEncoder::Errors::strict
                                 : errors == "replace" ? TextEncoder::Errors::replace
                                                       : TextEncoder::Errors::skip;
             if (n_threads < 1 || block_bytes < 1 || max_distinct < 1 || max_distinct > (int64_t{1} << 30)) {
               throw py::value_error(
                   "TextEncoder: n_threads, block_bytes and max_distinct are 1 or more, max_distinct <= 2**30");
             }
             return std::make_unique<TextEncoder>(TextEncoder::Options{n_threads, block_bytes, memory_bytes, spill_fd,
                                                                       policy, max_distinct, tokens, pruning});
           }),
           py::kw_only(), "n_threads"_a, "block_bytes"_a, "memory_bytes"_a, "spill_fd"_a, "errors"_a, "max_distinct"_a,
           "tokens"_a, "pruning"_a)
      .def(
          "set_words",
          [](TextEncoder& encoder, const py::list& words) {
            const auto views = utf8_list(words);
            py::gil_scoped_release no_gil;
            encoder.set_words(views);
          },
          "words"_a)
      .def(
          "add_file",
          [](TextEncoder& encoder, int fd, int64_t begin, int64_t end, int64_t size) {
            bool fine = false;
            {
              py::gil_scoped_release no_gil;
              fine = encoder.add_file(fd, begin, end, size);
            }
            return failure(encoder, fine);
          },
          "fd"_a, "begin"_a, "end"_a, "size"_a)
      .def(
          "add_bytes",
          [](TextEncoder& encoder, const py::buffer& bytes) {
            const py::buffer_info info = bytes.request();
            if (info.ndim != 1 || info.itemsize != 1 || (info.size && info.strides[0] != 1)) {
              throw py::value_error("add_bytes: expected contiguous bytes");
            }
            bool fine = false;
            {
              py::gil_scoped_release no_gil;
              fine = encoder.add_bytes(static_cast<const char*>(info.ptr), info.size);
            }
            return failure(encoder, fine);
          },
          "bytes"_a)
      .def(
          "add_sentences",
          // Takes sentences from an iterator until they fill n_bytes: (exhausted, failure).
          [](TextEncoder& encoder, const py::iterator& sentences, int64_t first_number, int64_t n_bytes) {
            std::string text;
            int64_t number = first_number;
            bool more = true, fine = true;
            while (static_cast<int64_t>(text.size()) < n_bytes) {
              const auto sentence = py::reinterpret_steal<py::object>(PyIter_Next(sentences.ptr()));
              if (!sentence) {
                if (PyErr_Occurred()) throw py::error_already_set();
                more = false;
                break;
              }
              append_sentence(text, sentence, number++);
            }
            {
              py::gil_scoped_release no_gil;
              fine = encoder.add_bytes(text.data(), static_cast<int64_t>(text.size()));
            }
            return py::make_tuple(!more, failure(encoder, fine));
          },
          "sentences"_a, "first_number"_a, "n_bytes"_a)
      .def("end_source",
           [](TextEncoder& encoder) {
             bool fine = false;
             {
               py::gil_scoped_release no_gil;
               fine = encoder.end_source();
             }
             return failure(encoder, fine);
           })
      .def_property_readonly("n_documents", &TextEncoder::n_documents)
      .def_property_readonly("n_newlines", &TextEncoder::n_newlines)
      .def(
          "select",
          // (words, counts, n_tokens, n_distinct, largest_count)
          [](TextEncoder& encoder, int64_t min_count, int64_t max_vocab, const py::list& keep, bool fixed) {
            const auto views = utf8_list(keep);
            const TextEncoder::Vocabulary* v = nullptr;
            {
              py::gil_scoped_release no_gil;
              v = &encoder.select(min_count, max_vocab, views, fixed);
            }
            py::list words;
            for (size_t rank = 0; !fixed && rank < v->order.size(); ++rank) {
              const std::string_view word = encoder.word(static_cast<int64_t>(rank));
              words.append(py::str(word.data(), word.size()));
            }
            py::array_t<int64_t> counts(static_cast<py::ssize_t>(v->counts.size()), v->counts.data());
            return py::make_tuple(words, counts, v->n_tokens, v->n_distinct, v->largest_count);
          },
          "min_count"_a, "max_vocab"_a, "keep"_a, "fixed"_a)
      .def(
          "write",
          // Fills ids (n_tokens) and offsets (n_documents + 1); once. False: the spill file could not be read back.
          [](TextEncoder& encoder, py::array ids, py::array offsets, int64_t n_tokens) {
            check::vector<int32_t>(ids, "ids", n_tokens);
            check::vector<int64_t>(offsets, "offsets", encoder.n_documents() + 1);
            if (!ids.writeable() || !offsets.writeable()) throw py::value_error("ids and offsets must be writable");
            auto* to_ids = static_cast<int32_t*>(ids.mutable_data());
            auto* to_offsets = static_cast<int64_t*>(offsets.mutable_data());
            py::gil_scoped_release no_gil;
            return encoder.write(to_ids, to_offsets);
          },
          "ids"_a, "offsets"_a, "n_tokens"_a);
}

// Decimals -----------------------------------------------------------------------------------------------------------

void bind_decimals(py::module_& m) {
  constexpr int most_threads = 4096;
  m.def(
      "parse_lines",
      // (bounds int64 (n, 2), row int64 (n,), plain bool (n,), values float32 (rows, dim)): see csrc/decimals.h.
      [](const py::bytes& bytes, int64_t dim, int threads) {
        const std::string_view text(bytes);
        if (dim < 1 || threads < 1 || threads > most_threads) {
          throw py::value_error("parse_lines: expected dim of 1 or more and threads in 1..4096");
        }
        if (!text.empty() && text.back() != '\n') throw py::value_error("parse_lines: expected a newline at the end");
        std::vector<Line> lines;
        int64_t n_rows = 0;
        {
          py::gil_scoped_release no_gil;
          lines = find_lines(text, dim);
          for (const Line& line : lines) n_rows = std::max(n_rows, line.row + 1);
        }
        const auto n = static_cast<py::ssize_t>(lines.size());
        py::array_t<float> values({static_cast<py::ssize_t>(n_rows), static_cast<py::ssize_t>(dim)});
        py::array_t<int64_t> bounds({n, py::ssize_t{2}}), row(n);
        py::array_t<bool> plain(n);
        float* to_values = values.mutable_data();
        int64_t *to_bounds = bounds.mutable_data(), *to_row = row.mutable_data();
        bool* to_plain = plain.mutable_data();
        {
          py::gil_scoped_release no_gil;
          parse_lines(text, dim, lines, to_values, threads);
          for (size_t i = 0; i < lines.size(); ++i) {
            to_bounds[2 * i] = lines[i].begin, to_bounds[2 * i + 1] = lines[i].end;
            to_row[i] = lines[i].row, to_plain[i] = lines[i].plain;
          }
        }
        return py::make_tuple(bounds, row, plain, values);
      },
      "text"_a, "dim"_a, "threads"_a);
  m.def(
      "format_lines",
      [](const std::optional<py::list>& keys, const py::array& rows, char separator, int threads) {
        const float* numbers = check::array<float>(rows, "rows", 2, "a C-contiguous float32 matrix");
        const int64_t n = rows.shape(0), dim = rows.shape(1);
        if (threads < 1 || threads > most_threads) throw py::value_error("format_lines: expected threads in 1..4096");
        std::vector<std::string_view> names;
        if (keys) {
          if (static_cast<int64_t>(keys->size()) != n) throw py::value_error("keys: expected one for each row");
          for (const py::handle key : *keys) {
            if (!PyBytes_Check(key.ptr())) throw py::type_error("keys: expected a list of bytes");
            names.emplace_back(PyBytes_AS_STRING(key.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(key.ptr())));
          }
        }
        std::vector<Text> texts;
        py::ssize_t size = 0;
        {
          py::gil_scoped_release no_gil;
          texts = format_lines(names, numbers, n, dim, separator, threads);
          for (const Text& text : texts) size += text.size;
        }
        auto joined = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, size));
        if (!joined) throw py::error_already_set();
        char* at = PyBytes_AS_STRING(joined.ptr());
        for (const Text& text : texts) at = std::copy_n(text.bytes.get(), text.size, at);
        return joined;
      },
      "keys"_a, "rows"_a, "separator"_a, "threads"_a);
}

// Tables and training -------------------------------------------------------------------------------------------------

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

void bind_tables(py::module_& m) {
  py::class_<NoiseTable>(m, "NoiseTable", "An alias table: draws word i with probability weights[i] / sum(weights).")
      .def(py::init([](const py::array& weights) {
             const double* w = check::vector<double>(weights, "weights");
             const int64_t n = weights.shape(0);
             double total = 0.0;
             for (int64_t i = 0; i < n; ++i) {
               if (!(w[i] >= 0.0)) throw py::value_error("weights: entry " + std::to_string(i) + " is not >= 0");
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
          "int32 (n,): draws first, first + 1, ... of this seed and epoch, as train_sequences wants them.")
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

  py::class_<HuffmanPaths>(m, "HuffmanTree", "Huffman paths of words whose counts are positive and descend.")
      .def(py::init([](const py::array& counts) {
             const int64_t* c = check::vector<int64_t>(counts, "counts");
             const int64_t n = counts.shape(0);
             if (n < 2) throw py::value_error("counts: a tree needs at least 2 words");
             int64_t total = 0;
             for (int64_t i = 0; i < n; ++i) {
               if (c[i] <= 0 || (i && c[i] > c[i - 1])) {
                 throw py::value_error("counts: entry " + std::to_string(i) + " breaks the positive, descending order");
               }
               if (__builtin_add_overflow(total, c[i], &total)) throw py::value_error("counts: the sum passes 2^63");
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

void check_ids(const int32_t* ids, int64_t n, const char* name, int64_t n_words) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, static_cast<uint32_t>(ids[i]));
  if (n > 0 && largest >= n_words) {
    throw py::value_error(std::string(name) + ": expected 0 <= id < " + std::to_string(n_words));
  }
}

constexpr int most = 1 << 20;  // of windows, draws and tags, so that sizes made of these stay far from overflow

using Table = std::optional<py::array>;

// The tables of a job, and the number of words that they are for.
int64_t set_tables(Job& job, Table& w_in, Table& w_out, Table& w_nodes, Table& w_docs, const HuffmanPaths* tree) {
  if (w_in) job.w_in = check::rows(*w_in, "w_in");
  if (w_docs) job.w_docs = check::rows(*w_docs, "w_docs", w_in ? job.w_in.dim : -1);
  if (!w_in && (!w_docs || job.words)) throw py::value_error("w_in is needed, unless tags alone predict words");
  if (!w_out && !w_nodes) throw py::value_error("one of w_out and w_nodes is needed");
  job.dim = w_in ? job.w_in.dim : job.w_docs.dim;
  job.hidden_dim = job.concat ? (job.most_tags + 2 * job.window) * job.dim : job.dim;
  if (w_out) job.w_out = check::rows(*w_out, "w_out", job.hidden_dim);
  if (w_nodes) job.w_nodes = check::rows(*w_nodes, "w_nodes", job.hidden_dim);
  const int64_t n_words = w_in ? job.w_in.n - job.concat : w_out ? job.w_out.n : job.w_nodes.n + 1;
  if (w_out && job.w_out.n != n_words) {
    check::fail("w_out", job.concat ? "one row less than w_in" : "as many rows as w_in", *w_out);
  }
  if (w_nodes) {
    if (!tree || static_cast<int64_t>(tree->offsets.size()) != n_words + 1 || job.w_nodes.n < n_words - 1) {
      throw py::value_error("w_nodes needs a tree of as many words as w_in has rows, and a row for each node");
    }
    if (job.centers != 1) throw py::value_error("w_nodes needs centers = 1");
    job.path_offsets = tree->offsets.data(), job.path_nodes = tree->nodes.data();
    job.path_codes = tree->codes.data();
    for (int64_t i = 0; i < n_words; ++i) {
      job.longest_path = std::max(job.longest_path, tree->offsets[i + 1] - tree->offsets[i]);
    }
  }
  return n_words;
}

void set_draws(Job& job, const Table& keep, const Table& noise, int64_t n_words) {
  if (keep) job.keep = check::vector<uint32_t>(*keep, "keep", n_words);
  if (job.drawn > 0 && (!noise || !job.w_out.data)) throw py::value_error("drawn > 0 needs noise and w_out");
  if (noise && job.drawn > 0) {
    job.noise = check::vector<int32_t>(*noise, "noise"), job.n_noise = noise->shape(0);
    const int64_t at_once = int64_t{job.drawn} * (job.shared || job.cbow ? 1 : 2 * job.window);
    if (job.n_noise < at_once || job.n_noise > max_noise) {
      check::fail("noise", std::to_string(at_once) + "..2^31 entries", *noise);
    }
    check_ids(job.noise, job.n_noise, "noise", n_words);
  }
}

void set_windows(Job& job, int window, bool shrink, bool cbow, bool mean, bool concat, int centers, int drawn,
                 float scale) {
  if (drawn < 0 || drawn > most || centers < 1 || centers > max_centers || window < 1 || window > most) {
    throw py::value_error("expected drawn in 0..2^20, window in 1..2^20 and centers in 1.." +
                          std::to_string(max_centers));
  }
  if (concat && (!cbow || shrink)) throw py::value_error("concat needs cbow and shrink = False");
  job.window = window, job.shrink = shrink, job.cbow = cbow, job.mean = mean, job.concat = concat;
  job.centers = centers, job.drawn = drawn, job.scale = scale;
}

// Offsets that rise from 0 to n_entries.
const int64_t* ascending(const py::array& offsets, const char* name, int64_t n, int64_t n_entries) {
  const int64_t* o = check::vector<int64_t>(offsets, name, n + 1);
  bool rises = o[0] == 0 && o[n] == n_entries;
  for (int64_t i = 0; i < n; ++i) rises &= o[i] <= o[i + 1];
  if (!rises) throw py::value_error(std::string(name) + ": expected to rise from 0 to " + std::to_string(n_entries));
  return o;
}

void set_tags(Job& job, const Table& tag_offsets, const Table& tags) {
  if (!tag_offsets || !tags) throw py::value_error("w_docs needs tag_offsets and tags");
  job.tags = check::vector<int32_t>(*tags, "tags");
  job.tag_offsets = ascending(*tag_offsets, "tag_offsets", job.n_documents, tags->shape(0));
  int64_t fewest = most;
  for (int64_t d = 0; d < job.n_documents; ++d) {
    const int64_t n = job.tag_offsets[d + 1] - job.tag_offsets[d];
    fewest = std::min(fewest, n), job.most_tags = std::max(job.most_tags, n);
  }
  if (job.most_tags > most) throw py::value_error("tags: expected at most 2^20 for a document");
  if (job.concat && fewest != job.most_tags) {
    throw py::value_error("tags: concat needs as many for each document, got " + std::to_string(fewest) + " to " +
                          std::to_string(job.most_tags));
  }
}

void bind_sequences(py::module_& m) {
  m.attr("max_centers") = max_centers;
  m.def(
      "train_sequences",
      [](Table w_in, Table w_out, Table w_nodes, const py::array& ids, const py::array& offsets,
         const py::array& blocks, int64_t first_block, int64_t last_block, const Table& keep, const Table& noise,
         const HuffmanPaths* tree, Table w_docs, const Table& tag_offsets, const Table& tags, int window, bool shrink,
         bool cbow, bool words, bool mean, bool concat, bool shared, int centers, int drawn, float scale, uint64_t seed,
         uint64_t epoch, float lr_first, float lr_last, int64_t tokens_before, int64_t tokens_total, int threads) {
        Job job{};
        set_windows(job, window, shrink, cbow, mean, concat, centers, drawn, scale);
        job.words = words || cbow, job.shared = shared;
        job.ids = check::vector<int32_t>(ids, "ids");
        job.offsets = check::vector<int64_t>(offsets, "offsets");
        job.n_documents = offsets.shape(0) - 1;
        if (job.n_documents < 1) throw py::value_error("offsets: expected at least 2 entries");
        if (w_docs) set_tags(job, tag_offsets, tags);
        const int64_t n_words = set_tables(job, w_in, w_out, w_nodes, w_docs, tree);
        if (w_docs) check_ids(job.tags, tags->shape(0), "tags", job.w_docs.n);
        job.blocks = check::vector<int64_t>(blocks, "blocks");
        if (first_block < 0 || last_block < first_block || last_block >= std::max<int64_t>(blocks.shape(0), 1)) {
          throw py::value_error("blocks " + std::to_string(first_block) + ".." + std::to_string(last_block) +
                                " are outside the " + std::to_string(blocks.shape(0) - 1) + " that there are");
        }
        job.first_block = first_block, job.last_block = last_block;
        for (int64_t b = first_block; b < last_block; ++b) {
          if (job.blocks[b] < 0 || job.blocks[b + 1] < job.blocks[b] || job.blocks[b + 1] > ids.shape(0)) {
            throw py::value_error("blocks: entry " + std::to_string(b) + " does not ascend within the ids");
          }
          job.longest_block = std::max(job.longest_block, job.blocks[b + 1] - job.blocks[b]);
        }
        if (first_block < last_block) {
          const int64_t begin = job.blocks[first_block];
          check_ids(job.ids + begin, job.blocks[last_block] - begin, "ids", n_words);
        }
        set_draws(job, keep, noise, n_words);
        if (!shared && centers != 1) throw py::value_error("per-pair draws need centers = 1");
        if (!shared && !cbow && w_docs) throw py::value_error("w_docs needs shared draws");
        if (threads < 1 || threads > 4096) throw py::value_error("threads: expected 1..4096");
        job.seed = seed, job.epoch = epoch, job.lr_first = lr_first, job.lr_last = lr_last;
        job.tokens_before = tokens_before, job.tokens_total = std::max<int64_t>(tokens_total, 1);
        Tally tally;
        {
          py::gil_scoped_release no_gil;
          tally = train_sequences(job, threads);
        }
        return py::make_tuple(tally.loss, tally.examples, tally.kept);
      },
      "w_in"_a, "w_out"_a, "w_nodes"_a, "ids"_a, "offsets"_a, "blocks"_a, "first_block"_a, "last_block"_a,
      "keep"_a = py::none(), "noise"_a = py::none(), "tree"_a = py::none(), "w_docs"_a = py::none(),
      "tag_offsets"_a = py::none(), "tags"_a = py::none(), py::kw_only(), "window"_a, "shrink"_a, "cbow"_a,
      "words"_a = true, "mean"_a, "concat"_a = false, "shared"_a, "centers"_a, "drawn"_a, "scale"_a, "seed"_a,
      "epoch"_a, "lr_first"_a, "lr_last"_a, "tokens_before"_a, "tokens_total"_a, "threads"_a);
  m.def(
      "infer_documents",
      [](Table w_docs, int64_t dim, Table w_in, Table w_out, Table w_nodes, const py::array& ids,
         const py::array& offsets, const Table& keep, const Table& noise, const HuffmanPaths* tree, int window,
         bool shrink, bool cbow, bool mean, bool concat, int centers, int drawn, float scale, int epochs, uint64_t seed,
         float lr_first, float lr_last, int threads) {
        Job job{};
        set_windows(job, window, shrink, cbow, mean, concat, centers, drawn, scale);
        job.words = cbow, job.shared = true, job.frozen = true, job.most_tags = 1;
        if (!w_docs) throw py::value_error("w_docs is needed");
        const int64_t n_words = set_tables(job, w_in, w_out, w_nodes, w_docs, tree);
        job.ids = check::vector<int32_t>(ids, "ids");
        check_ids(job.ids, ids.shape(0), "ids", n_words);
        job.n_documents = job.w_docs.n;
        job.offsets = ascending(offsets, "offsets", job.n_documents, ids.shape(0));
        for (int64_t d = 0; d < job.n_documents; ++d) {
          job.longest_block = std::max(job.longest_block, job.offsets[d + 1] - job.offsets[d]);
        }
        set_draws(job, keep, noise, n_words);
        if (dim < 1 || dim > job.dim) throw py::value_error("dim: expected 1.." + std::to_string(job.dim));
        if (epochs < 1) throw py::value_error("epochs: expected 1 or more");
        if (threads < 1 || threads > 4096) throw py::value_error("threads: expected 1..4096");
        job.seed = seed, job.lr_first = lr_first, job.lr_last = lr_last;
        Tally tally;
        {
          py::gil_scoped_release no_gil;
          tally = infer_documents(job, dim, epochs, threads);
        }
        return py::make_tuple(tally.loss, tally.examples, tally.kept);
      },
      "w_docs"_a, "dim"_a, "w_in"_a, "w_out"_a, "w_nodes"_a, "ids"_a, "offsets"_a, "keep"_a = py::none(),
      "noise"_a = py::none(), "tree"_a = py::none(), py::kw_only(), "window"_a, "shrink"_a, "cbow"_a, "mean"_a,
      "concat"_a = false, "centers"_a, "drawn"_a, "scale"_a, "epochs"_a, "seed"_a, "lr_first"_a, "lr_last"_a,
      "threads"_a);
}

// GloVe --------------------------------------------------------------------------------------------------------------

// Runs f without the GIL; an error of the system becomes an OSError with its number.
template <class F>
auto unlocked(F&& f) {
  try {
    py::gil_scoped_release no_gil;
    return f();
  } catch (const std::system_error& error) {
    const auto numbered = py::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, numbered.ptr());
    throw py::error_already_set();
  }
}

void bind_cooccurrence(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Entry, row, column, value);
  m.attr("entry") = py::dtype::of<Entry>();
  py::class_<CooccurrenceCounter>(m, "CooccurrenceCounter")
      .def(py::init([](const py::array& ids, const py::array& offsets, int32_t n_words, int window, bool symmetric,
                       bool distance_weighting, int threads, int64_t buffer_bytes, int spill_fd, int out_fd,
                       int64_t out_begin) {
             CooccurrenceCounter::Options options{};
             options.ids = check::vector<int32_t>(ids, "ids");
             options.offsets = check::vector<int64_t>(offsets, "offsets");
             options.n_documents = offsets.shape(0) - 1;
             if (options.n_documents < 1 || options.offsets[0] != 0 ||
                 options.offsets[options.n_documents] != ids.shape(0)) {
               throw py::value_error("offsets: expected them to run from 0 to the number of ids");
             }
             for (int64_t d = 0; d < options.n_documents; ++d) {
               if (options.offsets[d] > options.offsets[d + 1]) {
                 throw py::value_error("offsets: entry " + std::to_string(d + 1) + " does not ascend");
               }
             }
             if (n_words < 1 || window < 1 || window > 65535 || threads < 1 || threads > 4096 || out_begin < 0 ||
                 buffer_bytes < 16 * (int64_t{n_words} + 1)) {
               throw py::value_error(
                   "expected n_words >= 1, window in 1..65535, threads in 1..4096, out_begin >= 0 and "
                   "buffer_bytes >= 16 * (n_words + 1)");
             }
             options.n_words = n_words, options.window = window, options.symmetric = symmetric;
             options.distance_weighting = distance_weighting, options.threads = threads;
             options.buffer_bytes = buffer_bytes, options.spill_fd = spill_fd, options.out_fd = out_fd;
             options.out_begin = out_begin;
             return std::make_unique<CooccurrenceCounter>(options);
           }),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), "ids"_a, "offsets"_a, py::kw_only(), "n_words"_a, "window"_a,
           "symmetric"_a, "distance_weighting"_a, "threads"_a, "buffer_bytes"_a, "spill_fd"_a, "out_fd"_a,
           "out_begin"_a)
      .def(
          "start",
          [](CooccurrenceCounter& counter, int64_t begin, int64_t end, bool only) {
            if (!unlocked([&] { return counter.start(begin, end, only); })) {
              throw py::value_error("ids: expected 0 <= id < n_words");
            }
          },
          "begin"_a, "end"_a, "only"_a)
      .def(
          "count", [](CooccurrenceCounter& c, int64_t first) { return unlocked([&] { return c.count(first); }); },
          "first"_a)
      .def(
          "merge", [](CooccurrenceCounter& c, int64_t first) { return unlocked([&] { return c.merge(first); }); },
          "first"_a)
      .def_property_readonly("n_entries", &CooccurrenceCounter::n_entries)
      .def_property_readonly("bits", &CooccurrenceCounter::bits)
      .def_static("bytes_per_thread", &CooccurrenceCounter::bytes_per_thread, "n_words"_a)
      .def_static("bytes_of_words", &CooccurrenceCounter::bytes_of_words, "n_words"_a)
      .def_property_readonly_static("bytes_per_token",
                                    [](const py::object&) { return int64_t{CooccurrenceCounter::bytes_per_token}; });
}

void bind_glove(py::module_& m) {
  m.def(
      "group_entries",
      [](const py::array& entries, const py::array& place, int64_t n_rows, int64_t tile, int64_t n_groups,
         uint64_t seed, py::array groups, py::array grouped) {
        Grouping g{};
        g.entries = check::vector<Entry>(entries, "entries");
        g.n_entries = entries.shape(0);
        g.place = check::vector<int32_t>(place, "place");
        g.n_words = place.shape(0);
        if (n_rows < 1 || n_rows > std::numeric_limits<int32_t>::max() || tile < 0) {
          throw py::value_error("expected n_rows in 1..2^31 - 1 and tile >= 0");
        }
        for (int64_t i = 0; i < g.n_words; ++i) {
          if (g.place[i] < 0 || g.place[i] >= n_rows) throw py::value_error("place: expected 0 <= place < n_rows");
        }
        const int64_t across = tile ? (n_rows + tile - 1) / tile : 0;
        if (n_groups < 1 || n_groups > std::numeric_limits<int32_t>::max() || (tile && n_groups != across * across)) {
          throw py::value_error("n_groups: expected 1..2^31 - 1, of tiles as many as there are");
        }
        g.n_rows = n_rows, g.tile = tile, g.n_groups = n_groups, g.seed = seed;
        check::vector<int64_t>(groups, "groups", n_groups + 1);
        check::vector<Entry>(grouped, "grouped", g.n_entries);
        if (!groups.writeable()) check::fail("groups", "a writable array", groups);
        if (!grouped.writeable()) check::fail("grouped", "a writable array", grouped);
        auto* edges = static_cast<int64_t*>(groups.mutable_data());
        auto* target = static_cast<Entry*>(grouped.mutable_data());
        return unlocked([&] { return group_entries(g, edges, target); });
      },
      "entries"_a, "place"_a, py::kw_only(), "n_rows"_a, "tile"_a, "n_groups"_a, "seed"_a, "groups"_a, "grouped"_a);
  m.def(
      "random_order",
      [](int64_t n, uint64_t seed, uint64_t epoch) {
        if (n < 0 || n > std::numeric_limits<int32_t>::max()) throw py::value_error("n: expected 0..2^31 - 1");
        py::array_t<int32_t> order(n);
        random_order(order.mutable_data(), static_cast<uint32_t>(n), seed, epoch);
        return order;
      },
      "n"_a, "seed"_a, "epoch"_a);
  m.def(
      "train_entries",
      [](py::array w_in, py::array w_out, py::array sums_in, py::array sums_out, int64_t dim, const py::array& entries,
         const py::array& groups, const py::array& order, int64_t first, int64_t last, float x_max, float alpha,
         float lr, uint64_t seed, uint64_t epoch, int threads) {
        GloveJob job{};
        job.w_in = check::rows(w_in, "w_in");
        job.w_out = check::rows(w_out, "w_out", job.w_in.dim);
        job.sums_in = check::rows(sums_in, "sums_in", job.w_in.dim);
        job.sums_out = check::rows(sums_out, "sums_out", job.w_in.dim);
        const int64_t n = job.w_in.n;
        if (job.w_out.n != n || job.sums_in.n != n || job.sums_out.n != n) {
          throw py::value_error("w_in, w_out, sums_in and sums_out: expected as many rows of each");
        }
        if (dim < 1 || dim >= job.w_in.dim) throw py::value_error("dim: expected 1 or more, below the columns");
        job.dim = dim;
        job.entries = check::vector<Entry>(entries, "entries");
        job.groups = check::vector<int64_t>(groups, "groups");
        job.order = check::vector<int32_t>(order, "order");
        if (first < 0 || last < first || last > order.shape(0)) {
          throw py::value_error("expected 0 <= first <= last <= " + std::to_string(order.shape(0)));
        }
        job.first = first, job.last = last;
        for (int64_t i = first; i < last; ++i) {
          const int64_t g = job.order[i];
          if (g < 0 || g >= groups.shape(0) - 1) throw py::value_error("order: expected groups that there are");
          const int64_t begin = job.groups[g], end = job.groups[g + 1];
          if (begin < 0 || end < begin || end > entries.shape(0)) {
            throw py::value_error("groups: entry " + std::to_string(g) + " does not ascend within the entries");
          }
          job.longest = std::max(job.longest, end - begin);
          for (int64_t e = begin; e < end; ++e) {
            const auto row = static_cast<uint32_t>(job.entries[e].row);
            const auto column = static_cast<uint32_t>(job.entries[e].column);
            if (std::max(row, column) >= n) throw py::value_error("entries: expected 0 <= id < " + std::to_string(n));
          }
        }
        if (job.longest > std::numeric_limits<uint32_t>::max()) throw py::value_error("a group has 2^32 entries");
        if (threads < 1 || threads > 4096) throw py::value_error("threads: expected 1..4096");
        job.x_max = x_max, job.alpha = alpha, job.lr = lr, job.seed = seed, job.epoch = epoch;
        const GloveTally tally = unlocked([&] { return train_entries(job, threads); });
        return py::make_tuple(tally.loss, tally.entries);
      },
      "w_in"_a, "w_out"_a, "sums_in"_a, "sums_out"_a, "dim"_a, "entries"_a, "groups"_a, "order"_a, "first"_a, "last"_a,
      py::kw_only(), "x_max"_a, "alpha"_a, "lr"_a, "seed"_a, "epoch"_a, "threads"_a);
}

// Graphs -------------------------------------------------------------------------------------------------------------

// None, or (fault, line, columns found, expected, first bytes).
py::object failure(const EdgeReader& reader, bool fine) {
  if (fine) return py::none();
  static constexpr const char* kNames[] = {"", "columns", "weight", "name", "number", "too_many_nodes"};
  const EdgeReader::Failure& f = reader.failure();
  return py::make_tuple(kNames[static_cast<int>(f.fault)], f.line, f.found, f.expected, py::bytes(f.bytes));
}

// The numbers of a vector as an array that owns them; the vector is left empty.
template <class Vector>
py::array_t<typename Vector::value_type> moved(Vector& numbers) {
  using T = typename Vector::value_type;
  auto* kept = new Vector(std::move(numbers));
  numbers.clear();
  const py::capsule owner(kept, [](void* p) { delete static_cast<Vector*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

void bind_edges(py::module_& m) {
  py::class_<EdgeReader>(m, "EdgeReader")
      .def(py::init([](const std::string& weights, int64_t numbered, int64_t first_line) {
             if (numbered < 0 || numbered > std::numeric_limits<int32_t>::max()) {
               throw py::value_error("numbered: expected 0..2^31 - 1");
             }
             const auto which = weights == "read"      ? EdgeReader::Weights::read
                                : weights == "ignored" ? EdgeReader::Weights::ignored
                                                       : EdgeReader::Weights::as_found;
             return std::make_unique<EdgeReader>(which, numbered, first_line);
           }),
           py::kw_only(), "weights"_a, "numbered"_a, "first_line"_a)
      .def(
          "add_bytes",
          [](EdgeReader& reader, const py::buffer& bytes) {
            const py::buffer_info info = bytes.request();
            if (info.ndim != 1 || info.itemsize != 1 || (info.size && info.strides[0] != 1)) {
              throw py::value_error("add_bytes: expected contiguous bytes");
            }
            bool fine = false;
            {
              py::gil_scoped_release no_gil;
              fine = reader.add_bytes(static_cast<const char*>(info.ptr), info.size);
            }
            return failure(reader, fine);
          },
          "bytes"_a)
      .def("end", [](EdgeReader& reader) { return failure(reader, reader.end()); })
      .def(
          "take",
          [](EdgeReader& reader) {
            return py::make_tuple(moved(reader.sources), moved(reader.targets), moved(reader.weights));
          },
          "int32 sources and targets, float32 weights (or none) of the lines read since the last call.")
      .def_property_readonly("weighted", &EdgeReader::weighted)
      .def_property_readonly("n_nodes", &EdgeReader::n_nodes)
      .def("names", [](const EdgeReader& reader) { return py::bytes(reader.names()); });

  m.def(
      "csr",
      [](const py::array& sources, const py::array& targets, const std::optional<py::array>& weights, int64_t n_nodes,
         bool both_ways, bool keep_first) {
        const int32_t* from = check::vector<int32_t>(sources, "sources");
        const int64_t n = sources.shape(0);
        const int32_t* to = check::vector<int32_t>(targets, "targets", n);
        const float* w = weights ? check::vector<float>(*weights, "weights", n) : nullptr;
        if (n_nodes < 0 || n_nodes > std::numeric_limits<int32_t>::max()) {
          throw py::value_error("n_nodes: expected 0..2^31 - 1");
        }
        check_ids(from, n, "sources", n_nodes);
        check_ids(to, n, "targets", n_nodes);
        Csr graph;
        {
          py::gil_scoped_release no_gil;
          graph = csr(from, to, w, n, n_nodes, both_ways, keep_first);
        }
        py::object carried = py::none();
        if (w || !graph.weights.empty()) carried = moved(graph.weights);
        return py::make_tuple(moved(graph.offsets), moved(graph.neighbours), carried, graph.n_repeated,
                              py::make_tuple(graph.repeated[0], graph.repeated[1]));
      },
      "sources"_a, "targets"_a, "weights"_a, py::kw_only(), "n_nodes"_a, "both_ways"_a, "keep_first"_a,
      "Sorted rows: offsets, neighbours, weights or None, repeated entries, and the first of them.");
  m.def(
      "asymmetric_entry",
      [](const py::array& offsets, const py::array& neighbours, const std::optional<py::array>& weights) -> py::object {
        const int64_t* begins = check::vector<int64_t>(offsets, "offsets");
        const int32_t* ids = check::vector<int32_t>(neighbours, "neighbours");
        const int64_t n_nodes = offsets.shape(0) - 1, n = neighbours.shape(0);
        const float* w = weights ? check::vector<float>(*weights, "weights", n) : nullptr;
        if (n_nodes < 0 || begins[0] != 0 || begins[n_nodes] != n || !std::is_sorted(begins, begins + n_nodes + 1)) {
          throw py::value_error("offsets: expected to rise from 0 to the number of neighbours");
        }
        check_ids(ids, n, "neighbours", n_nodes);
        int32_t entry[2];
        bool fine = false;
        {
          py::gil_scoped_release no_gil;
          fine = symmetric(begins, ids, w, n_nodes, entry);
        }
        if (fine) return py::none();
        return py::make_tuple(entry[0], entry[1]);
      },
      "offsets"_a, "neighbours"_a, "weights"_a, "(row, neighbour) of an entry without its mirror image, or None.");
}

// Ternary rows -------------------------------------------------------------------------------------------------------

constexpr int64_t most_levels = int64_t{1} << 30;  // of a row: dot products are int32

// Rows of two bit planes, (n, 2, words) with words a multiple of 8.
const uint64_t* bit_planes(const py::array& a, const char* name, int64_t words = -1) {
  const char* expected = "a C-contiguous uint64 array (n, 2, words), words a multiple of 8";
  const uint64_t* bits = check::array<uint64_t>(a, name, 3, expected);
  if (a.shape(1) != 2 || a.shape(2) < 8 || a.shape(2) % 8 || a.shape(2) > most_levels / 64) {
    check::fail(name, expected, a);
  }
  if (words >= 0 && a.shape(2) != words) check::fail(name, std::to_string(words) + " words", a);
  return bits;
}

template <class T>
T* writable(py::array& a, const char* name) {
  if (!a.writeable()) check::fail(name, "a writable array", a);
  return static_cast<T*>(a.mutable_data());
}

int8_t* level_rows(py::array& a, const char* name, int64_t n, int64_t dim) {
  check::array<int8_t>(a, name, 2, "a C-contiguous int8 matrix");
  if (a.shape(0) != n || (dim >= 0 && a.shape(1) != dim)) {
    check::fail(name, std::to_string(n) + " rows" + (dim < 0 ? "" : " of " + std::to_string(dim)), a);
  }
  return writable<int8_t>(a, name);
}

int64_t discretise(const py::array& features, const py::array& low, const py::array& high, py::array* planes,
                   py::array* levels) {
  const float* x = check::array<float>(features, "features", 2, "a C-contiguous float32 matrix");
  const int64_t n = features.shape(0), dim = features.shape(1);
  const float *lows = check::vector<float>(low, "low", dim), *highs = check::vector<float>(high, "high", dim);
  uint64_t* bits = nullptr;
  int8_t* bytes = nullptr;
  int64_t words = 0;
  if (planes) {
    bit_planes(*planes, "planes");
    words = planes->shape(2);
    if (planes->shape(0) != n || words * 64 < dim) {
      check::fail("planes", std::to_string(n) + " rows of " + std::to_string(dim) + " levels", *planes);
    }
    bits = writable<uint64_t>(*planes, "planes");
  } else {
    bytes = level_rows(*levels, "levels", n, dim);
  }
  py::gil_scoped_release no_gil;
  return EMBFAST_CHOOSE_POPCNT(discretise)(x, n, dim, lows, highs, bits, words, bytes);
}

void bind_ternary(py::module_& m) {
  m.def(
      "ternary_levels",
      [](const py::array& features, const py::array& low, const py::array& high, py::array levels) {
        return discretise(features, low, high, nullptr, &levels);
      },
      "features"_a, "low"_a, "high"_a, "levels"_a, "The first row with a NaN, where it stops, or -1.");
  m.def(
      "ternary_pack",
      [](const py::array& features, const py::array& low, const py::array& high, py::array planes) {
        return discretise(features, low, high, &planes, nullptr);
      },
      "features"_a, "low"_a, "high"_a, "planes"_a, "The first row with a NaN, where it stops, or -1.");
  m.def(
      "ternary_unpack",
      [](const py::array& planes, py::array levels) {
        const uint64_t* bits = bit_planes(planes, "planes");
        const int64_t n = planes.shape(0), words = planes.shape(2);
        int8_t* bytes = level_rows(levels, "levels", n, -1);
        const int64_t dim = levels.shape(1);
        if (dim > words * 64) check::fail("levels", "at most " + std::to_string(words * 64) + " columns", levels);
        py::gil_scoped_release no_gil;
        EMBFAST_CHOOSE_POPCNT(unpack)(bits, n, words, dim, bytes);
      },
      "planes"_a, "levels"_a);
  m.def(
      "ternary_nonzeros",
      [](const py::array& planes, py::array nonzeros) {
        const uint64_t* bits = bit_planes(planes, "planes");
        const int64_t n = planes.shape(0), words = planes.shape(2);
        check::vector<int32_t>(nonzeros, "nonzeros", n);
        auto* counts = writable<int32_t>(nonzeros, "nonzeros");
        py::gil_scoped_release no_gil;
        EMBFAST_CHOOSE_POPCNT(count_nonzeros)(bits, n, words, counts);
      },
      "planes"_a, "nonzeros"_a);
  m.def(
      "ternary_top",
      [](const py::array& queries, const py::array& planes, const py::array& nonzeros,
         const std::optional<py::array>& excluded, const std::optional<py::array>& own, int64_t first, py::array ids,
         py::array keys, int threads) {
        TernarySearch s{};
        s.planes = bit_planes(planes, "planes");
        s.n = planes.shape(0), s.words = planes.shape(2);
        s.queries = bit_planes(queries, "queries", s.words);
        s.m = queries.shape(0);
        s.nonzeros = check::vector<int32_t>(nonzeros, "nonzeros", s.n);
        if (excluded) s.excluded = check::vector<uint8_t>(*excluded, "excluded", s.n);
        if (own) s.own = check::vector<int64_t>(*own, "own", s.m);
        if (first < 0 || first > std::numeric_limits<int64_t>::max() - s.n) {
          throw py::value_error("first: expected 0 or more, got " + std::to_string(first));
        }
        s.first = first;
        check::array<int64_t>(ids, "ids", 2, "a C-contiguous int64 matrix");
        check::array<double>(keys, "keys", 2, "a C-contiguous float64 matrix");
        s.k = ids.shape(1);
        if (ids.shape(0) != s.m) check::fail("ids", std::to_string(s.m) + " rows", ids);
        if (keys.shape(0) != s.m || keys.shape(1) != s.k) check::fail("keys", "the shape of ids", keys);
        s.ids = writable<int64_t>(ids, "ids"), s.keys = writable<double>(keys, "keys");
        if (threads < 1 || threads > 4096) throw py::value_error("threads: expected 1..4096");
        py::gil_scoped_release no_gil;
        ternary_top(s, threads);
      },
      "queries"_a, "planes"_a, "nonzeros"_a, py::kw_only(), "excluded"_a, "own"_a, "first"_a, "ids"_a, "keys"_a,
      "threads"_a, "Takes the best so far, ids int64 and keys float64 (m, k), further by these rows: csrc/ternary.h.");
}

// Ranking ------------------------------------------------------------------------------------------------------------

template <class T>
T* writable(py::array& a, const char* name, int64_t n, int64_t dim) {
  check::array<T>(a, name, 2, "a C-contiguous matrix of the images' dtype");
  if (!a.writeable() || a.shape(0) != n || a.shape(1) != dim) {
    check::fail(name, "a writable matrix (" + std::to_string(n) + ", " + std::to_string(dim) + ")", a);
  }
  return static_cast<T*>(a.mutable_data());
}

template <class T>
T* writable(py::array& a, const char* name, int64_t n) {
  check::vector<T>(a, name, n);
  return writable<T>(a, name);
}

template <class T>
OrderTile<T> order_tile(const py::array& images, const py::array& captions, int threads) {
  if (threads < 1 || threads > 4096) throw py::value_error("threads: expected 1..4096");
  OrderTile<T> tile{};
  tile.images = check::array<T>(images, "images", 2, "a C-contiguous matrix of float32 or float64");
  tile.captions = check::array<T>(captions, "captions", 2, "a C-contiguous matrix of the images' dtype");
  tile.n_images = images.shape(0), tile.n_captions = captions.shape(0), tile.dim = images.shape(1);
  if (captions.shape(1) != tile.dim) check::fail("captions", std::to_string(tile.dim) + " columns", captions);
  return tile;
}

// f(T()) with the type of the array's numbers; what is neither float nor double fails in order_tile<double>.
template <class F>
void with_type_of(const py::array& a, const F& f) {
  if (py::isinstance<py::array_t<float>>(a)) {
    f(float());
  } else {
    f(double());
  }
}

void bind_ranking(py::module_& m) {
  m.def(
      "order_scores",
      [](const py::array& images, const py::array& captions, py::array scores, int threads) {
        with_type_of(images, [&](auto number) {
          using T = decltype(number);
          const OrderTile<T> tile = order_tile<T>(images, captions, threads);
          T* to = writable<T>(scores, "scores", tile.n_images, tile.n_captions);
          py::gil_scoped_release no_gil;
          order_scores(tile, to, threads);
        });
      },
      "images"_a, "captions"_a, "scores"_a, py::kw_only(), "threads"_a);
  m.def(
      "add_order_gradients",
      [](const py::array& images, const py::array& captions, const py::array& weights,
         std::optional<py::array> to_images, std::optional<py::array> to_captions, int threads) {
        with_type_of(images, [&](auto number) {
          using T = decltype(number);
          const OrderTile<T> tile = order_tile<T>(images, captions, threads);
          const T* weight = check::array<T>(weights, "weights", 2, "a C-contiguous matrix of the images' dtype");
          if (weights.shape(0) != tile.n_images || weights.shape(1) != tile.n_captions) {
            check::fail("weights", "a number for each image and caption", weights);
          }
          T* image = to_images ? writable<T>(*to_images, "to_images", tile.n_images, tile.dim) : nullptr;
          T* caption = to_captions ? writable<T>(*to_captions, "to_captions", tile.n_captions, tile.dim) : nullptr;
          py::gil_scoped_release no_gil;
          add_order_gradients(tile, weight, image, caption, threads);
        });
      },
      "images"_a, "captions"_a, "weights"_a, "to_images"_a, "to_captions"_a, py::kw_only(), "threads"_a);

  m.def(
      "hinges",
      [](py::array scores, const std::optional<py::array>& row_bounds, const std::optional<py::array>& column_bounds,
         std::optional<py::array> row_active, std::optional<py::array> column_active) {
        double loss = 0.0;
        with_type_of(scores, [&](auto number) {
          using T = decltype(number);
          check::array<T>(scores, "scores", 2, "a C-contiguous matrix of float32 or float64");
          HingeTile<T> tile{};
          tile.n_rows = scores.shape(0), tile.n_columns = scores.shape(1);
          tile.scores = writable<T>(scores, "scores", tile.n_rows, tile.n_columns);
          if (bool(row_bounds) != bool(row_active) || bool(column_bounds) != bool(column_active)) {
            throw py::value_error("expected bounds and active, or None for both");
          }
          if (row_bounds) {
            tile.row_bounds = check::vector<T>(*row_bounds, "row_bounds", tile.n_rows);
            tile.row_active = writable<T>(*row_active, "row_active", tile.n_rows);
          }
          if (column_bounds) {
            tile.column_bounds = check::vector<T>(*column_bounds, "column_bounds", tile.n_columns);
            tile.column_active = writable<T>(*column_active, "column_active", tile.n_columns);
          }
          py::gil_scoped_release no_gil;
          loss = EMBFAST_CHOOSE(hinges<T>)(tile);
        });
        return loss;
      },
      "scores"_a, "row_bounds"_a, "column_bounds"_a, "row_active"_a, "column_active"_a);
  m.def(
      "hardest",
      [](const py::array& scores, int axis, const std::optional<py::array>& below, int64_t first, py::array best,
         py::array found) {
        with_type_of(scores, [&](auto number) {
          using T = decltype(number);
          const T* from = check::array<T>(scores, "scores", 2, "a C-contiguous matrix of float32 or float64");
          if (axis != 0 && axis != 1) throw py::value_error("axis: expected 0 for rows or 1 for columns");
          const int64_t n_rows = scores.shape(0), n_columns = scores.shape(1), n = axis ? n_columns : n_rows;
          if (std::max(n_rows, n_columns) > std::numeric_limits<int32_t>::max())
            check::fail("scores", "a tile", scores);
          const T* limit = below ? check::vector<T>(*below, "below", n) : nullptr;
          T* value = writable<T>(best, "best", n);
          int64_t* place = writable<int64_t>(found, "found", n);
          py::gil_scoped_release no_gil;
          (axis ? EMBFAST_CHOOSE(hardest_of_columns<T>) : EMBFAST_CHOOSE(hardest_of_rows<T>))(
              from, n_rows, n_columns, limit, first, value, place);
        });
      },
      "scores"_a, "axis"_a, "below"_a, "first"_a, "best"_a, "found"_a);
}

// The machine --------------------------------------------------------------------------------------------------------

void bind_roofline(py::module_& m) {
  m.def(
      "fma_peak",
      [](double seconds) {
        py::gil_scoped_release no_gil;
        return EMBFAST_CHOOSE(fma_peak)(seconds);
      },
      "seconds"_a, "FLOP/s of one core that does multiply-adds in registers alone, each counted as two.");
  m.def(
      "read_bandwidth",
      [](const py::array& numbers, double seconds) {
        const float* p = check::vector<float>(numbers, "numbers");
        const int64_t n = numbers.shape(0);
        if (n == 0 || n % 1024) throw py::value_error("numbers: expected a positive multiple of 1024 numbers");
        py::gil_scoped_release no_gil;
        return EMBFAST_CHOOSE(read_bandwidth)(p, n, seconds);
      },
      "numbers"_a, "seconds"_a, "Bytes/s of one core that reads these float32 numbers again and again.");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "embfast's CPU kernels; use them through embfast.kernels.";
  m.def("isa", &isa::name, "The instruction set in use: baseline, avx2, avx512 or avx512popcnt.");
  bind_text(m);
  bind_decimals(m);
  bind_tables(m);
  bind_sequences(m);
  bind_cooccurrence(m);
  bind_glove(m);
  bind_edges(m);
  bind_ternary(m);
  bind_ranking(m);
  bind_roofline(m);
}
