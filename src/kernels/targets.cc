#include <array>
#include <string_view>
#include <utility>

#include "hxq/arithmetic.h"

namespace hxq {
namespace {

constexpr std::array<std::pair<Target, std::string_view>, 4> kTargets = {
    {{Target::scalar, "scalar"}, {Target::avx2, "avx2"}, {Target::avx512, "avx512"}, {Target::amx, "amx"}}};
constexpr std::array<std::pair<Precision, std::string_view>, 2> kPrecisions = {
    {{Precision::fast, "fast"}, {Precision::exact, "exact"}}};

template <class Table, class Value>
std::string_view name_in(const Table& table, Value value) noexcept {
  for (const auto& [known, name] : table) {
    if (known == value) return name;
  }
  return {};
}

template <class Table>
auto find_in(const Table& table, std::string_view wanted) noexcept {
  std::optional<decltype(table[0].first)> found;
  for (const auto& [value, name] : table) {
    if (name == wanted) found = value;
  }
  return found;
}

}  // namespace

std::string_view name_of(Target target) noexcept { return name_in(kTargets, target); }
std::optional<Target> find_target(std::string_view name) noexcept { return find_in(kTargets, name); }
std::string_view name_of(Precision precision) noexcept { return name_in(kPrecisions, precision); }
std::optional<Precision> find_precision(std::string_view name) noexcept { return find_in(kPrecisions, name); }

}  // namespace hxq
