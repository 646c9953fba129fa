#include "folder/shared_copies.h"

#include <fmt/format.h>

#include <algorithm>

namespace hxq {

void check_shared_copies(const Checkpoint& checkpoint, const ModelDesc& model) {
  for (const SharedPrefix& shared : model.shared_prefixes) {
    const auto first = checkpoint.tensors().lower_bound(shared.prefix);
    for (auto copy = first; copy != checkpoint.tensors().end() && copy->first.starts_with(shared.prefix); ++copy) {
      const std::string name = shared.stored + copy->first.substr(shared.prefix.size());
      const TensorView* stored = checkpoint.find(name);
      if (stored != nullptr && stored->dtype == copy->second.dtype && stored->shape == copy->second.shape &&
          std::ranges::equal(stored->bytes, copy->second.bytes)) {
        continue;
      }
      throw Error(fmt::format("differs from {}, expected the same: models whose layers do not share one block (untied) "
                              "are not supported",
                              name),
                  checkpoint.place(copy->first));
    }
  }
}

}  // namespace hxq
