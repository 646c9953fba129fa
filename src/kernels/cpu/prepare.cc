#include "kernels/cpu/prepare.h"

#include <string_view>

#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu/exact_prepared.h"
#include "kernels/cpu/generic_prepared.h"
#include "kernels/cpu/grouped_prepared.h"

namespace hxq::kernels::cpu {
namespace {

struct Row {
  std::string_view codec_id;
  std::unique_ptr<const CpuMatrix> (*prepare)(std::unique_ptr<const StoredMatrix> stored);
};

/// Codecs with kernels of their own.
constexpr Row kRows[] = {
    {kExact, prepare_exact},
    {"codebook", prepare_codebook},
    {"grouped", prepare_grouped},
};

}  // namespace

std::unique_ptr<const CpuMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) {
  const std::string_view id = stored->codec == nullptr ? kExact : stored->codec->id;
  for (const Row& row : kRows) {
    if (row.codec_id == id) return row.prepare(std::move(stored));
  }
  return std::make_unique<GenericMatrix>(std::move(stored));
}

}  // namespace hxq::kernels::cpu
