#include <filesystem>
#include <nlohmann/json.hpp>

#include "capi/arguments.h"
#include "capi/encode_options.h"
#include "capi/handles.h"
#include "compress/cdnav3_write.h"
#include "io/utf8.h"

using namespace hxq;
using namespace hxq::capi;

hxq_status hxq_cdnav3_write(const char* folder, const hxq_tensor* source, int32_t exact,
                            const hxq_encode_options* options, char** stats_json) {
  return guard("writing a tensor", [&] {
    require_pointers({{"folder", folder}, {"source", source}, {"stats_json", stats_json}});
    require(*folder != 0, "folder is an empty path");
    require(source->name != nullptr && *source->name != 0, "the tensor has no name");
    require(is_valid_utf8(source->name), "the tensor's name is not UTF-8");
    require(options == nullptr || options->low_rank <= 0,
            "low_rank has no effect: .cdnav3 folders get no such term here");
    require(options == nullptr || (options->profile == nullptr && options->bits == 0 && options->group == 0),
            "profile, bits and group have no effect: .cdnav3 folders hold codebooks alone");
    const TensorView view = capi::view_of(*source);
    const CodebookOptions chosen = codebook_options(options);
    const bool compressed = exact == 0 && view.shape.size() == 2 && view.size() > 0;
    try {
      const nlohmann::json stats = compressed ? write_cdnav3(folder, source->name, view, chosen)
                                              : write_cdnav3_exact(folder, source->name, view);
      *stats_json = copy_text(stats.dump());
    } catch (const std::filesystem::filesystem_error& error) {
      throw Error("cannot be written: " + error.code().message(), {.file = error.path1().string()});
    }
  });
}
