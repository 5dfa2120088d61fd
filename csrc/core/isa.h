// Which instruction sets this machine has. Kernels are compiled once for each and chosen here when they are called.
#pragma once

namespace embfast::isa {

// avx512popcnt: avx512 with instructions that count bits (VPOPCNTDQ), for the kernels that live on these. avx512bf16:
// with products of pairs of bfloat16 too, for training on sequences; the best only where they double the speed.
enum Level { baseline = 0, avx2 = 1, avx512 = 2, avx512popcnt = 3, avx512bf16 = 4 };

// The best level of this machine, or the one that EMBFAST_ISA=baseline|avx2|avx512|avx512popcnt|avx512bf16 asks for
// when the machine has it. Throws where EMBFAST_ISA is none of these.
Level level();

// Floats in a register of it.
int width();

// "baseline", "avx2", "avx512", "avx512popcnt" or "avx512bf16".
const char* name();

}  // namespace embfast::isa

// The function of this name that was compiled for the level in use.
#ifdef EMBFAST_X86
#define EMBFAST_CHOOSE(function)                                             \
  (embfast::isa::level() >= embfast::isa::avx512 ? embfast::avx512::function \
   : embfast::isa::level() == embfast::isa::avx2 ? embfast::avx2::function   \
                                                 : embfast::baseline::function)
// The same of a file that is compiled for avx512popcnt too.
#define EMBFAST_CHOOSE_POPCNT(function) \
  (embfast::isa::level() >= embfast::isa::avx512popcnt ? embfast::avx512popcnt::function : EMBFAST_CHOOSE(function))
#define EMBFAST_CHOOSE_BF16(function) \
  (embfast::isa::level() == embfast::isa::avx512bf16 ? embfast::avx512bf16::function : EMBFAST_CHOOSE(function))
#else
#define EMBFAST_CHOOSE(function) (embfast::baseline::function)
#define EMBFAST_CHOOSE_POPCNT(function) EMBFAST_CHOOSE(function)
#define EMBFAST_CHOOSE_BF16(function) EMBFAST_CHOOSE(function)
#endif
