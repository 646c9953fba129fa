#include <cmath>
#include <nlohmann/json.hpp>

#include "hxq/verify.h"

namespace hxq {
namespace {

nlohmann::ordered_json json_of(const InspectedTensor& tensor) {
  nlohmann::ordered_json json = {{"name", tensor.name},
                                 {"shape", tensor.shape},
                                 {"role", tensor.role},
                                 {"codec", tensor.codec},
                                 {"dtype", tensor.dtype}};
  for (const auto& [name, value] : tensor.facts) json[name] = value;
  json["outliers"] = tensor.outliers;
  json["stored_bytes"] = tensor.stored_bytes;
  json["bits_per_weight"] = tensor.bits_per_weight;
  json["snr_db"] = tensor.snr_db ? nlohmann::ordered_json(*tensor.snr_db) : nlohmann::ordered_json();
  return json;
}

nlohmann::ordered_json finite_or_null(const std::optional<double>& value) {
  return value && std::isfinite(*value) ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

}  // namespace

std::string to_json(const Inspection& inspection) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const InspectedTensor& tensor : inspection.tensors) tensors.push_back(json_of(tensor));
  const nlohmann::ordered_json json = {
      {"model_type", inspection.model_type}, {"quant_method", inspection.quant_method},
      {"parameters", inspection.parameters}, {"stored_bytes", inspection.stored_bytes},
      {"tensors", std::move(tensors)},       {"other_keys", inspection.other_keys},
      {"faults", inspection.faults},         {"receipt_fault", inspection.receipt_fault}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string to_json(const VerifyResult& result) {
  nlohmann::ordered_json problems = nlohmann::ordered_json::array();
  for (const Problem& problem : result.problems) problems.push_back(problem.message);
  nlohmann::ordered_json fidelities = nlohmann::ordered_json::array();
  for (const MeasuredTensor& tensor : result.fidelities) {
    fidelities.push_back({{"name", tensor.name}, {"snr_db", finite_or_null(tensor.snr_db)}});
  }
  const nlohmann::ordered_json json = {{"ok", result.ok()},
                                       {"tensors", result.tensors},
                                       {"compressed", result.compressed},
                                       {"has_receipt", result.has_receipt},
                                       {"matrices_checked", result.matrices_checked},
                                       {"hashes_checked", result.hashes_checked},
                                       {"fidelities_checked", result.fidelities_checked},
                                       {"exact_compared", result.exact_compared},
                                       {"exact_converted", result.exact_converted},
                                       {"worst_snr_db", finite_or_null(result.worst_snr_db)},
                                       {"worst_tensor", result.worst_tensor},
                                       {"median_snr_db", finite_or_null(result.median_snr_db)},
                                       {"fidelities", std::move(fidelities)},
                                       {"problems", std::move(problems)}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace hxq
