#include <fmt/format.h>

#include <charconv>

#include "jinja/parser.h"

namespace hxq::jinja {
namespace {

using Kind = Token::Kind;

/// Attributes, calls and filters in a row: each is one level of nesting to whoever evaluates them.
constexpr int kMaxPostfixes = 64;

}  // namespace

ExpressionPtr ExpressionParser::make(decltype(Expression::node) node) const {
  return std::make_unique<Expression>(Expression{tokens_.peek().line, std::move(node)});
}

ExpressionPtr ExpressionParser::expression(bool tuples) {
  ExpressionPtr value = conditional();
  return tuples ? tuple(std::move(value), true) : std::move(value);
}

ExpressionPtr ExpressionParser::iterated() { return tuple(either(), false); }

ExpressionPtr ExpressionParser::tuple(ExpressionPtr first, bool with_conditions) {
  if (!tokens_.is_sign(",")) return first;
  ListLiteral items{.items = {}, .tuple = true};
  items.items.push_back(std::move(first));
  while (tokens_.skip_sign(",")) {
    const bool ends = tokens_.is(Kind::block_end) || tokens_.is(Kind::print_end) || tokens_.is_sign(")");
    if (ends) break;
    items.items.push_back(with_conditions ? conditional() : either());
  }
  return make(std::move(items));
}

ExpressionPtr ExpressionParser::conditional() {
  const TokenStream::Nesting nesting(tokens_);
  ExpressionPtr value = either();
  for (int count = 0; tokens_.skip_name("if"); ++count) {
    if (count == kMaxPostfixes) tokens_.fail("too many conditions in a row");
    Conditional node{.condition = either(), .then = std::move(value), .otherwise = nullptr};
    if (tokens_.skip_name("else")) node.otherwise = conditional();
    value = make(std::move(node));
  }
  return value;
}

template <class Operand>
ExpressionPtr ExpressionParser::chain(Chain::Kind kind, Operand operand,
                                      std::initializer_list<std::pair<std::string_view, Operator>> signs) {
  ExpressionPtr first = operand();
  Chain node{.kind = kind, .first = std::move(first), .rest = {}};
  const auto next_operator = [&]() -> std::optional<Operator> {
    for (const auto& [sign, op] : signs) {
      if (tokens_.skip(kind == Chain::Kind::logic ? Kind::name : Kind::sign, sign)) return op;
    }
    if (kind != Chain::Kind::comparison) return std::nullopt;
    if (tokens_.skip_name("in")) return Operator::in;
    if (!tokens_.is_name("not") || tokens_.peek(1).kind != Kind::name || tokens_.peek(1).text != "in")
      return std::nullopt;
    tokens_.next();
    tokens_.next();
    return Operator::not_in;
  };
  while (const auto op = next_operator()) node.rest.emplace_back(*op, operand());
  return node.rest.empty() ? std::move(node.first) : make(std::move(node));
}

ExpressionPtr ExpressionParser::either() {
  return chain(Chain::Kind::logic, [this] { return both(); }, {{"or", Operator::either}});
}

ExpressionPtr ExpressionParser::both() {
  return chain(Chain::Kind::logic, [this] { return negation(); }, {{"and", Operator::both}});
}

ExpressionPtr ExpressionParser::negation() {
  if (!tokens_.skip_name("not")) return comparison();
  const TokenStream::Nesting nesting(tokens_);
  return make(Unary{Sign::negation, negation()});
}

ExpressionPtr ExpressionParser::comparison() {
  return chain(Chain::Kind::comparison, [this] { return sum(); },
               {{"==", Operator::equal},
                {"!=", Operator::unequal},
                {"<=", Operator::less_equal},
                {"<", Operator::less},
                {">=", Operator::greater_equal},
                {">", Operator::greater}});
}

ExpressionPtr ExpressionParser::sum() {
  return chain(Chain::Kind::arithmetic, [this] { return joined(); }, {{"+", Operator::add}, {"-", Operator::subtract}});
}

ExpressionPtr ExpressionParser::joined() {
  return chain(Chain::Kind::arithmetic, [this] { return product(); }, {{"~", Operator::join}});
}

ExpressionPtr ExpressionParser::product() {
  return chain(
      Chain::Kind::arithmetic, [this] { return power(); },
      {{"*", Operator::multiply}, {"/", Operator::divide}, {"//", Operator::floor_divide}, {"%", Operator::modulo}});
}

ExpressionPtr ExpressionParser::power() {
  return chain(Chain::Kind::arithmetic, [this] { return unary(true); }, {{"**", Operator::power}});
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const TokenStream::Nesting nesting(tokens_);
  ExpressionPtr value;
  if (tokens_.skip_sign("-")) {
    value = make(Unary{Sign::minus, unary(false)});
  } else if (tokens_.skip_sign("+")) {
    value = make(Unary{Sign::plus, unary(false)});
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filters ? with_filters_and_tests(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::primary() {
  if (tokens_.is(Kind::text)) {
    std::string text;
    while (tokens_.is(Kind::text)) text += tokens_.next().text;
    return make(Constant{std::move(text)});
  }
  if (tokens_.is(Kind::integer) || tokens_.is(Kind::real)) return number();
  if (tokens_.is(Kind::sign)) return bracketed();
  if (!tokens_.is(Kind::name)) tokens_.fail_expected("an expression");
  const std::string name = tokens_.next().text;
  if (name == "true" || name == "True") return make(Constant{true});
  if (name == "false" || name == "False") return make(Constant{false});
  if (name == "none" || name == "None") return make(Constant{None{}});
  return make(Name{name});
}

ExpressionPtr ExpressionParser::number() {
  const bool real = tokens_.is(Kind::real);
  const std::string text = tokens_.next().text;
  const auto parsed = [&](auto value) {
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (fault != std::errc() || end != text.data() + text.size()) {
      tokens_.fail(fmt::format("'{}' is not a number that fits 64 bits", text));
    }
    return value;
  };
  return make(Constant{real ? Value(parsed(double{})) : Value(parsed(int64_t{}))});
}

ExpressionPtr ExpressionParser::bracketed() {
  if (tokens_.skip_sign("[")) return list();
  if (tokens_.skip_sign("{")) return dict();
  if (!tokens_.skip_sign("(")) tokens_.fail_expected("an expression");
  if (tokens_.skip_sign(")")) return make(ListLiteral{.items = {}, .tuple = true});
  ExpressionPtr value = expression(true);
  tokens_.expect(Kind::sign, ")");
  return value;
}

ExpressionPtr ExpressionParser::list() {
  ListLiteral node{.items = {}, .tuple = false};
  while (!tokens_.skip_sign("]")) {
    if (!node.items.empty()) {
      tokens_.expect(Kind::sign, ",");
      if (tokens_.skip_sign("]")) break;
    }
    node.items.push_back(conditional());
  }
  return make(std::move(node));
}

ExpressionPtr ExpressionParser::dict() {
  DictLiteral node;
  while (!tokens_.skip_sign("}")) {
    if (!node.entries.empty()) {
      tokens_.expect(Kind::sign, ",");
      if (tokens_.skip_sign("}")) break;
    }
    ExpressionPtr key = conditional();
    tokens_.expect(Kind::sign, ":");
    node.entries.emplace_back(std::move(key), conditional());
  }
  return make(std::move(node));
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr value) {
  for (int count = 0;; ++count) {
    if (count == kMaxPostfixes) tokens_.fail("too many attributes and calls in a row");
    if (tokens_.skip_sign(".")) {
      if (tokens_.is(Kind::integer)) {
        ExpressionPtr index = number();
        value = make(Item{std::move(value), std::move(index)});
      } else {
        std::string name = tokens_.expect(Kind::name).text;
        value = make(Attribute{std::move(value), std::move(name)});
      }
    } else if (tokens_.skip_sign("[")) {
      value = subscript(std::move(value));
    } else if (tokens_.is_sign("(")) {
      Arguments given = arguments();
      value = make(Call{std::move(value), std::move(given)});
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::with_filters_and_tests(ExpressionPtr value) {
  for (int count = 0;; ++count) {
    if (count == kMaxPostfixes) tokens_.fail("too many filters and tests in a row");
    if (tokens_.skip_sign("|")) {
      value = make(filter(std::move(value)));
    } else if (tokens_.skip_name("is")) {
      value = test(std::move(value));
    } else if (tokens_.is_sign("(")) {
      Arguments given = arguments();
      value = make(Call{std::move(value), std::move(given)});
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr value) {
  const auto bound = [&]() -> ExpressionPtr {
    const bool absent = tokens_.is_sign(":") || tokens_.is_sign("]");
    return absent ? nullptr : conditional();
  };
  ExpressionPtr first = bound();
  if (!tokens_.is_sign(":")) {
    if (!first) tokens_.fail_expected("an index");
    tokens_.expect(Kind::sign, "]");
    return make(Item{std::move(value), std::move(first)});
  }
  tokens_.next();
  Slice node{.object = std::move(value), .begin = std::move(first), .end = bound(), .step = nullptr};
  if (tokens_.skip_sign(":")) node.step = bound();
  tokens_.expect(Kind::sign, "]");
  return make(std::move(node));
}

std::string ExpressionParser::dotted_name() {
  std::string name = tokens_.expect(Kind::name).text;
  while (tokens_.skip_sign(".")) name += "." + tokens_.expect(Kind::name).text;
  return name;
}

Filter ExpressionParser::filter(ExpressionPtr value) {
  Filter node{.value = std::move(value), .name = dotted_name(), .arguments = {}};
  if (tokens_.is_sign("(")) node.arguments = arguments();
  return node;
}

std::vector<Filter> ExpressionParser::filters() {
  std::vector<Filter> found;
  do {
    found.push_back(filter(nullptr));
  } while (tokens_.skip_sign("|"));
  return found;
}

/// A test can have one argument without brackets.
bool ExpressionParser::test_argument_follows() const {
  if (tokens_.is(Kind::name)) return !tokens_.is_name("else") && !tokens_.is_name("or") && !tokens_.is_name("and");
  return tokens_.is(Kind::text) || tokens_.is(Kind::integer) || tokens_.is(Kind::real) || tokens_.is_sign("[") ||
         tokens_.is_sign("{");
}

ExpressionPtr ExpressionParser::test(ExpressionPtr value) {
  Test node{.value = std::move(value), .name = {}, .arguments = {}, .negated = tokens_.skip_name("not")};
  node.name = dotted_name();
  if (tokens_.is_sign("(")) {
    node.arguments = arguments();
  } else if (test_argument_follows()) {
    if (tokens_.is_name("is")) tokens_.fail("a test of a test: brackets are needed");
    // Without the outer levels, an `if` or `and` that follows is not part of the argument.
    node.arguments.values.push_back(postfix(primary()));
  }
  return make(std::move(node));
}

Arguments ExpressionParser::arguments() {
  Arguments given;
  tokens_.expect(Kind::sign, "(");
  for (bool first = true; !tokens_.skip_sign(")"); first = false) {
    if (!first) {
      tokens_.expect(Kind::sign, ",");
      if (tokens_.skip_sign(")")) break;
    }
    if (tokens_.is_sign("*") || tokens_.is_sign("**")) tokens_.fail("arguments with * are not supported");
    const bool named = tokens_.is(Kind::name) && tokens_.peek(1).kind == Kind::sign && tokens_.peek(1).text == "=";
    if (named) {
      std::string name = tokens_.next().text;
      tokens_.next();
      given.named.emplace_back(std::move(name), conditional());
    } else {
      if (!given.named.empty()) tokens_.fail("an argument without a name after one with a name");
      given.values.push_back(conditional());
    }
  }
  return given;
}

}  // namespace hxq::jinja
