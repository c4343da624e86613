// The emulator's <cuda_fp16.h>; see cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"
#include "small_float.h"

using __half = simt::SmallFloat<simt::HalfFormat>;
using __half2 = simt::SmallFloat2<simt::HalfFormat>;
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline __half __ushort_as_half(unsigned short bits) { return simt::from_bits<__half>(bits); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
