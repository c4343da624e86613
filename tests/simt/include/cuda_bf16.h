// The emulator's <cuda_bf16.h>; see cuda_runtime.h.
#pragma once

#include "cuda_runtime.h"
#include "small_float.h"

using __nv_bfloat16 = simt::SmallFloat<simt::BFloatFormat>;
using __nv_bfloat162 = simt::SmallFloat2<simt::BFloatFormat>;

inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return simt::from_bits<__nv_bfloat16>(bits);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
