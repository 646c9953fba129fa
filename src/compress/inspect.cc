#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "compress/completeness.h"
#include "compress/plan.h"
#include "folder/described_tensors.h"
#include "folder/model_folder.h"
#include "hxq/error.h"
#include "hxq/receipt.h"
#include "hxq/verify.h"

namespace hxq {
namespace {

class Inspector {
 public:
  explicit Inspector(const ModelFolder& folder) : checkpoint_(folder.checkpoint), shapes_(folder.shapes) {
    for (const Error& fault : completeness_faults(folder)) faults_.emplace_back(fault.what());
    if (folder.known) {
      roles_ = roles_of(*folder.known);
      for (std::string& name : tensors_of_more_layers(checkpoint_, *folder.known)) more_layers_.insert(std::move(name));
    }
  }

  /// Whether the tensor is one of the model: where the architecture is known, whether it names it.
  bool belongs(const StoredTensor& stored) const {
    return shapes_.empty() || known_shape(stored) != nullptr || more_layers_.contains(stored.name) ||
           more_layers_.contains(stored.module);
  }

  InspectedTensor look_at(const StoredTensor& stored) {
    InspectedTensor tensor;
    tensor.name = stored.name;
    tensor.shape = stored.shape;
    tensor.role = role_name(role_of(stored));
    if (stored.codec) {
      if (const Shape* known = known_shape(stored)) take_shape(*known, tensor);
      look_at_parts(stored, tensor);
    } else {
      tensor.codec = kExact;
      tensor.stored_bytes = count(stored.name);
      tensor.dtype = name_of(checkpoint_.find(stored.name)->dtype);
      tensor.form = tensor.dtype;
    }
    if (const int64_t weights = element_count(tensor.shape); weights > 0) {
      tensor.bits_per_weight = 8.0 * static_cast<double>(tensor.stored_bytes) / static_cast<double>(weights);
    }
    return tensor;
  }

  const std::vector<std::string>& faults() const { return faults_; }

  std::vector<std::string> other_keys() const {
    std::vector<std::string> others;
    for (const auto& [key, view] : checkpoint_.tensors()) {
      if (!counted_.contains(key)) others.push_back(key);
    }
    for (const auto& [key, dtype] : checkpoint_.unsupported()) others.push_back(key);
    std::ranges::sort(others);
    return others;
  }

 private:
  /// The architecture's shape of the tensor; a module may be named like the parameter itself (`A_log`).
  const Shape* known_shape(const StoredTensor& stored) const {
    auto known = shapes_.find(stored.name);
    if (known == shapes_.end()) known = shapes_.find(stored.module);
    return known == shapes_.end() ? nullptr : &known->second;
  }

  std::optional<Role> role_of(const StoredTensor& stored) const {
    auto role = roles_.find(stored.name);
    if (role == roles_.end()) role = roles_.find(stored.module);
    return role == roles_.end() ? std::nullopt : std::optional(role->second);
  }

  /// The architecture's shape tells dimensions that the stored one does not, if it is for as many weights.
  void take_shape(const Shape& known, InspectedTensor& tensor) {
    if (element_count(known) == element_count(tensor.shape)) {
      tensor.shape = known;
      return;
    }
    const Error fault(fmt::format("is for a matrix {}, expected {}", to_string(tensor.shape), to_string(known)),
                      checkpoint_.place(tensor.name));
    faults_.emplace_back(fault.what());
  }

  int64_t count(const std::string& key) {
    counted_.insert(key);
    const TensorView* view = checkpoint_.find(key);
    return view ? static_cast<int64_t>(view->bytes.size()) : 0;
  }

  void look_at_parts(const StoredTensor& stored, InspectedTensor& tensor) {
    for (const PartSpec& part : stored.codec->parts) {
      if (part.kind == PartSpec::Kind::derived) continue;
      for (const std::string_view suffix : {part.suffix, part.older_name}) {
        if (!suffix.empty()) tensor.stored_bytes += count(part_key(stored.module, suffix));
      }
    }
    const StoredForm form = stored.codec->describe(checkpoint_, stored.module);
    tensor.codec = stored.codec->id;
    tensor.dtype = name_of(form.dtype);
    tensor.form = form.text;
    tensor.outliers = form.outliers;
    for (const Fact& fact : form.facts) tensor.facts.emplace_back(fact.name, fact.value);
  }

  const Checkpoint& checkpoint_;
  const std::map<std::string, Shape>& shapes_;
  std::map<std::string, Role> roles_;
  std::set<std::string> more_layers_;  // names of tensors
  std::set<std::string> counted_;
  std::vector<std::string> faults_;
};

std::string text_field(const nlohmann::json& json, const char* key) {
  if (!json.is_object() || !json.contains(key) || !json[key].is_string()) return {};
  return json[key].get<std::string>();
}

}  // namespace

Inspection inspect(const std::filesystem::path& dir) {
  const ModelFolder folder = ModelFolder::open(dir);
  const Checkpoint& checkpoint = folder.checkpoint;
  Inspection inspection;
  const nlohmann::json& config = checkpoint.config();
  inspection.model_type = text_field(config, "model_type");
  if (config.is_object() && config.contains("quantization_config")) {
    inspection.quant_method = text_field(config["quantization_config"], "quant_method");
  }
  std::map<std::string, std::optional<double>> snr;
  if (std::filesystem::is_directory(dir)) {
    try {
      if (const std::optional<Receipt> receipt = read_receipt(dir)) {
        for (const TensorReceipt& tensor : receipt->tensors) snr.emplace(tensor.name, tensor.snr_db);
      }
    } catch (const Error& error) {
      inspection.receipt_fault = error.what();
    }
  }
  Inspector inspector(folder);
  for (const StoredTensor& stored : list_tensors(checkpoint)) {
    if (!inspector.belongs(stored)) continue;
    InspectedTensor tensor = inspector.look_at(stored);
    if (const auto found = snr.find(tensor.name); found != snr.end()) tensor.snr_db = found->second;
    inspection.parameters += element_count(tensor.shape);
    inspection.stored_bytes += tensor.stored_bytes;
    inspection.tensors.push_back(std::move(tensor));
  }
  inspection.other_keys = inspector.other_keys();
  inspection.faults = inspector.faults();
  return inspection;
}

}  // namespace hxq
