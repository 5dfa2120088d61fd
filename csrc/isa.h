// Which instruction sets this machine has. Kernels are compiled once for each and chosen here when they are called.
#pragma once

namespace embfast::isa {

enum Level { baseline = 0, avx2 = 1, avx512 = 2 };

// The best level of this machine, or the one that EMBFAST_ISA=baseline|avx2|avx512 asks for when the machine has it.
// Throws where EMBFAST_ISA is none of the three.
Level level();

// "baseline", "avx2" or "avx512".
const char* name();

}  // namespace embfast::isa

// The function of this name that was compiled for the level in use.
#ifdef EMBFAST_X86
#define EMBFAST_CHOOSE(function)                                             \
  (embfast::isa::level() == embfast::isa::avx512 ? embfast::avx512::function \
   : embfast::isa::level() == embfast::isa::avx2 ? embfast::avx2::function   \
                                                 : embfast::baseline::function)
#else
#define EMBFAST_CHOOSE(function) (embfast::baseline::function)
#endif
