// Instruction sets of this machine. Kernels are compiled once for each and selected at the call.
#pragma once

namespace embfast::isa {

// avx512popcnt adds instructions that count bits (VPOPCNTDQ), for kernels dominated by them. avx512bf16 adds products
// of bfloat16 pairs, for training on sequences; it is the default only where these double the speed.
enum Level { baseline = 0, avx2 = 1, avx512 = 2, avx512popcnt = 3, avx512bf16 = 4 };

// The best level of this machine, or the one requested by EMBFAST_ISA=baseline|avx2|avx512|avx512popcnt|avx512bf16 if
// the machine has it. Throws if EMBFAST_ISA has any other value.
Level level();

// Floats per register at this level.
int width();

// "baseline", "avx2", "avx512", "avx512popcnt" or "avx512bf16".
const char* name();

}  // namespace embfast::isa

// The variant of a function compiled for the level in use.
#ifdef EMBFAST_X86
#define EMBFAST_CHOOSE(function)                                             \
  (embfast::isa::level() >= embfast::isa::avx512 ? embfast::avx512::function \
   : embfast::isa::level() == embfast::isa::avx2 ? embfast::avx2::function   \
                                                 : embfast::baseline::function)
// The same for files that are also compiled for avx512popcnt.
#define EMBFAST_CHOOSE_POPCNT(function) \
  (embfast::isa::level() >= embfast::isa::avx512popcnt ? embfast::avx512popcnt::function : EMBFAST_CHOOSE(function))
#define EMBFAST_CHOOSE_BF16(function) \
  (embfast::isa::level() == embfast::isa::avx512bf16 ? embfast::avx512bf16::function : EMBFAST_CHOOSE(function))
#else
#define EMBFAST_CHOOSE(function) (embfast::baseline::function)
#define EMBFAST_CHOOSE_POPCNT(function) EMBFAST_CHOOSE(function)
#define EMBFAST_CHOOSE_BF16(function) EMBFAST_CHOOSE(function)
#endif
