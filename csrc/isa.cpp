// The choice of instruction set, made once.
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace embfast::isa {

namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512popcnt"};

Level best() {
#ifdef EMBFAST_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512vpopcntdq") ? avx512popcnt : avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return avx2;
#endif
  return baseline;
}

Level asked(Level most) {
  const char* wish = std::getenv("EMBFAST_ISA");
  if (!wish || !*wish) return most;
  for (const Level level : {baseline, avx2, avx512, avx512popcnt}) {
    if (std::strcmp(wish, names[level]) == 0) return level < most ? level : most;
  }
  throw std::runtime_error(std::string("EMBFAST_ISA: expected baseline, avx2, avx512 or avx512popcnt, got ") + wish);
}

}  // namespace

Level level() {
  static const Level chosen = asked(best());
  return chosen;
}

const char* name() { return names[level()]; }

}  // namespace embfast::isa
