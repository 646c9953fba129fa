#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "jinja/value.h"

// What the parser makes of a template.
namespace hxq::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Arguments {
  std::vector<ExpressionPtr> values;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Constant {
  Value value;
};
struct Name {
  std::string name;
};
struct ListLiteral {
  std::vector<ExpressionPtr> items;
  bool tuple;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> entries;
};
/// object.name
struct Attribute {
  ExpressionPtr object;
  std::string name;
};
/// object[index]
struct Item {
  ExpressionPtr object, index;
};
/// object[begin:end:step], each of which may be null
struct Slice {
  ExpressionPtr object, begin, end, step;
};
struct Call {
  ExpressionPtr callee;
  Arguments arguments;
};
/// value | name(arguments); the value is null in a filter block
struct Filter {
  ExpressionPtr value;
  std::string name;
  Arguments arguments;
};
/// value is name(arguments)
struct Test {
  ExpressionPtr value;
  std::string name;
  Arguments arguments;
  bool negated;
};
enum class Operator : uint8_t {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  join,
  equal,
  unequal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in,
  both,
  either,
};
/// Operators of one level of precedence, from left to right; comparisons each relate neighbours.
struct Chain {
  enum class Kind : uint8_t { arithmetic, comparison, logic };
  Kind kind;
  ExpressionPtr first;
  std::vector<std::pair<Operator, ExpressionPtr>> rest;
};
enum class Sign : uint8_t { minus, plus, negation };
struct Unary {
  Sign sign;
  ExpressionPtr operand;
};
/// then if condition else otherwise, which may be null
struct Conditional {
  ExpressionPtr condition, then, otherwise;
};

struct Expression {
  int line;
  std::variant<Constant, Name, ListLiteral, DictLiteral, Attribute, Item, Slice, Call, Filter, Test, Chain, Unary,
               Conditional>
      node;
};

struct Statement;
using Body = std::vector<Statement>;

/// Variables to assign to: names, or attributes of namespaces.
struct Target {
  struct Variable {
    std::string name;
    std::string attribute;  // empty: the variable itself
  };
  std::vector<Variable> variables;
  bool unpacks = false;  // the value's items go to the variables
};

struct Text {
  std::string text;
};
struct Print {
  ExpressionPtr value;
};
struct If {
  struct Branch {
    ExpressionPtr condition;  // null: else
    Body body;
  };
  std::vector<Branch> branches;
};
struct For {
  Target target;
  ExpressionPtr items;
  ExpressionPtr condition;  // may be null
  Body body;
  Body otherwise;
};
struct Set {
  Target target;
  ExpressionPtr value;  // null: what the body prints, through the filters
  Body body;
  std::vector<Filter> filters;
};
struct MacroStatement {
  struct Parameter {
    std::string name;
    ExpressionPtr otherwise;  // may be null
  };
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
};
struct FilterBlock {
  std::vector<Filter> filters;
  Body body;
};
/// {% generation %}: marks what a model wrote; prints its body.
struct Generation {
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  int line;
  std::variant<Text, Print, If, For, Set, MacroStatement, FilterBlock, Generation, Break, Continue> node;
};

}  // namespace hxq::jinja
