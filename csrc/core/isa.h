// Instruction-set levels: which are compiled, which the processor runs, and which one is in use.
#pragma once

#include <string>
#include <vector>

namespace tenfold {

enum class Isa { baseline, avx2, avx512, avx512bf16, amx };

inline constexpr Isa kAllIsas[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx};

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);   // the build made kernels for this level
bool isa_supported(Isa isa);  // this processor and operating system run it
Isa isa_in_use();             // the highest that is both, or the one that TENFOLD_ISA names

// Reads TENFOLD_ISA. Called once when the module loads; throws ValueError where the forced level is unknown,
// not compiled, or not supported by this processor.
void choose_isa();

// A family may leave a level out (it then has the table of the next lower one): null pointers are skipped.
template <class Table>
const Table& table_in_use(const Table* baseline, const Table* avx2, const Table* avx512,
                          const Table* avx512bf16 = nullptr, const Table* amx = nullptr) {
  const Table* const tables[] = {baseline, avx2, avx512, avx512bf16, amx};
  int level = static_cast<int>(isa_in_use());
  while (tables[level] == nullptr) --level;
  return *tables[level];
}

// A family's table of a level, null where the build has no such level.
#ifdef TENFOLD_HAVE_avx2
#define TENFOLD_AVX2(table) (&avx2::table)
#else
#define TENFOLD_AVX2(table) nullptr
#endif
#ifdef TENFOLD_HAVE_avx512
#define TENFOLD_AVX512(table) (&avx512::table)
#else
#define TENFOLD_AVX512(table) nullptr
#endif
#ifdef TENFOLD_HAVE_avx512bf16
#define TENFOLD_AVX512BF16(table) (&avx512bf16::table)
#else
#define TENFOLD_AVX512BF16(table) nullptr
#endif
#ifdef TENFOLD_HAVE_amx
#define TENFOLD_AMX(table) (&amx::table)
#else
#define TENFOLD_AMX(table) nullptr
#endif

}  // namespace tenfold
