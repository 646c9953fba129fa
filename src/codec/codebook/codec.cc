#include "codec/codebook/codec.h"

#include <fmt/format.h>

#include "codec/codebook/read.h"
#include "codec/module_parts.h"

namespace hxq {
namespace {

using Kind = PartSpec::Kind;

constexpr PartSpec kParts[] = {
    {"codebook", Kind::needed},
    {"indices", Kind::needed},
    {"sidecar_positions", Kind::optional, "sidecar_indices"},
    {"sidecar_values", Kind::optional},
    {"svd_U", Kind::optional},
    {"svd_s", Kind::optional},
    {"svd_Vt", Kind::optional},
    {"channel_scales", Kind::optional},
    {"codebook_f16", Kind::derived},
    {"_sidecar_vq_vals", Kind::derived},
    {"_sidecar_rows", Kind::derived},
    {"_sidecar_cols", Kind::derived},
    {"_sidecar_deltas", Kind::derived},
};

std::unique_ptr<const StoredMatrix> read(const Checkpoint& checkpoint, std::string_view module, const Shape& expected) {
  return std::make_unique<CodebookMatrix>(read_codebook_matrix(checkpoint, module, expected));
}

StoredForm describe(const Checkpoint& checkpoint, std::string_view module) {
  const ModuleParts parts(checkpoint, module);
  const auto dimension = [&](std::string_view part, size_t axis, int64_t otherwise) {
    const TensorView* tensor = parts.find(part);
    return tensor != nullptr && tensor->shape.size() > axis ? tensor->shape[axis] : otherwise;
  };
  const int64_t codewords = dimension("codebook", 0, 0);
  const int64_t vector_dim = dimension("codebook", 1, 1);
  const int64_t low_rank = dimension("svd_s", 0, 0);
  StoredForm form{.text = fmt::format("codebook x {}", codewords),
                  .dtype = parts.get("indices").dtype,
                  .outliers = dimension("sidecar_values", 0, 0),
                  .facts = {{"codewords", codewords}, {"vector_dim", vector_dim}, {"low_rank", low_rank}}};
  if (vector_dim > 1) form.text += fmt::format(" of {}", vector_dim);
  if (low_rank > 0) form.text += fmt::format(" + rank {}", low_rank);
  return form;
}

}  // namespace

constinit const Codec kCodebookCodec = {
    .id = "codebook", .parts = kParts, .shape = codebook_matrix_shape, .read = read, .describe = describe};

}  // namespace hxq
