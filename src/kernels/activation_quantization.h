#pragma once

#include <cstdint>

namespace hxq::kernels {

/// How x is rounded where integers are multiplied: on AVX-512 and AVX2, by matrices whose codebook has integer levels
/// (LookupPlanes::integer_levels) and byte indices, and by grouped matrices with whole levels and groups of 16, 32, 64
/// and so on. For every token and block of columns, x times largest / max |x| is rounded to integers; sums over a block
/// are exact, and weights too, but for grouped ones that are rounded to 16 bits of what their row can hold
/// (cpu::GroupedView; -80 dB): in prefill, and on AVX-512 those of 7 and 8 bits in decode.
/// On AVX2 decode rows are rounded only by codebooks in segments and grouped matrices with levels of a byte or of 5 or
/// 6 bits, whose weights stay exact.
///
///     phase    precision  block        largest         error at most  usually
///     prefill  fast       64 columns   1023, 11 bits   -52 dB         -61 dB
///     prefill  exact      x stays as it is
///     decode   either     256 columns  4095, 13 bits   -58 dB         -73 dB
///
/// On AMX decode rows of such codebooks, and prefill (`fast`) of both kinds, up to 32,768 columns, round x to 22 bits
/// of the largest of all columns (cpu/tiles_amx-inl.h): no more than -85 dB, which takes 32,768 columns one of which
/// holds all of |x|, and usually less than -120 dB.
///
/// Errors are in energy, of |x|^2 times the mean square of the weights; that of 256 levels for the weights is about
/// -45 dB of it. Everywhere else x stays as it is, and products are sums of floats. Outliers are added as differences
/// from the levels that they replace, so a level that is far larger than all weights of a row costs them their last
/// bits.
struct ActivationQuantization {
  int64_t block;
  float largest;
};

inline constexpr ActivationQuantization kPrefillQuantization{.block = 64, .largest = 1023};
inline constexpr ActivationQuantization kDecodeQuantization{.block = 256, .largest = 4095};
/// A power of two makes x of a token whole numbers of up to 0x7f7f7f, three signed bytes. Up to 32,768 columns.
inline constexpr ActivationQuantization kTileQuantization{.block = 32768, .largest = 0x3fbfbf};

}  // namespace hxq::kernels
