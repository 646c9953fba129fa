// Values as text: Python's str() and repr(), and json.dumps().
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/utf8.h"
#include "jinja/value.h"

namespace hxq::jinja {
namespace {

void check_size(const std::string& out) {
  if (out.size() > kMaxTextBytes) throw Fault(fmt::format("a text longer than {} MiB", kMaxTextBytes >> 20));
}

std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

void append_repr(std::string_view text, std::string& out) {
  const bool apostrophe = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = apostrophe ? '"' : '\'';
  out += quote;
  for (const std::string_view c : characters_of(text)) {
    const char32_t value = first_code_point(c).value;
    if (c[0] == quote || c[0] == '\\') {
      out += '\\';
      out += c;
    } else if (c[0] == '\n') {
      out += "\\n";
    } else if (c[0] == '\r') {
      out += "\\r";
    } else if (c[0] == '\t') {
      out += "\\t";
    } else if (value < 0x20 || (value >= 0x7F && value <= 0xA0) || value == 0xAD) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(value));
    } else {
      out += c;
    }
  }
  out += quote;
}

void append_text(const Value& value, bool quoted, std::string& out) {
  check_size(out);
  charge(1);
  if (value.text()) {
    quoted ? append_repr(*value.text(), out) : void(out += *value.text());
  } else if (value.is_bool()) {
    out += value.truth() ? "True" : "False";
  } else if (value.is_integer()) {
    out += fmt::format("{}", value.integer(""));
  } else if (value.is_float()) {
    out += float_text(value.number());
  } else if (value.is_none()) {
    out += "None";
  } else if (value.list()) {
    const auto& [items, tuple, depth] = *value.list();
    out += tuple ? '(' : '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += ", ";
      append_text(items[i], true, out);
    }
    if (tuple && items.size() == 1) out += ',';
    out += tuple ? ')' : ']';
  } else if (value.dict()) {
    out += '{';
    for (const auto& [key, item] : value.dict()->entries) {
      if (out.back() != '{') out += ", ";
      append_repr(key, out);
      out += ": ";
      append_text(item, true, out);
    }
    out += '}';
  } else if (value.is_undefined()) {
    out += quoted ? "Undefined" : "";
  } else {
    throw Fault(fmt::format("a {} cannot be printed", value.type_name()));
  }
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

class JsonWriter {
 public:
  explicit JsonWriter(int indent) : indent_(indent) {}

  void write(const Value& value, int level) {
    check_size(out);
    charge(1);
    if (value.text()) {
      append_json_string(*value.text(), out);
    } else if (value.is_bool()) {
      out += value.truth() ? "true" : "false";
    } else if (value.is_none()) {
      out += "null";
    } else if (value.is_float() && !std::isfinite(value.number())) {
      out += std::isnan(value.number()) ? "NaN" : value.number() > 0 ? "Infinity" : "-Infinity";
    } else if (value.is_number()) {
      append_text(value, false, out);
    } else if (value.list()) {
      const auto& items = value.list()->items;
      out += '[';
      for (size_t i = 0; i < items.size(); ++i) {
        separate(i > 0, level + 1);
        write(items[i], level + 1);
      }
      close(items.empty(), ']', level);
    } else if (value.dict()) {
      const auto& entries = value.dict()->entries;
      out += '{';
      for (size_t i = 0; i < entries.size(); ++i) {
        separate(i > 0, level + 1);
        append_json_string(entries[i].first, out);
        out += ": ";
        write(entries[i].second, level + 1);
      }
      close(entries.empty(), '}', level);
    } else {
      throw Fault(fmt::format("a {} has no JSON form", value.type_name()));
    }
  }

  std::string out;

 private:
  void separate(bool after_another, int level) {
    if (after_another) out += indent_ < 0 ? ", " : ",";
    new_line(level);
  }
  void close(bool empty, char bracket, int level) {
    if (!empty) new_line(level);
    out += bracket;
  }
  void new_line(int level) {
    if (indent_ < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent_) * static_cast<size_t>(level), ' ');
  }

  int indent_;
};

}  // namespace

std::string to_text(const Value& value) {
  if (value.text()) {
    charge_text(value.text()->size());
    return *value.text();
  }
  std::string out;
  append_text(value, false, out);
  charge_text(out.size());
  return out;
}

std::string to_json(const Value& value, int indent) {
  constexpr int kMaxIndent = 64;
  JsonWriter writer(std::min(indent, kMaxIndent));
  writer.write(value, 0);
  charge_text(writer.out.size());
  return std::move(writer.out);
}

}  // namespace hxq::jinja
