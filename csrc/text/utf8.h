// UTF-8 (RFC 3629) as texts of this library may hold it: without NUL, which no file format of vectors can store.
#pragma once

#include <string>
#include <string_view>

namespace embfast {

// Whether the bytes are UTF-8 without a NUL.
bool is_text(std::string_view bytes);
// The bytes with one U+FFFD for each maximal ill-formed part and each NUL.
std::string replaced(std::string_view bytes);

}  // namespace embfast
