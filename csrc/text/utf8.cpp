#include "text/utf8.h"

#include <cstdint>

namespace embfast {
namespace {

// One decoding step: the byte length of the character at `at`, or minus the length of the maximal ill-formed part,
// which a decoder replaces by one U+FFFD. A NUL counts as ill-formed.
int64_t character(const unsigned char* at, const unsigned char* end) {
  const unsigned char first = *at;
  if (first < 0x80) return first ? 1 : -1;
  int64_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 0;
  if (first >= 0xF0 && first <= 0xF4) length = 4;
  if (!length) return -1;
  for (int64_t i = 1; i < length; ++i) {
    if (at + i == end) return -i;
    unsigned char least = 0x80, most = 0xBF;
    if (i == 1) {  // overlong forms, surrogates, beyond U+10FFFF
      if (first == 0xE0) least = 0xA0;
      if (first == 0xED) most = 0x9F;
      if (first == 0xF0) least = 0x90;
      if (first == 0xF4) most = 0x8F;
    }
    if (at[i] < least || at[i] > most) return -i;
  }
  return length;
}

}  // namespace

bool is_text(std::string_view bytes) {
  const auto* at = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto* end = at + bytes.size();
  while (at < end) {
    const int64_t step = character(at, end);
    if (step < 0) return false;
    at += step;
  }
  return true;
}

std::string replaced(std::string_view bytes) {
  const auto* at = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto* end = at + bytes.size();
  std::string text;
  while (at < end) {
    const int64_t step = character(at, end);
    if (step > 0) {
      text.append(reinterpret_cast<const char*>(at), static_cast<size_t>(step));
    } else {
      text += "\xEF\xBF\xBD";
    }
    at += step < 0 ? -step : step;
  }
  return text;
}

}  // namespace embfast
