#include "io/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "hxq/error.h"
#include "io/mapped_file.h"

namespace hxq {
namespace {

constexpr size_t kMaxBytes = size_t{256} << 20;
constexpr int kMaxDepth = 128;

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

constexpr std::string_view kBefore = R"({"__float__": ")";
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

/// The part of the parser's message after its code and position.
std::string reason(const nlohmann::json::exception& error) {
  const std::string_view what = error.what();
  const size_t bracket = what.find("] ");
  const std::string_view message = bracket == what.npos ? what : what.substr(bracket + 2);
  const size_t colon = message.starts_with("parse error") ? message.find(": ") : message.npos;
  return std::string(colon == message.npos ? message : message.substr(colon + 2));
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file, const JsonOptions& options) {
  if (text.size() > kMaxBytes) {
    throw Error(fmt::format("JSON of {} bytes, expected at most {}", text.size(), kMaxBytes), {.file = file});
  }
  const std::vector<Literal> literals = scan(text, file, options);
  const std::string replaced = literals.empty() ? std::string() : replace_literals(text, literals);
  if (!literals.empty()) text = replaced;
  try {
    if (options.unique_keys) return nlohmann::json::parse(text, refuse_repeated_keys(file));
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    const size_t offset = original_offset(error.byte == 0 ? 0 : error.byte - 1, literals);
    throw Error("not valid JSON: " + reason(error), {.file = file, .offset = options.base_offset + offset});
  } catch (const nlohmann::json::exception& error) {
    throw Error("not valid JSON: " + reason(error), {.file = file});
  }
}

nlohmann::json load_json(const std::filesystem::path& path) {
  const MappedFile file = MappedFile::open(path);
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path.string());
}

}  // namespace hxq
