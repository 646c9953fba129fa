#include "compress/plan.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "folder/described_tensors.h"
#include "hxq/error.h"

namespace hxq {
namespace {

bool matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

bool matches_any(const std::vector<std::string>& patterns, const std::string& name) {
  return std::ranges::any_of(patterns, [&](const std::string& pattern) { return matches(pattern, name); });
}

/// A pattern that selects nothing is most likely misspelt; of one that changes nothing there is a notice. `plan`: what
/// would be done without patterns.
void check_patterns(const std::vector<std::string>& patterns, const std::vector<PlanEntry>& plan,
                    const CompressOptions& options) {
  for (const std::string& pattern : patterns) {
    const auto is_matched = [&](const PlanEntry& entry) { return matches(pattern, entry.name); };
    if (std::ranges::none_of(plan, is_matched)) {
      throw Error(fmt::format("pattern '{}' matches no tensor of the model", pattern));
    }
    const auto is_changed = [&](const PlanEntry& entry) { return entry.encoder && is_matched(entry); };
    if (options.notice && std::ranges::none_of(plan, is_changed)) {
      options.notice(fmt::format(
          "pattern '{}' has no effect: it matches only tensors that are stored exactly in any case", pattern));
    }
  }
}

/// What the runtime could not run is not worth compressing.
void check_dtype(const Checkpoint& source, const WeightDesc& weight, const TensorView& view) {
  if (is_float(view.dtype) || (view.dtype == DType::f64 && !is_matrix(weight.role))) return;
  throw Error(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(view.dtype)), source.place(weight.name));
}

/// The source is the model that the architecture describes.
void check_described(const Checkpoint& source, const ModelDesc& desc) {
  check_layer_count(source, desc);
  for (const WeightDesc& weight : desc.weights) {
    find_described(source, weight);
    if (const TensorView* view = source.find(weight.name)) check_dtype(source, weight, *view);
  }
}

/// Compressing what another method has quantized would lose twice, and its configuration.
void check_not_quantized(const Checkpoint& source) {
  const nlohmann::json& config = source.config();
  const auto field = [](const nlohmann::json& json, const char* key) {
    return json.is_object() && json.contains(key) ? json[key] : nlohmann::json();
  };
  const nlohmann::json quantization = field(config, "quantization_config");
  if (quantization.is_null()) return;
  const nlohmann::json method = field(quantization, "quant_method");
  if (method == "helix" || method == "cdna_v3") return;
  if (std::ranges::any_of(encoders(), [&](const Encoder* encoder) { return method == encoder->quant_method; })) return;
  const std::string found =
      method.is_string() ? fmt::format("quant_method is '{}'", method.get_ref<const std::string&>())
                         : fmt::format("quantization_config names no method (quant_method is {})", method.dump());
  throw Error(found + ": expected a model that is not quantized", {.file = (source.path() / "config.json").string()});
}

std::string shape_rule_notice(const Checkpoint& source) {
  const nlohmann::json& config = source.config();
  std::string architecture = "there is no config.json";
  if (config.is_object() && config.contains("model_type")) {
    const std::vector<std::string> known = known_architectures();
    const nlohmann::json& type = config["model_type"];
    const bool is_listed = std::ranges::any_of(known, [&](const std::string& name) { return type == name; });
    const char* field = is_listed ? "architectures" : "model_type";
    architecture = fmt::format("{} is {}", field, config[field].dump());
  } else if (!config.is_null()) {
    architecture = "config.json has no model_type";
  }
  return fmt::format(
      "the runtime does not know this architecture ({}): by shape and dtype, 2-D weights of at least {} x {} are "
      "compressed, all else is kept",
      architecture, kMinDimension, kMinDimension);
}

/// The choice where nothing tells what a tensor is for. What is not the weight of a module has no compressed form that
/// loaders of the format look for.
const Encoder* choose_by_shape(const Encoding& encoding, const PlanEntry& entry) {
  if (!entry.name.ends_with(kWeightSuffix)) return nullptr;
  return choose_codec_by_shape(encoding, entry.view.shape, entry.view.dtype);
}

const Encoder* choose(const Encoding& encoding, const PlanEntry& entry) {
  return entry.role ? choose_codec(encoding, *entry.role, entry.view.shape, entry.view.dtype)
                    : choose_by_shape(encoding, entry);
}

/// The encoding with as many outliers and such a term as nobody asked for.
Encoding with_standard_extras(Encoding encoding) {
  encoding.options.sidecar_fraction = EncodeOptions().sidecar_fraction;
  encoding.options.low_rank.reset();
  return encoding;
}

/// Of matrices that so many outliers, or a term of such a rank, would make larger: they stay exact. Throws `Error` if
/// none is left to compress.
void tell_outgrown(int64_t count, const std::vector<PlanEntry>& plan, const CompressOptions& options) {
  std::string extras;
  if (options.sidecar_fraction > EncodeOptions().sidecar_fraction) {
    extras = fmt::format("a sidecar fraction of {}", options.sidecar_fraction);
  }
  if (options.low_rank.value_or(0) > 0) {
    extras += fmt::format("{}a low rank of {}", extras.empty() ? "" : " and ", *options.low_rank);
  }
  if (std::ranges::none_of(plan, [](const PlanEntry& entry) { return entry.encoder != nullptr; })) {
    throw Error(fmt::format("with {}, no matrix takes fewer bytes than it does now", extras));
  }
  if (!options.notice) return;
  options.notice(fmt::format("with {}, {} would take no fewer bytes, and stay exact", extras,
                             count == 1 ? "a matrix" : fmt::format("{} matrices", count)));
}

/// Whether the source has a key that would be read as part of the parameter in compressed form, or a tensor that is
/// named like the module and would be taken for the parameter.
bool has_part_of(const Checkpoint& source, std::string_view name) {
  const auto is_key = [&](std::string_view key) {
    return source.tensors().contains(key) || source.unsupported().contains(key);
  };
  const std::string_view module = module_of(name);
  if (module != name && is_key(module)) return true;
  const auto is_stored = [&](std::string_view suffix) { return !suffix.empty() && is_key(part_key(module, suffix)); };
  return std::ranges::any_of(codecs(), [&](const Codec* codec) {
    return std::ranges::any_of(
        codec->parts, [&](const PartSpec& part) { return is_stored(part.suffix) || is_stored(part.older_name); });
  });
}

std::string mistakable_notice(const std::vector<std::string>& names) {
  const bool is_one = names.size() == 1;
  return fmt::format("{}{} exact: another tensor has the name of the module or of a part of its compressed form",
                     names.front(), is_one ? " stays" : fmt::format(" and {} more stay", names.size() - 1));
}

/// The model's description, or else a notice why there is none: then the choice is by shape.
const ModelDesc* runnable_model(const ModelFolder& source, const CompressOptions& options) {
  if (const ModelDesc* model = source.described()) return model;
  if (options.notice) {
    options.notice(source.untied
                       ? fmt::format("{} by the runtime; the choice is by shape and dtype", source.untied->what())
                       : shape_rule_notice(source.checkpoint));
  }
  return nullptr;
}

/// ".experts.", a number and a dot.
bool is_of_one_expert(std::string_view name) {
  constexpr std::string_view kExperts = ".experts.";
  for (size_t at = name.find(kExperts); at != name.npos; at = name.find(kExperts, at + 1)) {
    const std::string_view after = name.substr(at + kExperts.size());
    const size_t digits = after.find_first_not_of("0123456789");
    if (digits > 0 && digits != after.npos && after[digits] == '.') return true;
  }
  return false;
}

/// Experts that a checkpoint stores one by one.
std::optional<std::string> experts_notice(const std::vector<PlanEntry>& plan) {
  const auto count =
      std::ranges::count_if(plan, [](const PlanEntry& entry) { return entry.encoder && is_of_one_expert(entry.name); });
  if (count == 0) return std::nullopt;
  return fmt::format(
      "{} tensors of experts: transformers 5 joins these, so that they are decoded when it loads the folder", count);
}

/// An option that would have no effect is most likely a mistake.
Encoding chosen_encoding(const CompressOptions& options) {
  Encoding encoding = find_encoding(choice_of(options));
  const Encoder& encoder = *encoding.encoder;
  if (!(options.sidecar_fraction >= 0 && options.sidecar_fraction <= 0.5)) {
    throw Error(fmt::format("sidecar fraction {}: expected 0 to 0.5", options.sidecar_fraction));
  }
  if (!encoder.keeps_outliers && options.sidecar_fraction != CompressOptions().sidecar_fraction) {
    throw Error(fmt::format("codec '{}' keeps no outliers, so a sidecar fraction has no effect", encoder.codec->id));
  }
  if (options.low_rank && (*options.low_rank < 0 || *options.low_rank > kMaxLowRank)) {
    throw Error(fmt::format("low rank {}: expected 0 to {}", *options.low_rank, kMaxLowRank));
  }
  if (!encoder.has_low_rank && options.low_rank) {
    throw Error(fmt::format("codec '{}' has no low-rank terms, so a low rank has no effect", encoder.codec->id));
  }
  encoding.options.low_rank = options.low_rank;
  encoding.options.sidecar_fraction = options.sidecar_fraction;
  encoding.options.threads = options.threads;
  return encoding;
}

/// The encoding of each role, where it is another one.
std::map<Role, Encoding> encodings_by_role(const Encoding& encoding, const CompressOptions& options) {
  std::map<Role, Encoding> by_role;
  for (const auto& [name, bits] : options.bits_for) {
    bool known = false;
    for (const Role role : {Role::embedding, Role::projection, Role::head}) {
      if (name != name_of(role)) continue;
      by_role[role] = with_bits(encoding, choice_of(options), bits);
      known = true;
    }
    if (!known) throw Error(fmt::format("bits for '{}': expected embedding, projection or head", name));
  }
  return by_role;
}

/// Roles that no compressed tensor has are most likely a mistake.
void check_roles(const std::map<Role, Encoding>& by_role, const std::vector<PlanEntry>& plan) {
  for (const auto& [role, encoding] : by_role) {
    const auto is_it = [&, role = role](const PlanEntry& entry) { return entry.encoder && entry.role == role; };
    if (std::ranges::any_of(plan, is_it)) continue;
    throw Error(fmt::format("bits for '{}' have no effect: no tensor of that role is compressed", name_of(role)));
  }
}

}  // namespace

std::vector<std::string> codec_names() {
  std::vector<std::string> names;
  for (const Encoder* encoder : encoders()) names.emplace_back(encoder->codec->id);
  return names;
}

std::map<std::string, Role> roles_of(const ModelDesc& model) {
  std::map<std::string, Role> roles;
  for (const WeightDesc& weight : model.weights) {
    roles.emplace(weight.name, weight.role);
    for (const SharedPrefix& shared : model.shared_prefixes) {
      if (!weight.name.starts_with(shared.stored)) continue;
      roles.emplace(shared.prefix + weight.name.substr(shared.stored.size()), weight.role);
    }
  }
  return roles;
}

EncodingChoice choice_of(const CompressOptions& options) {
  return {.codec = options.codec, .profile = options.profile, .bits = options.bits, .group = options.group};
}

std::vector<PlanEntry> plan_entries(const ModelFolder& folder, const CompressOptions& options) {
  const Encoding encoding = chosen_encoding(options);
  const std::map<Role, Encoding> by_role = encodings_by_role(encoding, options);
  const Checkpoint& source = folder.checkpoint;
  const std::vector<StoredTensor> tensors = list_tensors(source);
  for (const StoredTensor& tensor : tensors) {
    if (tensor.codec) throw CompressedError("is compressed already", source.place(tensor.name));
  }
  check_not_quantized(source);
  folder.check_dtypes();
  const ModelDesc* model = runnable_model(folder, options);
  if (model) check_described(source, *model);
  const std::map<std::string, Role> roles = model ? roles_of(*model) : std::map<std::string, Role>();
  std::vector<PlanEntry> plan;
  std::vector<std::string> outgrown;    // exact for their outliers or term alone
  std::vector<std::string> mistakable;  // exact for the name of another tensor
  for (const StoredTensor& tensor : tensors) {
    PlanEntry entry{.name = tensor.name, .view = *source.find(tensor.name), .role = {}};
    if (const auto role = roles.find(tensor.name); role != roles.end()) entry.role = role->second;
    const auto other = entry.role ? by_role.find(*entry.role) : by_role.end();
    const Encoding& chosen = other == by_role.end() ? encoding : other->second;
    entry.options = chosen.options;
    if (entry.role || model == nullptr) {
      entry.encoder = choose(chosen, entry);
      const bool may_be = entry.encoder || choose(with_standard_extras(chosen), entry);
      if (may_be && has_part_of(source, entry.name)) {
        entry.encoder = nullptr;
        mistakable.push_back(entry.name);
      } else if (may_be && !entry.encoder) {
        outgrown.push_back(entry.name);
      }
    }
    plan.push_back(std::move(entry));
  }
  check_patterns(options.keep, plan, options);
  check_patterns(options.only, plan, options);
  const auto is_wanted = [&](const std::string& name) {
    return (options.only.empty() || matches_any(options.only, name)) && !matches_any(options.keep, name);
  };
  for (PlanEntry& entry : plan) {
    if (!is_wanted(entry.name)) entry.encoder = nullptr;
  }
  if (const auto count = std::ranges::count_if(outgrown, is_wanted)) tell_outgrown(count, plan, options);
  std::erase_if(mistakable, [&](const std::string& name) { return !is_wanted(name); });
  if (!mistakable.empty() && options.notice) options.notice(mistakable_notice(mistakable));
  check_roles(by_role, plan);
  if (const auto notice = experts_notice(plan); notice && options.notice) options.notice(*notice);
  return plan;
}

std::vector<PlannedTensor> plan_compression(const std::filesystem::path& source, const CompressOptions& options) {
  const ModelFolder folder = ModelFolder::open(source);
  std::vector<PlannedTensor> planned;
  for (const PlanEntry& entry : plan_entries(folder, options)) {
    planned.push_back({.name = entry.name,
                       .shape = entry.view.shape,
                       .dtype = std::string(name_of(entry.view.dtype)),
                       .role = std::string(role_name(entry.role)),
                       .codec = std::string(codec_name(entry.encoder)),
                       .bits = entry.encoder ? entry.options.bits : 0,
                       .group = entry.encoder ? entry.options.group : 0,
                       .source_bytes = static_cast<int64_t>(entry.view.bytes.size())});
  }
  return planned;
}

}  // namespace hxq
