#include <fmt/format.h>

#include <algorithm>

#include "codec/codebook/codec.h"
#include "codec/codec.h"
#include "codec/grouped/codec.h"
#include "codec/row_table.h"
#include "hxq/error.h"

namespace hxq {
namespace {

/// The codecs of the library.
constexpr const Codec* kCodecs[] = {&kCodebookCodec, &kGroupedCodec};

RowTable<Codec>& table() {
  static RowTable<Codec> rows(kCodecs);
  return rows;
}

bool is_stored(const Checkpoint& checkpoint, std::string_view key) {
  return checkpoint.tensors().contains(key) || checkpoint.unsupported().contains(key);
}

bool is_needed(const PartSpec& part) { return part.kind == PartSpec::Kind::needed; }

bool has_needed_parts(const Checkpoint& checkpoint, std::string_view module, const Codec& codec) {
  return std::ranges::all_of(codec.parts, [&](const PartSpec& part) {
    return !is_needed(part) || is_stored(checkpoint, part_key(module, part.suffix)) ||
           (!part.older_name.empty() && is_stored(checkpoint, part_key(module, part.older_name)));
  });
}

}  // namespace

std::span<const Codec* const> codecs() noexcept { return table().rows(); }

const Codec* find_codec(std::string_view id) noexcept {
  const auto found = std::ranges::find(codecs(), id, &Codec::id);
  return found == codecs().end() ? nullptr : *found;
}

void register_codec(const Codec& codec) {
  const auto fail = [&](const char* message) { throw Error(fmt::format("codec '{}' {}", codec.id, message)); };
  if (codec.id.empty() || codec.id == kExact) fail("cannot have this name");
  if (codec.parts.empty() || !is_needed(codec.parts.front())) fail("has no needed part at the head of its list");
  if (!codec.shape || !codec.read || !codec.describe) fail("lacks a function");
  table().add(codec, [&](std::span<const Codec* const> rows) {
    if (std::ranges::find(rows, codec.id, &Codec::id) != rows.end()) fail("is there already");
  });
}

const Codec* codec_of(const Checkpoint& checkpoint, std::string_view module) {
  const Codec* found = nullptr;
  std::ptrdiff_t found_needs = 0;
  for (const Codec* codec : codecs()) {
    const std::ptrdiff_t needs = std::ranges::count_if(codec->parts, is_needed);
    if (needs > found_needs && has_needed_parts(checkpoint, module, *codec)) {
      found = codec;
      found_needs = needs;
    }
  }
  return found;
}

std::unique_ptr<const StoredMatrix> read_matrix(const Checkpoint& checkpoint, std::string_view module,
                                                const Shape& expected) {
  const Codec* codec = codec_of(checkpoint, module);
  if (codec == nullptr) throw Error("is not stored compressed", checkpoint.place(module));
  return codec->read(checkpoint, module, expected);
}

std::string part_key(std::string_view module, std::string_view suffix) { return fmt::format("{}.{}", module, suffix); }

const TensorView* find_part(const Checkpoint& checkpoint, std::string_view module, const PartSpec& part) {
  for (const std::string_view suffix : {part.suffix, part.older_name}) {
    if (suffix.empty()) continue;
    const TensorView* tensor = checkpoint.find(part_key(module, suffix));
    if (tensor != nullptr && tensor->size() > 0) return tensor;
  }
  return nullptr;
}

bool is_part_suffix(std::string_view suffix) noexcept {
  return std::ranges::any_of(codecs(), [&](const Codec* codec) {
    return std::ranges::any_of(
        codec->parts, [&](const PartSpec& part) { return part.suffix == suffix || part.older_name == suffix; });
  });
}

}  // namespace hxq
