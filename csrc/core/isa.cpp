// The choice of instruction set, made once.
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

// Products of bfloat16 are worth their conversions on AMD's cores; on others that was not measured: there by wish
// alone.
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
