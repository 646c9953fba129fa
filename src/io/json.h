#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace hxq {

enum class JsonEvent : uint8_t { object_start, object_end, array_start, array_end, key, value };

/// Sees a document while it is parsed.
class JsonFilter {
 public:
  virtual ~JsonFilter() = default;

  /// Whether to keep `value`; what it holds may be moved away. At the start of an object or array there is none yet.
  /// `depth`: how many objects and arrays are open around it.
  virtual bool keep(int depth, JsonEvent event, nlohmann::json& value) = 0;
};

/// Receives a document piece by piece; what it throws ends the parsing.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void begin(bool object) = 0;  ///< of an object or an array
  virtual void end() = 0;
  virtual void key(std::string_view name) = 0;
  virtual void string(std::string_view value) = 0;
  virtual void number(uint64_t value) = 0;  ///< not negative and whole
  virtual void null() = 0;
  virtual void other() = 0;  ///< another number, true or false
};

/// Parses one strict JSON document without keeping it. Throws `Error` naming `file` and the byte offset; `base_offset`
/// is that of the text within its file.
void read_json(std::string_view text, const std::string& file, JsonEvents& events, uint64_t base_offset = 0);

/// Of a file that describes a model, at most, in bytes.
inline constexpr size_t kMaxJson = size_t{16} << 20;
/// Of one that lists tokens or tensors, and of any document.
inline constexpr size_t kMaxJsonList = size_t{256} << 20;

/// Parses one JSON document of at most 256 MiB and 10,000,000 values, nested at most 128 deep.
///
/// Python's bare Infinity, -Infinity and NaN are accepted as values and become numbers that are not finite. Everything
/// else is strict. Throws `Error` naming `file` and the byte offset.
nlohmann::json parse_json(std::string_view text, const std::string& file, JsonFilter* filter = nullptr);

/// The same with members in the order of the text (by name in a document of more than some 10,000 members).
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& file);

/// To be changed and written again: `json_text` of it has integers beyond 64 bits as the text has them (an object
/// stands for each until then), where the others make floating-point numbers of them.
nlohmann::ordered_json parse_json_to_edit(std::string_view text, const std::string& file);

/// The document as text, two spaces of indentation. Numbers that are not finite are spelled as Python spells them, so
/// that what `parse_json` read is written back as it was.
std::string json_text(const nlohmann::json& json);
std::string json_text(const nlohmann::ordered_json& json);

/// Parses the file. Throws `Error` also if it cannot be read, and for one of more than `max_bytes`, unread.
nlohmann::json load_json(const std::filesystem::path& path, JsonFilter* filter = nullptr, size_t max_bytes = kMaxJson);
nlohmann::ordered_json load_ordered_json(const std::filesystem::path& path);
nlohmann::ordered_json load_json_to_edit(const std::filesystem::path& path);

}  // namespace hxq
