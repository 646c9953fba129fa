#include "io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "hxq/error.h"
#include "io/mapped_file.h"

namespace hxq {
namespace {

constexpr size_t kMaxBytes = size_t{256} << 20;
constexpr int kMaxDepth = 128;
/// Members of a document whose order is kept: looking a key up in such an object takes as many steps as it has keys.
constexpr ptrdiff_t kMaxOrdered = 10'000;

/// A bare Infinity, -Infinity or NaN outside strings.
struct Literal {
  size_t offset;
  std::string_view text;
};

std::string_view literal_at(std::string_view text) {
  for (std::string_view literal : {"NaN", "Infinity", "-Infinity"}) {
    if (text.starts_with(literal)) return literal;
  }
  return {};
}

/// Finds the bare literals and bounds the nesting, so that parsing cannot take memory out of proportion.
std::vector<Literal> scan(std::string_view text, const std::string& file, const JsonOptions& options) {
  std::vector<Literal> literals;
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '"':
        for (++i; i < text.size() && text[i] != '"'; ++i) {
          if (text[i] == '\\') ++i;
        }
        break;
      case '[':
      case '{':
        if (++depth > kMaxDepth) {
          throw Error(fmt::format("JSON is nested deeper than {}", kMaxDepth),
                      {.file = file, .offset = options.base_offset + i});
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
        if (literal.empty()) break;
        literals.push_back({i, literal});
        i += literal.size() - 1;
        break;
      }
      default:
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

/// Turns what stands for literals into numbers.
template <class Json>
void restore_literals(Json& json) {
  if (json.is_object() && json.size() == 1 && json.begin().key() == kLiteralKey && json.begin()->is_string()) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const std::string text = json.begin()->template get<std::string>();
    json = text == "NaN" ? std::numeric_limits<double>::quiet_NaN() : text == "Infinity" ? kInfinity : -kInfinity;
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

/// Parser callback that throws at the second occurrence of a key in one object.
auto refuse_repeated_keys(const std::string& file) {
  return [file, open = std::vector<std::set<std::string>>()](int, nlohmann::json::parse_event_t event,
                                                             nlohmann::json& parsed) mutable {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start) open.emplace_back();
    if (event == Event::object_end) open.pop_back();
    if (event == Event::key && !open.back().insert(parsed.get<std::string>()).second) {
      throw Error(fmt::format("key '{}' is there twice", parsed.get<std::string>()), {.file = file});
    }
    return true;
  };
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

nlohmann::json parsed(std::string_view text, const std::string& file, const JsonOptions& options) {
  if (options.unique_keys) return nlohmann::json::parse(text, refuse_repeated_keys(file));
  if (!options.filter) return nlohmann::json::parse(text);
  return nlohmann::json::parse(text, [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    return options.filter->keep(depth, event_of(event), value);
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

/// `parse_text(text)` parses the text that has no bare literals any more.
template <class Parse>
auto parse_with_literals(std::string_view text, const std::string& file, const JsonOptions& options,
                         const Parse& parse_text) {
  if (text.size() > kMaxBytes) {
    throw Error(fmt::format("JSON of {} bytes, expected at most {}", text.size(), kMaxBytes), {.file = file});
  }
  const std::vector<Literal> literals = scan(text, file, options);
  const std::string replaced = literals.empty() ? std::string() : replace_literals(text, literals);
  if (!literals.empty()) text = replaced;
  try {
    auto json = parse_text(text);
    if (!literals.empty()) restore_literals(json);
    return json;
  } catch (const nlohmann::json::parse_error& error) {
    const size_t offset = original_offset(error.byte == 0 ? 0 : error.byte - 1, literals);
    throw Error("not valid JSON: " + reason(error), {.file = file, .offset = options.base_offset + offset});
  } catch (const nlohmann::json::exception& error) {
    throw Error("not valid JSON: " + reason(error), {.file = file});
  }
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file, const JsonOptions& options) {
  return parse_with_literals(text, file, options, [&](std::string_view plain) { return parsed(plain, file, options); });
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& file) {
  if (std::ranges::count(text, ':') > kMaxOrdered) return nlohmann::ordered_json(parse_json(text, file));
  return parse_with_literals(text, file, {},
                             [](std::string_view plain) { return nlohmann::ordered_json::parse(plain); });
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

nlohmann::json load_json(const std::filesystem::path& path, JsonFilter* filter) {
  const MappedFile file = MappedFile::open(path);
  return parse_json(text_of(file), path.string(), {.filter = filter});
}

nlohmann::ordered_json load_ordered_json(const std::filesystem::path& path) {
  const MappedFile file = MappedFile::open(path);
  return parse_ordered_json(text_of(file), path.string());
}

}  // namespace hxq
