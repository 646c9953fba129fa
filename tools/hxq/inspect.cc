#include <fmt/format.h>

#include <memory>

#include "console.h"
#include "hxq/verify.h"
#include "tables.h"
#include "verbs.h"

namespace hxq::tools {
namespace {

struct InspectArguments {
  std::string dir;
  bool json = false;
};

std::string table_text(const Inspection& inspection) {
  Table table({{"tensor", Align::left},
               {"shape", Align::right},
               {"stored as", Align::left},
               {"bits/weight", Align::right},
               {"SNR dB", Align::right},
               {"outliers", Align::right},
               {"bytes", Align::right}});
  for (const InspectedTensor& tensor : inspection.tensors) {
    table.add({tensor.name, to_string(tensor.shape), tensor.form, fmt::format("{:.3f}", tensor.bits_per_weight),
               tensor.snr_db ? fmt::format("{:.2f}", *tensor.snr_db) : "",
               tensor.outliers > 0 ? fmt::format("{}", tensor.outliers) : "", fmt::format("{}", tensor.stored_bytes)});
  }
  std::string text = table.text();
  text += fmt::format("\n{}, {}: {} parameters in {} tensors, {}\n",
                      inspection.model_type.empty() ? "no model_type" : inspection.model_type,
                      inspection.quant_method.empty() ? "no quant_method" : "quant_method " + inspection.quant_method,
                      inspection.parameters, inspection.tensors.size(), bytes_text(inspection.stored_bytes));
  if (!inspection.other_keys.empty()) {
    text += fmt::format("{} stored keys belong to no tensor of the model and are ignored, the first is {}\n",
                        inspection.other_keys.size(), inspection.other_keys.front());
  }
  if (!inspection.faults.empty()) {
    text += fmt::format("not the tensors that config.json describes: {}\n", inspection.faults.front());
    if (const size_t rest = inspection.faults.size() - 1; rest > 0) text += fmt::format("and {} more such\n", rest);
  }
  if (!inspection.receipt_fault.empty()) text += fmt::format("no SNR: {}\n", inspection.receipt_fault);
  return text;
}

}  // namespace

RunVerb add_inspect(CLI::App& app) {
  auto arguments = std::make_shared<InspectArguments>();
  app.add_option("DIR", arguments->dir, "Model folder (dense, HXQ or .cdnav3) or a .safetensors file")->required();
  app.add_flag("--json", arguments->json, "Print JSON");
  app.footer("Example: hxq inspect build/mine");
  return [arguments] {
    const Inspection inspection = inspect(arguments->dir);
    print(arguments->json ? to_json(inspection) : table_text(inspection));
    return 0;
  };
}

}  // namespace hxq::tools
