// Python bindings of the text encoder and of decimal numbers.
#include "core/bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "text/decimals.h"
#include "text/text.h"

namespace embfast {

namespace {

std::string_view utf8(py::handle text) {  // valid as long as the str
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

// Appends a sentence, an iterable of str, in the form that TextEncoder reads with Options::tokens.
void append_sentence(std::string& text, py::handle sentence, int64_t number) {
  const auto wrong = [number](const std::string& what) {
    throw py::type_error("sentence " + std::to_string(number) + ": " + what);
  };
  if (PyUnicode_Check(sentence.ptr()) || PyBytes_Check(sentence.ptr())) {
    wrong("expected a list of str, got one " + std::string(Py_TYPE(sentence.ptr())->tp_name) +
          "; split it first, for example with .split()");
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
    } else {  // lone surrogates: ill-formed UTF-8, which the encoder handles
      PyErr_Clear();
      const auto raw = py::reinterpret_steal<py::bytes>(PyUnicode_AsEncodedString(token, "utf-8", "surrogatepass"));
      if (!raw) throw py::error_already_set();
      text.append(std::string_view(raw));
    }
    text += '\xFE';
  }
  text += '\xFF';
}

}  // namespace

void bind_text(py::module_& m) {
  py::class_<TextEncoder>(m, "TextEncoder")
      .def(
          py::init([](int n_threads, int64_t block_bytes, int64_t memory_bytes, int spill_fd, const std::string& errors,
                      int64_t max_distinct, bool tokens, bool pruning) {
            const auto policy = errors == "strict"    ? TextEncoder::Errors::strict
                                : errors == "replace" ? TextEncoder::Errors::replace
                                                      : TextEncoder::Errors::skip;
            if (n_threads < 1 || block_bytes < 1 || max_distinct < 1 || max_distinct > (int64_t{1} << 30)) {
              throw py::value_error(
                  "TextEncoder: n_threads, block_bytes and max_distinct must be 1 or more, max_distinct at most 2**30");
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
            const std::string_view text = check::bytes(info);
            bool fine = false;
            {
              py::gil_scoped_release no_gil;
              fine = encoder.add_bytes(text.data(), static_cast<int64_t>(text.size()));
            }
            return failure(encoder, fine);
          },
          "bytes"_a)
      .def(
          "add_sentences",
          // Reads sentences from an iterator until they fill n_bytes. Returns (exhausted, failure).
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
          // Returns (words, counts, n_tokens, n_distinct, largest_count).
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
          // Fills ids (n_tokens) and offsets (n_documents + 1); called once. False: the spill file could not be read
          // back.
          [](TextEncoder& encoder, py::array ids, py::array offsets) {
            int32_t* to_ids = check::writable<int32_t>(ids, "ids", encoder.n_tokens());
            int64_t* to_offsets = check::writable<int64_t>(offsets, "offsets", encoder.n_documents() + 1);
            py::gil_scoped_release no_gil;
            return encoder.write(to_ids, to_offsets);
          },
          "ids"_a, "offsets"_a);
}

void bind_decimals(py::module_& m) {
  m.def(
      "parse_lines",
      // Returns bounds int64 (n, 2), row int64 (n,), plain bool (n,), values float32 (rows, dim); see decimals.h.
      [](const py::bytes& bytes, int64_t dim, int threads) {
        const std::string_view text(bytes);
        if (dim < 1) throw py::value_error("dim: expected 1 or more");
        check::threads(threads);
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
        check::threads(threads);
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

}  // namespace embfast
