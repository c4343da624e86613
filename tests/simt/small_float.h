// Floating types of 16 bits for the emulator: each operation is exact, then rounded once to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {

// The float next to an exact value, with an odd last bit where it is not exact: rounding that again to fewer
// than 23 bits is as good as rounding once (S. Boldo, G. Melquiond, "Emulation of a FMA and correctly rounded
// sums: proved algorithms using rounding to odd", IEEE TC 2008).
inline float round_to_odd(double exact) {
  float value = static_cast<float>(exact);
  if (static_cast<double>(value) == exact || std::isnan(value)) return value;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 1u) == 0) value = std::nextafter(value, exact > value ? INFINITY : -INFINITY);
  return value;
}

struct HalfFormat {
  static float widen(uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
  }
  static uint16_t round(float x) {
    const _Float16 value = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
};

struct BFloatFormat {
  static float widen(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  static uint16_t round(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return 0x7fff;  // CUDA's canonical NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};

template <class Format>
struct SmallFloat {
  uint16_t bits;

  SmallFloat() = default;
  explicit SmallFloat(float x) : bits(Format::round(x)) {}
  static SmallFloat from_exact(double exact) { return SmallFloat(round_to_odd(exact)); }
  explicit operator float() const { return Format::widen(bits); }
  double wide() const { return Format::widen(bits); }

  // A product of two such numbers is exact in double. A sum that is not, and a quotient, are too far from the
  // middle of two neighbours for the first rounding to matter.
  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return from_exact(a.wide() + b.wide()); }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return from_exact(a.wide() - b.wide()); }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return from_exact(a.wide() * b.wide()); }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return from_exact(a.wide() / b.wide()); }
  friend SmallFloat operator-(SmallFloat a) {
    a.bits ^= 0x8000u;
    return a;
  }
  friend bool operator==(SmallFloat a, SmallFloat b) { return a.wide() == b.wide(); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return a.wide() < b.wide(); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return a.wide() > b.wide(); }
  friend bool operator<=(SmallFloat a, SmallFloat b) { return a.wide() <= b.wide(); }
  friend bool operator>=(SmallFloat a, SmallFloat b) { return a.wide() >= b.wide(); }
  SmallFloat& operator+=(SmallFloat other) { return *this = *this + other; }
  SmallFloat& operator-=(SmallFloat other) { return *this = *this - other; }
  SmallFloat& operator*=(SmallFloat other) { return *this = *this * other; }
};

template <class Format>
struct alignas(4) SmallFloat2 {
  SmallFloat<Format> x, y;
};

}  // namespace simt

template <class F>
simt::SmallFloat<F> __hadd(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return a + b;
}
template <class F>
simt::SmallFloat<F> __hsub(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return a - b;
}
template <class F>
simt::SmallFloat<F> __hmul(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return a * b;
}
template <class F>
simt::SmallFloat<F> __hdiv(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return a / b;
}
template <class F>
simt::SmallFloat<F> __hfma(simt::SmallFloat<F> a, simt::SmallFloat<F> b, simt::SmallFloat<F> c) {
  // The product is exact in double. The sum is rounded to odd there, by the exact error of its rounding
  // (TwoSum).
  const double product = a.wide() * b.wide(), addend = c.wide();
  double value = product + addend;
  const double part = value - product;
  const double lost = (product - (value - part)) + (addend - part);
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isfinite(value) && lost != 0 && (bits & 1u) == 0) {
    value = std::nextafter(value, lost > 0 ? INFINITY : -INFINITY);
  }
  return simt::SmallFloat<F>::from_exact(value);
}
template <class F>
simt::SmallFloat<F> __hmax(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return simt::SmallFloat<F>(std::fmax(static_cast<float>(a), static_cast<float>(b)));
}
template <class F>
simt::SmallFloat<F> __hmin(simt::SmallFloat<F> a, simt::SmallFloat<F> b) {
  return simt::SmallFloat<F>(std::fmin(static_cast<float>(a), static_cast<float>(b)));
}
template <class F>
simt::SmallFloat2<F> __hadd2(simt::SmallFloat2<F> a, simt::SmallFloat2<F> b) {
  return {a.x + b.x, a.y + b.y};
}
template <class F>
simt::SmallFloat2<F> __hmul2(simt::SmallFloat2<F> a, simt::SmallFloat2<F> b) {
  return {a.x * b.x, a.y * b.y};
}
template <class F>
simt::SmallFloat2<F> __hfma2(simt::SmallFloat2<F> a, simt::SmallFloat2<F> b, simt::SmallFloat2<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
