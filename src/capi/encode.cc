#include "codec/codebook/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "capi/arguments.h"
#include "capi/encode_options.h"
#include "capi/handles.h"
#include "compress/policy.h"
#include "hxq/compress.h"
#include "io/json.h"

using namespace hxq;
using namespace hxq::capi;

namespace hxq::capi {

CodebookOptions codebook_options(const hxq_encode_options* options) {
  hxq_encode_options chosen;
  hxq_encode_options_init(&chosen);
  if (options != nullptr) chosen = *options;
  if (!(chosen.sidecar_fraction >= 0 && chosen.sidecar_fraction <= 1)) {
    throw InvalidArgument(fmt::format("sidecar_fraction is {}, expected 0 to 1", chosen.sidecar_fraction));
  }
  if (chosen.max_codewords < 1 || chosen.max_codewords > 256) {
    throw InvalidArgument(fmt::format("max_codewords is {}, expected 1 to 256", chosen.max_codewords));
  }
  require_threads(chosen.threads, 0);
  return {.sidecar_fraction = chosen.sidecar_fraction,
          .max_codewords = chosen.max_codewords,
          .threads = chosen.threads,
          .low_rank = low_rank_option(chosen.low_rank)};
}

std::optional<int> low_rank_option(int32_t given) {
  if (given < -1 || given > kMaxLowRank) {
    throw InvalidArgument(fmt::format("low_rank is {}, expected -1 to {}", given, kMaxLowRank));
  }
  if (given == 0) return std::nullopt;
  return given == -1 ? 0 : given;
}

}  // namespace hxq::capi

namespace {

/// profile: null for the first.
Encoding encoding_of(const char* profile, int bits = 0, int64_t group = 0) {
  const EncodingChoice choice{.profile = optional_text("profile", profile), .bits = bits, .group = group};
  try {
    return find_encoding(choice);
  } catch (const Error& error) {
    throw InvalidArgument(error.what());
  }
}

Role role_of(std::string_view name) {
  for (const Role known : {Role::embedding, Role::projection, Role::head}) {
    if (name_of(known) == name) return known;
  }
  throw InvalidArgument(fmt::format("role is '{}', expected embedding, projection or head", name));
}

/// The caller's choice, checked; options of the default encoder are left to `codebook_options`.
Encoding chosen_encoding(const hxq_encode_options* options) {
  if (options == nullptr) return find_encoding({});
  Encoding encoding = encoding_of(options->profile, options->bits, options->group);
  if (encoding.encoder == encoders().front()) return encoding;
  hxq_encode_options standard;
  hxq_encode_options_init(&standard);
  if (options->sidecar_fraction != standard.sidecar_fraction || options->max_codewords != standard.max_codewords) {
    throw InvalidArgument("sidecar_fraction and max_codewords have no effect on this profile: expected the defaults");
  }
  if (options->low_rank != standard.low_rank && !encoding.encoder->has_low_rank) {
    throw InvalidArgument("low_rank has no effect on this profile: expected the default");
  }
  encoding.options.low_rank = low_rank_option(options->low_rank);
  encoding.options.threads = options->threads;
  return encoding;
}

EncodedTensor encode_as_chosen(const TensorView& source, const hxq_encode_options* options) {
  CodebookOptions of_codebook = codebook_options(options);
  const Encoding chosen = chosen_encoding(options);
  if (chosen.encoder != encoders().front()) return chosen.encoder->encode(source, chosen.options);
  of_codebook.in_segments = chosen.options.levels == Levels::segments;
  if (of_codebook.in_segments && of_codebook.max_codewords != 256) {
    throw InvalidArgument(fmt::format("max_codewords is {}, expected 256 in segments", of_codebook.max_codewords));
  }
  return encode_codebook(source, of_codebook);
}

}  // namespace

hxq_status hxq_profiles(char** json) {
  return guard("listing profiles", [&] {
    require_pointers({{"json", json}});
    nlohmann::json profiles = nlohmann::json::array();
    for (const Encoder* encoder : encoders()) {
      for (const Profile& profile : encoder->profiles) {
        profiles.push_back({{"name", profile.name},
                            {"quant_method", encoder->quant_method},
                            {"bits", profile.bits},
                            {"group", profile.group}});
      }
    }
    *json = copy_text(profiles.dump());
  });
}

hxq_status hxq_knows_architecture(const char* config, int32_t* answer) {
  return guard("asking the policy", [&] {
    require_pointers({{"config", config}, {"answer", answer}});
    *answer = is_known(parse_json(config, "config.json"));
  });
}

hxq_status hxq_would_compress(const char* role, const hxq_tensor* tensor, const char* profile, int32_t* answer) {
  return guard("asking the policy", [&] {
    require_pointers({{"tensor", tensor}, {"answer", answer}});
    const Encoding encoding = encoding_of(profile);
    const Shape shape = shape_of(*tensor);
    const DType dtype = dtype_of(tensor->dtype);
    const Encoder* encoder = role == nullptr ? choose_codec_by_shape(encoding, shape, dtype)
                                             : choose_codec(encoding, role_of(role), shape, dtype);
    *answer = encoder != nullptr;
  });
}

void hxq_encode_options_init(hxq_encode_options* options) {
  if (options != nullptr) {
    *options = {.sidecar_fraction = 0.001,
                .max_codewords = 256,
                .threads = 0,
                .profile = nullptr,
                .bits = 0,
                .group = 0,
                .low_rank = 0};
  }
}

hxq_status hxq_encode(const hxq_tensor* source, const hxq_encode_options* options, hxq_encoded** encoded,
                      hxq_fidelity* fidelity) {
  return guard("compressing a matrix", [&] {
    require_pointers({{"source", source}, {"encoded", encoded}});
    const TensorView view = capi::view_of(*source);
    float_dtype_of(source->dtype);
    if (view.shape.size() != 2 || view.size() == 0) {
      throw InvalidArgument(fmt::format("shape is {}, expected [rows, cols]", to_string(view.shape)));
    }
    auto result = std::make_unique<hxq_encoded>();
    try {
      result->value = encode_as_chosen(view, options);
    } catch (const Error& error) {
      throw Error(error.what(), {.tensor = source->name == nullptr ? "" : source->name});
    }
    if (fidelity != nullptr) {
      const Fidelity& f = result->value.fidelity;
      *fidelity = {f.snr_db(), f.cosine(), f.max_error, result->value.outliers};
    }
    *encoded = result.release();
  });
}

size_t hxq_encoded_count(const hxq_encoded* encoded) { return encoded == nullptr ? 0 : encoded->value.parts.size(); }

hxq_status hxq_encoded_part(const hxq_encoded* encoded, size_t i, hxq_tensor* part) {
  return guard("describing a part", [&] {
    require_pointers({{"encoded", encoded}, {"part", part}});
    const std::vector<EncodedPart>& parts = encoded->value.parts;
    if (i >= parts.size()) throw InvalidArgument(fmt::format("part {} of {}", i, parts.size()));
    const EncodedPart& found = parts[i];
    require(found.shape.size() <= 4, "the part has more than 4 dimensions");
    *part = {.name = found.suffix.c_str(),
             .dtype = static_cast<int32_t>(found.dtype),
             .rank = static_cast<int32_t>(found.shape.size()),
             .shape = {},
             .data = found.bytes.data()};
    std::ranges::copy(found.shape, part->shape);
  });
}

void hxq_encoded_destroy(hxq_encoded* encoded) { delete encoded; }
