#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hxq::jinja {

struct Token {
  enum class Kind : uint8_t {
    data,         // text between tags
    print_begin,  // {{
    print_end,    // }}
    block_begin,  // {%
    block_end,    // %}
    name,
    integer,
    real,
    text,  // a string literal, unescaped
    sign,  // an operator or a bracket
    end,   // of the template
  };
  Kind kind = Kind::end;
  std::string text;
  int line = 1;
};

/// Thrown for a template that cannot be read: `line` is where.
struct SyntaxFault {
  int line;
  std::string what;
};

/// Cuts a template, valid UTF-8, into tokens; the last one is `end`. White space around tags is treated as by Jinja
/// with trim_blocks and lstrip_blocks, and without keep_trailing_newline. Throws `SyntaxFault`.
std::vector<Token> tokenize(std::string_view source);

}  // namespace hxq::jinja
