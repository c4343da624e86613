// Names of the instruction-set level that this file is being compiled for.
//
// Every *_cpu.cpp is compiled once per level with TENFOLD_LEVEL set to baseline, avx2, avx512, ... All code
// that it includes lives in an inline namespace of that name. Otherwise two levels would emit the same weak
// symbol, the linker would keep one of them, and a baseline processor could run AVX-512 code.
// Files compiled only once get the level `common`. Plain data structures need no such namespace.
#pragma once

#ifndef TENFOLD_LEVEL
#define TENFOLD_LEVEL common
#endif

#define TENFOLD_LEVEL_BEGIN inline namespace TENFOLD_LEVEL {
#define TENFOLD_LEVEL_END }

// A function that CUDA kernels call too.
#ifdef __CUDACC__
#define TENFOLD_HOST_DEVICE __host__ __device__
#else
#define TENFOLD_HOST_DEVICE
#endif
