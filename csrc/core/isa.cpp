// Chooses the instruction set once per process.
#include "core/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace embfast::isa {

namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512popcnt", "avx512bf16"};

Level most() {
#ifdef EMBFAST_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512vpopcntdq")) return avx512;
    return __builtin_cpu_supports("avx512bf16") ? avx512bf16 : avx512popcnt;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return avx2;
#endif
  return baseline;
}

// On AMD cores bfloat16 products are worth their conversions. On others this was not measured, so avx512bf16 is used
// only if EMBFAST_ISA requests it.
Level best() {
#ifdef EMBFAST_X86
  if (most() == avx512bf16 && !__builtin_cpu_is("amd")) return avx512popcnt;
#endif
  return most();
}

Level asked() {
  const char* wish = std::getenv("EMBFAST_ISA");
  if (!wish || !*wish) return best();
  for (const Level level : {baseline, avx2, avx512, avx512popcnt, avx512bf16}) {
    if (std::strcmp(wish, names[level]) == 0) return level < most() ? level : most();
  }
  throw std::runtime_error(
      std::string("EMBFAST_ISA: expected baseline, avx2, avx512, avx512popcnt or avx512bf16, got ") + wish);
}

}  // namespace

Level level() {
  static const Level chosen = asked();
  return chosen;
}

int width() { return level() >= avx512 ? 16 : level() == avx2 ? 8 : 4; }

const char* name() { return names[level()]; }

}  // namespace embfast::isa
