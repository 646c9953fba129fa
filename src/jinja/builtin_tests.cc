#include <fmt/format.h>

#include <functional>
#include <map>

#include "jinja/builtins.h"
#include "jinja/letters.h"

namespace hxq::jinja {
namespace {

using Unary = bool (*)(const Value&);

const std::map<std::string, Unary, std::less<>>& unary_tests() {
  static const std::map<std::string, Unary, std::less<>> table = {
      {"boolean", [](const Value& v) { return v.is_bool(); }},
      {"callable", [](const Value& v) { return v.function() != nullptr; }},
      {"defined", [](const Value& v) { return !v.is_undefined(); }},
      {"even", [](const Value& v) { return v.integer("what is tested for being even") % 2 == 0; }},
      {"false", [](const Value& v) { return v.is_bool() && !v.truth(); }},
      {"float", [](const Value& v) { return v.is_float(); }},
      {"integer", [](const Value& v) { return v.is_integer(); }},
      {"iterable", [](const Value& v) { return v.text() || v.list() || v.dict() || v.loop() || v.is_undefined(); }},
      {"lower",
       [](const Value& v) {
         const std::string t = to_text(v);
         return t == lower(t) && t != upper(t);
       }},
      {"mapping", [](const Value& v) { return v.dict() != nullptr; }},
      {"none", [](const Value& v) { return v.is_none(); }},
      {"number", [](const Value& v) { return v.is_number(); }},
      {"odd", [](const Value& v) { return v.integer("what is tested for being odd") % 2 != 0; }},
      {"sequence", [](const Value& v) { return v.text() || v.list() || v.dict() || v.is_undefined(); }},
      {"string", [](const Value& v) { return v.text() != nullptr; }},
      {"true", [](const Value& v) { return v.is_bool() && v.truth(); }},
      {"undefined", [](const Value& v) { return v.is_undefined(); }},
      {"upper",
       [](const Value& v) {
         const std::string t = to_text(v);
         return t == upper(t) && t != lower(t);
       }},
  };
  return table;
}

const std::map<std::string, Operator, std::less<>>& comparing_tests() {
  using enum Operator;
  static const std::map<std::string, Operator, std::less<>> table = {
      {"==", Operator::equal},
      {"eq", Operator::equal},
      {"equalto", Operator::equal},
      {"!=", unequal},
      {"ne", unequal},
      {"<", less},
      {"lt", less},
      {"lessthan", less},
      {"<=", less_equal},
      {"le", less_equal},
      {">", greater},
      {"gt", greater},
      {"greaterthan", greater},
      {">=", greater_equal},
      {"ge", greater_equal},
      {"in", in},
  };
  return table;
}

bool same(const Value& left, const Value& right) {
  const bool singletons = left.is_none() || left.is_bool() || right.is_none() || right.is_bool();
  if (singletons) return left.type_name() == right.type_name() && left.truth() == right.truth();
  if (left.list() || left.dict()) return left.list() == right.list() && left.dict() == right.dict();
  return left.type_name() == right.type_name() && equal(left, right);
}

}  // namespace

bool apply_test(const std::string& name, const Value& value, const Given& given) {
  charge(1);
  if (const auto test = unary_tests().find(name); test != unary_tests().end()) {
    const Bound none(given, name, {});
    return test->second(value);
  }
  if (const auto test = comparing_tests().find(name); test != comparing_tests().end()) {
    return relates(test->second, value, Bound(given, name, {"other"}).need(0));
  }
  if (name == "sameas") return same(value, Bound(given, name, {"other"}).need(0));
  if (name == "divisibleby") {
    return operate(Operator::modulo, value, Bound(given, name, {"num"}).need(0)).number() == 0;
  }
  throw Fault(fmt::format("the test '{}' is not known here", name));
}

}  // namespace hxq::jinja
