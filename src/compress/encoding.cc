#include "compress/encoding.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "hxq/compress.h"
#include "hxq/error.h"

namespace hxq {
namespace {

constexpr int64_t kMaxGroup = 65536;

bool has_groups(const Encoder& encoder) {
  return std::ranges::any_of(encoder.profiles, [](const Profile& profile) { return profile.group > 0; });
}

const Profile* profile_named(const Encoder& encoder, std::string_view name) {
  const auto found = std::ranges::find(encoder.profiles, name, &Profile::name);
  return found == encoder.profiles.end() ? nullptr : &*found;
}

const Encoder& encoder_with(std::string_view profile) {
  for (const Encoder* encoder : encoders()) {
    if (profile_named(*encoder, profile)) return *encoder;
  }
  throw Error(fmt::format("profile is '{}', expected one of {}", profile, fmt::join(profile_names(), ", ")));
}

const Encoder& encoder_for(const EncodingChoice& choice) {
  if (!choice.profile.empty()) {
    const Encoder& encoder = encoder_with(choice.profile);
    if (!choice.codec.empty() && choice.codec != encoder.codec->id) {
      throw Error(fmt::format("profile '{}' is of codec '{}', not of '{}'", choice.profile, encoder.codec->id,
                              encoder_of(choice.codec).codec->id));
    }
    return encoder;
  }
  if (choice.codec.empty() && (choice.bits != 0 || choice.group != 0)) {
    for (const Encoder* encoder : encoders()) {
      if (has_groups(*encoder)) return *encoder;
    }
  }
  return encoder_of(choice.codec);
}

const Profile& profile_with(const Encoder& encoder, int bits) {
  const auto found = std::ranges::find(encoder.profiles, bits, &Profile::bits);
  if (found != encoder.profiles.end()) return *found;
  std::set<int> known;
  for (const Profile& any : encoder.profiles) known.insert(any.bits);
  throw Error(fmt::format("{} bits: expected one of {}", bits, fmt::join(known, ", ")));
}

void require_choice(const Encoder& encoder) {
  if (has_groups(encoder)) return;
  throw Error(fmt::format("codec '{}' has no choice of bits or groups", encoder.codec->id));
}

}  // namespace

std::vector<std::string> profile_names() {
  std::vector<std::string> names;
  for (const Encoder* encoder : encoders()) {
    for (const Profile& profile : encoder->profiles) names.emplace_back(profile.name);
  }
  return names;
}

Encoding find_encoding(const EncodingChoice& choice) {
  const Encoder& encoder = encoder_for(choice);
  if (choice.bits != 0 || choice.group != 0) require_choice(encoder);
  if (choice.bits != 0 && !choice.profile.empty()) {
    throw Error(fmt::format("profile '{}' says how many bits there are: expected it or bits", choice.profile));
  }
  if (choice.group != 0 && (choice.group < 8 || choice.group > kMaxGroup || choice.group % 8 != 0)) {
    throw Error(fmt::format("groups of {}: expected a multiple of 8, up to {}", choice.group, kMaxGroup));
  }
  Encoding encoding{.encoder = &encoder, .options = {}};
  if (encoder.profiles.empty()) return encoding;
  const Profile& profile = choice.bits != 0         ? profile_with(encoder, choice.bits)
                           : choice.profile.empty() ? encoder.profiles.front()
                                                    : *profile_named(encoder, choice.profile);
  encoding.options.bits = profile.bits;
  encoding.options.group = choice.group != 0 ? choice.group : profile.group;
  encoding.options.levels = profile.levels;
  return encoding;
}

Encoding with_bits(const Encoding& encoding, const EncodingChoice& choice, int bits) {
  require_choice(*encoding.encoder);
  const Profile& profile = profile_with(*encoding.encoder, bits);
  Encoding changed = encoding;
  changed.options.bits = bits;
  changed.options.group = choice.group != 0 ? choice.group : profile.group;
  changed.options.levels = profile.levels;
  return changed;
}

}  // namespace hxq
