#include "jinja/template.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "io/utf8.h"
#include "jinja/interpreter.h"
#include "jinja/parser.h"

namespace hxq::jinja {
namespace {

[[noreturn]] void fail(const std::string& file, int line, std::string what) {
  std::ranges::replace(what, '\n', ' ');  // a message is one line
  throw Error(fmt::format("chat template, line {}: {}", line, what), {.file = file});
}

}  // namespace

Template::Template(std::string_view source, std::string file) : file_(std::move(file)) {
  constexpr size_t kMaxSource = size_t{1} << 20;
  if (source.size() > kMaxSource) fail(file_, 1, fmt::format("longer than {} KiB", kMaxSource >> 10));
  try {
    body_ = parse(to_valid_utf8(source));
  } catch (const SyntaxFault& fault) {
    fail(file_, fault.line, fault.what);
  } catch (const Fault& fault) {
    fail(file_, 1, fault.what());
  }
}

std::string Template::render(const nlohmann::ordered_json& context) const {
  int line = 1;
  try {
    Interpreter interpreter(Value::from_json(context));
    try {
      return interpreter.run(body_);
    } catch (const Fault&) {
      line = interpreter.line();
      throw;
    }
  } catch (const Fault& fault) {
    fail(file_, line, fault.what());
  }
}

}  // namespace hxq::jinja
