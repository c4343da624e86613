#include "core/isa.h"

#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/error.h"

namespace tenfold {
namespace {

Isa chosen = Isa::baseline;

std::string names_where(bool (*condition)(Isa)) {
  std::string names;
  for (Isa isa : kAllIsas) {
    if (condition(isa)) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return names;
}

Isa parse(const std::string& name) {
  for (Isa isa : kAllIsas) {
    if (name == isa_name(isa)) return isa;
  }
  throw ValueError("TENFOLD_ISA: got '" + name + "', want one of " + names_where(isa_compiled));
}

// Linux gives a process the tile registers (8 KiB more to save for each thread) only when it asks.
bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::amx:
      return "amx";
    default:
      return "baseline";
  }
}

bool isa_compiled(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return true;
#ifdef TENFOLD_HAVE_avx2
    case Isa::avx2:
      return true;
#endif
#ifdef TENFOLD_HAVE_avx512
    case Isa::avx512:
      return true;
#endif
#ifdef TENFOLD_HAVE_avx512bf16
    case Isa::avx512bf16:
      return true;
#endif
#ifdef TENFOLD_HAVE_amx
    case Isa::amx:
      return true;
#endif
    default:
      return false;
  }
}

// The features asked for here are exactly those that CMakeLists.txt switches on for the level. The builtin
// also asks the operating system whether it saves the wide registers.
bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    case Isa::avx512:
      return isa_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
    case Isa::avx512bf16:
      return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return isa_supported(Isa::avx512bf16) && __builtin_cpu_supports("amx-tile") &&
             __builtin_cpu_supports("amx-bf16") && tiles_granted();
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

Isa isa_in_use() { return chosen; }

void choose_isa() {
  const char* forced = std::getenv("TENFOLD_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (Isa isa : kAllIsas) {
      if (isa_compiled(isa) && isa_supported(isa)) chosen = isa;
    }
    return;
  }
  const Isa isa = parse(forced);
  if (!isa_compiled(isa)) {
    throw ValueError("TENFOLD_ISA=" + std::string(forced) +
                     ": this build has no kernels of that level; it has " + names_where(isa_compiled));
  }
  if (!isa_supported(isa)) {
    throw ValueError("TENFOLD_ISA=" + std::string(forced) +
                     ": this processor cannot run that level; it runs " + names_where(isa_supported));
  }
  chosen = isa;
}

}  // namespace tenfold
