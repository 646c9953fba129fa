#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "jinja/syntax.h"

namespace hxq::jinja {

/// A template of the part of Jinja that chat templates use, with the settings and functions that transformers gives
/// them: trim_blocks, lstrip_blocks, loop controls, generation blocks, raise_exception, strftime_now, and a tojson that
/// leaves characters as they are. Not there: inheritance and inclusion, call blocks, recursive loops, arguments with *,
/// macros defined inside of loops, macros or blocks with a scope of their own.
///
/// Safe to run whatever it says: nothing outside is reached, nothing passed in changes, and work, stack and memory are
/// bounded.
class Template {
 public:
  /// Throws `Error` naming `file` and the line for a template that cannot be read.
  Template(std::string_view source, std::string file);

  /// `context`: an object of variables. Throws `Error` naming file and line for what fails on the way, such as the
  /// template's own raise_exception.
  std::string render(const nlohmann::ordered_json& context) const;

  const std::string& file() const noexcept { return file_; }

 private:
  std::string file_;
  Body body_;
};

}  // namespace hxq::jinja
