#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "jinja/builtins.h"
#include "jinja/syntax.h"

namespace hxq::jinja {

/// Runs a parsed template once. Throws `Fault`; `line` then says where.
class Interpreter {
 public:
  /// `context`: a dict of the variables that the template finds.
  explicit Interpreter(const Value& context);

  std::string run(const Body& body);
  int line() const { return line_; }

 private:
  enum class Flow : uint8_t { normal, broken, continued };
  using Scope = std::map<std::string, Value, std::less<>>;

  /// What it may do and make in all: about a second's work, and less than 1 GB.
  static constexpr int64_t kBudget = 5'000'000;
  static constexpr int kMaxDepth = 400;
  /// Counts the nesting of bodies, evaluations and macros, which each take up to 2.5 KB of stack.
  class Deeper;

  void print(std::string_view text);
  template <class Run>
  std::string captured(Run&& run);

  Flow execute(const Body& body);
  Flow execute(const Text& node);
  Flow execute(const Print& node);
  Flow execute(const If& node);
  Flow execute(const For& node);
  Flow execute(const Set& node);
  Flow execute(const MacroStatement& node);
  Flow execute(const FilterBlock& node);
  Flow execute(const Generation& node);
  Flow execute(const Break&) { return Flow::broken; }
  Flow execute(const Continue&) { return Flow::continued; }
  std::vector<Value> filtered_items(const For& node);
  void assign(const Target& target, const Value& value);
  std::string filtered(const std::vector<Filter>& filters, std::string text);

  Value evaluate(const Expression& expression);
  Value evaluate(const ExpressionPtr& expression) { return expression ? evaluate(*expression) : Value(); }
  Value evaluate(const Constant& node) { return node.value; }
  Value evaluate(const Name& node) { return variable(node.name); }
  Value evaluate(const ListLiteral& node);
  Value evaluate(const DictLiteral& node);
  Value evaluate(const Attribute& node) { return get_attribute(evaluate(node.object), node.name); }
  Value evaluate(const Item& node);
  Value evaluate(const Slice& node);
  Value evaluate(const Call& node);
  Value evaluate(const Filter& node);
  Value evaluate(const Test& node);
  Value evaluate(const Chain& node);
  Value evaluate(const Unary& node);
  Value evaluate(const Conditional& node);
  Given evaluate(const Arguments& arguments);
  Value call_macro(const MacroStatement& macro, const Given& given);

  Value variable(const std::string& name) const;

  std::vector<Scope> scopes_;  // the template's own, then those of macros and loops under way
  size_t visible_from_ = 1;    // a macro sees the first scope, and those from here on
  std::string out_;
  int depth_ = 0;
  int64_t loops_ = 0;
  int line_ = 1;
};

}  // namespace hxq::jinja
