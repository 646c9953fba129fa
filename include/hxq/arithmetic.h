#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

/// What decides how numbers are computed, apart from the weights themselves.
namespace hxq {

/// What a token is to a step. Its arithmetic depends on its phase and never on the tokens it is computed with.
enum class Phase : uint8_t {
  prefill,  ///< of a prompt: many tokens of a sequence may come at once
  decode    ///< generated: one token a sequence and step
};

/// What products with prefill rows round, besides the sums: see `kernels::linear`. Decode rows are computed the same
/// way with either, and may round x to 13 bits or more; on GPUs products of a single token are in float.
enum class Precision : uint8_t {
  /// x to 11 bits for every 64 columns, on AMX to 22 bits, where that is faster; on GPUs weights, too (docs/cuda.md)
  fast,
  exact  ///< nothing
};

std::string_view name_of(Precision precision) noexcept;
std::optional<Precision> find_precision(std::string_view name) noexcept;

/// Instruction sets that have kernels of their own, slowest first.
enum class Target : uint8_t { scalar, avx2, avx512, amx };

std::string_view name_of(Target target) noexcept;
std::optional<Target> find_target(std::string_view name) noexcept;

}  // namespace hxq
