#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace hxq {

struct JsonOptions {
  bool unique_keys = false;  ///< refuse an object that names a key twice (otherwise the last one counts)
  uint64_t base_offset = 0;  ///< offset of the text within its file, for messages
};

/// Parses one JSON document of at most 256 MiB, nested at most 128 deep.
///
/// Python's bare Infinity, -Infinity and NaN are accepted as values and become numbers that are not finite. Everything
/// else is strict. Throws `Error` naming `file` and the byte offset.
nlohmann::json parse_json(std::string_view text, const std::string& file, const JsonOptions& options = {});

/// The document as text, two spaces of indentation. Numbers that are not finite are spelled as Python spells them, so
/// that what `parse_json` read is written back as it was.
std::string json_text(const nlohmann::json& json);

/// Parses the file. Throws `Error` also if it cannot be read.
nlohmann::json load_json(const std::filesystem::path& path);

}  // namespace hxq
