// Text to ids: tokens counted and encoded in one pass over the bytes.
#pragma once

namespace embfast {}
