#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "codec/codebook/encode.h"
#include "codec/encoder.h"
#include "codec/grouped/encode.h"
#include "codec/row_table.h"
#include "hxq/error.h"

namespace hxq {
namespace {

/// The encoders of the library, the default one first.
constexpr const Encoder* kEncoders[] = {&kCodebookEncoder, &kGroupedEncoder};

RowTable<Encoder>& table() {
  static RowTable<Encoder> rows(kEncoders);
  return rows;
}

std::string_view id_of(const Encoder* encoder) { return encoder->codec->id; }

}  // namespace

std::string_view name_of(Levels levels) noexcept {
  constexpr std::string_view kNames[] = {"fitted", "segments", "uniform"};
  return kNames[static_cast<size_t>(levels)];
}

std::span<const Encoder* const> encoders() noexcept { return table().rows(); }

const Encoder& encoder_of(std::string_view codec_id) {
  if (codec_id.empty()) return *encoders().front();
  const auto found = std::ranges::find(encoders(), codec_id, id_of);
  if (found != encoders().end()) return **found;
  std::vector<std::string_view> names;
  std::ranges::transform(encoders(), std::back_inserter(names), id_of);
  throw Error(fmt::format("codec is '{}', expected one of {}", codec_id, fmt::join(names, ", ")));
}

void register_encoder(const Encoder& encoder) {
  const auto fail = [&](const char* message) {
    throw Error(fmt::format("encoder of codec '{}' {}", id_of(&encoder), message));
  };
  if (!encoder.expected_bytes || !encoder.largest_parts || !encoder.encode || !encoder.config) fail("lacks a function");
  if (find_codec(id_of(&encoder)) != encoder.codec) fail("is for a codec that is not registered");
  table().add(encoder, [&](std::span<const Encoder* const> rows) {
    if (std::ranges::find(rows, id_of(&encoder), id_of) != rows.end()) fail("is there already");
  });
}

}  // namespace hxq
