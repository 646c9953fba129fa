#include "text/pattern.h"

#include "hxq/error.h"

namespace hxq::text {

Regex pattern_of(const JsonPart& part) {
  const JsonPart pattern = part.child("pattern");
  const bool literal = pattern.has("String");
  if (!literal && !pattern.has("Regex")) pattern.fail("expected an object with the member String or Regex");
  const std::string source = pattern.string(literal ? "String" : "Regex");
  if (source.empty()) pattern.fail("found an empty pattern");
  try {
    return Regex(source, literal ? Regex::Syntax::literal : Regex::Syntax::oniguruma);
  } catch (const Error& error) {
    pattern.fail(error.what());
  }
}

}  // namespace hxq::text
