#include "io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "hxq/error.h"
#include "io/mapped_file.h"

namespace hxq {
namespace {

constexpr int kMaxDepth = 128;
/// A value of a few bytes of text becomes up to some 90 bytes of memory.
constexpr int64_t kMaxValues = 10'000'000;
/// Members of a document whose order is kept: looking a key up in such an object takes as many steps as it has keys.
constexpr ptrdiff_t kMaxOrdered = 10'000;

/// A bare Infinity, -Infinity or NaN outside strings, or an integer that is to be kept as it is written.
struct Literal {
  size_t offset;
  std::string_view text;
};

enum class LargeIntegers : uint8_t { become_floats, are_kept };

std::string_view literal_at(std::string_view text) {
  for (std::string_view literal : {"NaN", "Infinity", "-Infinity"}) {
    if (text.starts_with(literal)) return literal;
  }
  return {};
}

/// Whether the text is that of an integer in JSON which neither int64_t nor uint64_t has.
bool is_large_integer(std::string_view text) {
  const bool negative = text.starts_with('-');
  const std::string_view digits = text.substr(negative ? 1 : 0);
  const std::string_view most = negative ? "9223372036854775808" : "18446744073709551615";
  if (digits.size() < most.size() || digits.front() == '0') return false;
  if (!std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; })) return false;
  return digits.size() > most.size() || digits > most;
}

/// The text of the number that starts `text`.
std::string_view number_at(std::string_view text) { return text.substr(0, text.find_first_not_of("+-.0123456789Ee")); }

/// Finds the bare literals and bounds nesting and values, so that parsing cannot take memory out of proportion.
std::vector<Literal> scan(std::string_view text, const std::string& file, LargeIntegers large) {
  std::vector<Literal> literals;
  int depth = 0;
  int64_t values = 1;
  const auto count_value = [&](size_t offset) {
    if (++values > kMaxValues) {
      throw Error(fmt::format("JSON has more than {} values", kMaxValues), {.file = file, .offset = offset});
    }
  };
  const auto skip_number = [&](size_t& offset) {
    if (large == LargeIntegers::become_floats) return;
    const std::string_view number = number_at(text.substr(offset));
    if (is_large_integer(number)) literals.push_back({offset, number});
    offset += number.size() - 1;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        for (++i; i < text.size() && text[i] != '"'; ++i) {
          if (text[i] == '\\') ++i;
        }
        break;
      case ',':
        count_value(i);
        break;
      case '[':
      case '{':
        count_value(i);
        if (++depth > kMaxDepth) {
          throw Error(fmt::format("JSON is nested deeper than {}", kMaxDepth), {.file = file, .offset = i});
        }
        break;
      case ']':
      case '}':
        --depth;
        break;
      case '-':
      case 'I':
      case 'N': {
        const std::string_view literal = literal_at(text.substr(i));
        if (literal.empty()) {
          if (text[i] == '-') skip_number(i);
          break;
        }
        literals.push_back({i, literal});
        i += literal.size() - 1;
        break;
      }
      default:
        if (text[i] >= '0' && text[i] <= '9') skip_number(i);
        break;
    }
  }
  return literals;
}

/// What stands for a bare literal while the text is parsed: an object with this one key.
constexpr const char* kLiteralKey = "hxq bare literal";
constexpr std::string_view kBefore = R"({"hxq bare literal": ")";
constexpr std::string_view kAfter = R"("})";

std::string replace_literals(std::string_view text, const std::vector<Literal>& literals) {
  std::string out;
  size_t done = 0;
  for (const Literal& literal : literals) {
    out.append(text.substr(done, literal.offset - done));
    out.append(kBefore).append(literal.text).append(kAfter);
    done = literal.offset + literal.text.size();
  }
  return out.append(text.substr(done));
}

/// The text of what `json` stands for, if it stands for a literal.
template <class Json>
std::string literal_of(const Json& json) {
  if (!json.is_object() || json.size() != 1) return {};
  const auto only = json.begin();
  return only.key() == kLiteralKey && only->is_string() ? only->template get<std::string>() : std::string();
}

/// Turns what stands for literals into numbers, but for integers.
template <class Json>
void restore_literals(Json& json) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (const std::string text = literal_of(json); text == "NaN") {
    json = std::numeric_limits<double>::quiet_NaN();
  } else if (text == "Infinity" || text == "-Infinity") {
    json = text == "Infinity" ? kInfinity : -kInfinity;
  } else if (json.is_structured()) {
    for (Json& item : json) restore_literals(item);
  }
}

template <class Json>
std::string scalar_text(const Json& json) {
  if (!json.is_number_float() || std::isfinite(json.template get<double>())) return json.dump();
  const auto value = json.template get<double>();
  return std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
}

template <class Json>
void append_text(const Json& json, size_t indentation, std::string& out) {
  if (!json.is_structured() || json.empty()) {
    out += scalar_text(json);
    return;
  }
  if (const std::string text = literal_of(json); is_large_integer(text)) {
    out += text;
    return;
  }
  std::string line(indentation + 3, ' ');
  line.front() = '\n';
  out += json.is_object() ? '{' : '[';
  std::string_view separator;
  for (const auto& [key, value] : json.items()) {
    out.append(separator).append(line);
    if (json.is_object()) out.append(nlohmann::json(key).dump()).append(": ");
    append_text(value, indentation + 2, out);
    separator = ",";
  }
  out.append(line, 0, indentation + 1);
  out += json.is_object() ? '}' : ']';
}

/// The offset in the original text of a byte of the text with replaced literals.
size_t original_offset(size_t offset, const std::vector<Literal>& literals) {
  size_t grown = 0;
  for (const Literal& literal : literals) {
    const size_t begin = literal.offset + grown;
    if (offset < begin) break;
    if (offset < begin + kBefore.size() + literal.text.size() + kAfter.size()) return literal.offset;
    grown += kBefore.size() + kAfter.size();
  }
  return offset - grown;
}

JsonEvent event_of(nlohmann::json::parse_event_t event) {
  using Event = nlohmann::json::parse_event_t;
  switch (event) {
    case Event::object_start:
      return JsonEvent::object_start;
    case Event::object_end:
      return JsonEvent::object_end;
    case Event::array_start:
      return JsonEvent::array_start;
    case Event::array_end:
      return JsonEvent::array_end;
    case Event::key:
      return JsonEvent::key;
    default:
      return JsonEvent::value;
  }
}

nlohmann::json parsed(std::string_view text, JsonFilter* filter) {
  if (!filter) return nlohmann::json::parse(text);
  return nlohmann::json::parse(text, [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    return filter->keep(depth, event_of(event), value);
  });
}

/// The part of the parser's message after its code and position.
std::string reason(const nlohmann::json::exception& error) {
  const std::string_view what = error.what();
  const size_t bracket = what.find("] ");
  const std::string_view message = bracket == what.npos ? what : what.substr(bracket + 2);
  const size_t colon = message.starts_with("parse error") ? message.find(": ") : message.npos;
  return std::string(colon == message.npos ? message : message.substr(colon + 2));
}

/// nlohmann's interface to `JsonEvents`.
struct EventSink {
  JsonEvents& events;
  const std::string& file;
  uint64_t base_offset;

  bool null() { return events.null(), true; }
  bool boolean(bool) { return events.other(), true; }
  bool number_integer(int64_t) { return events.other(), true; }
  bool number_unsigned(uint64_t value) { return events.number(value), true; }
  bool number_float(double, const std::string&) { return events.other(), true; }
  bool string(const std::string& value) { return events.string(value), true; }
  bool binary(const std::vector<uint8_t>&) { return events.other(), true; }
  bool start_object(size_t) { return events.begin(true), true; }
  bool start_array(size_t) { return events.begin(false), true; }
  bool key(const std::string& name) { return events.key(name), true; }
  bool end_object() { return events.end(), true; }
  bool end_array() { return events.end(), true; }
  bool parse_error(size_t byte, const std::string&, const nlohmann::json::exception& error) {
    throw Error("not valid JSON: " + reason(error), {.file = file, .offset = base_offset + (byte == 0 ? 0 : byte - 1)});
  }
};

void check_size(size_t bytes, size_t most, const std::string& file) {
  if (bytes > most) throw Error(fmt::format("JSON of {} bytes, expected at most {}", bytes, most), {.file = file});
}

/// `parse_text(text)` parses the text that has no bare literals any more.
template <class Parse>
auto parse_with_literals(std::string_view text, const std::string& file, LargeIntegers large, const Parse& parse_text) {
  check_size(text.size(), kMaxJsonList, file);
  if (const size_t at = text.find(kLiteralKey); at != text.npos) {
    throw Error(fmt::format("\"{}\" has a meaning of its own here", kLiteralKey), {.file = file, .offset = at});
  }
  const std::vector<Literal> literals = scan(text, file, large);
  const std::string replaced = literals.empty() ? std::string() : replace_literals(text, literals);
  if (!literals.empty()) text = replaced;
  try {
    auto json = parse_text(text);
    if (!literals.empty()) restore_literals(json);
    return json;
  } catch (const nlohmann::json::parse_error& error) {
    const size_t offset = original_offset(error.byte == 0 ? 0 : error.byte - 1, literals);
    throw Error("not valid JSON: " + reason(error), {.file = file, .offset = offset});
  } catch (const nlohmann::json::exception& error) {
    throw Error("not valid JSON: " + reason(error), {.file = file});
  }
}

nlohmann::ordered_json parsed_in_order(std::string_view text, const std::string& file, LargeIntegers large) {
  const bool is_long = std::ranges::count(text, ':') > kMaxOrdered;
  return parse_with_literals(text, file, large, [&](std::string_view plain) {
    return is_long ? nlohmann::ordered_json(nlohmann::json::parse(plain)) : nlohmann::ordered_json::parse(plain);
  });
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

nlohmann::ordered_json load_in_order(const std::filesystem::path& path, LargeIntegers large) {
  const MappedFile file = MappedFile::open(path);
  check_size(file.bytes().size(), kMaxJson, path.string());
  return parsed_in_order(text_of(file), path.string(), large);
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file, JsonFilter* filter) {
  return parse_with_literals(text, file, LargeIntegers::become_floats,
                             [&](std::string_view plain) { return parsed(plain, filter); });
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& file) {
  return parsed_in_order(text, file, LargeIntegers::become_floats);
}

nlohmann::ordered_json parse_json_to_edit(std::string_view text, const std::string& file) {
  return parsed_in_order(text, file, LargeIntegers::are_kept);
}

void read_json(std::string_view text, const std::string& file, JsonEvents& events, uint64_t base_offset) {
  EventSink sink{events, file, base_offset};
  nlohmann::json::sax_parse(text, &sink);
}

std::string json_text(const nlohmann::json& json) {
  std::string text;
  append_text(json, 0, text);
  return text;
}

std::string json_text(const nlohmann::ordered_json& json) {
  std::string text;
  append_text(json, 0, text);
  return text;
}

nlohmann::json load_json(const std::filesystem::path& path, JsonFilter* filter, size_t max_bytes) {
  const MappedFile file = MappedFile::open(path);
  check_size(file.bytes().size(), max_bytes, path.string());
  return parse_json(text_of(file), path.string(), filter);
}

nlohmann::ordered_json load_ordered_json(const std::filesystem::path& path) {
  return load_in_order(path, LargeIntegers::become_floats);
}

nlohmann::ordered_json load_json_to_edit(const std::filesystem::path& path) {
  return load_in_order(path, LargeIntegers::are_kept);
}

}  // namespace hxq
