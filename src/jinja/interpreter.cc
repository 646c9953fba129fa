#include "jinja/interpreter.h"

#include <fmt/format.h>

#include <utility>

namespace hxq::jinja {

class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& interpreter) : depth_(interpreter.depth_) {
    if (depth_ >= kMaxDepth)
      throw Fault(fmt::format("statements, expressions and macros nest deeper than {}", kMaxDepth));
    ++depth_;
  }
  ~Deeper() { --depth_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  int& depth_;
};

Interpreter::Interpreter(const Value& context) : scopes_(1) {
  for (const auto& [name, value] : context.dict()->entries) scopes_[0].insert_or_assign(name, value);
}

std::string Interpreter::run(const Body& body) {
  const Budget budget(kBudget);
  execute(body);
  return std::move(out_);
}

void Interpreter::print(std::string_view text) {
  charge_text(text.size());
  out_ += text;
  if (out_.size() > kMaxTextBytes) throw Fault(fmt::format("it prints more than {} MiB", kMaxTextBytes >> 20));
}

/// What `run` prints.
template <class Run>
std::string Interpreter::captured(Run&& run) {
  std::string outer = std::exchange(out_, {});
  run();
  return std::exchange(out_, std::move(outer));
}

Value Interpreter::variable(const std::string& name) const {
  charge_text(name.size());
  for (size_t i = scopes_.size(); i > 0; --i) {
    if (i - 1 < visible_from_ && i > 1) continue;
    const auto found = scopes_[i - 1].find(name);
    if (found != scopes_[i - 1].end()) return found->second;
  }
  if (is_function(name)) return Function{name};
  return Undefined{name};
}

// --- statements ---

Interpreter::Flow Interpreter::execute(const Body& body) {
  const Deeper deeper(*this);
  for (const Statement& statement : body) {
    line_ = statement.line;
    charge(1);
    const Flow flow = std::visit([this](const auto& node) { return execute(node); }, statement.node);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const Text& node) {
  print(node.text);
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const Print& node) {
  print(to_text(evaluate(node.value)));
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const If& node) {
  for (const If::Branch& branch : node.branches) {
    if (!branch.condition || evaluate(branch.condition).truth()) return execute(branch.body);
  }
  return Flow::normal;
}

std::vector<Value> Interpreter::filtered_items(const For& node) {
  std::vector<Value> items = items_of(evaluate(node.items));
  if (!node.condition) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    scopes_.emplace_back();
    assign(node.target, item);
    if (evaluate(node.condition).truth()) kept.push_back(std::move(item));
    scopes_.pop_back();
  }
  return kept;
}

Interpreter::Flow Interpreter::execute(const For& node) {
  const Value items = Value::list(filtered_items(node));
  const size_t count = items.list()->items.size();
  ++loops_;
  for (size_t i = 0; i < count; ++i) {
    scopes_.emplace_back();
    scopes_.back().insert_or_assign("loop", std::make_shared<const Loop>(Loop{items, i, loops_}));
    assign(node.target, items.list()->items[i]);
    const Flow flow = execute(node.body);
    scopes_.pop_back();
    if (flow == Flow::broken) break;
  }
  --loops_;
  return count == 0 ? execute(node.otherwise) : Flow::normal;
}

void Interpreter::assign(const Target& target, const Value& value) {
  const auto set = [this](const Target::Variable& variable_named, const Value& item) {
    const auto& [name, attribute] = variable_named;
    charge_text(name.size() + attribute.size());
    if (attribute.empty()) {
      scopes_.back().insert_or_assign(name, item);
      return;
    }
    const Value holder = variable(name);
    if (!holder.space())
      throw Fault(fmt::format("'{}' is a {}; only attributes of a namespace can be set", name, holder.type_name()));
    if (item.space() || item.loop()) throw Fault(fmt::format("a namespace cannot hold a {}", item.type_name()));
    holder.space()->attributes.insert_or_assign(attribute, item);
  };
  if (!target.unpacks) return set(target.variables[0], value);
  const std::vector<Value> items = items_of(value);
  if (items.size() != target.variables.size()) {
    throw Fault(fmt::format("{} values for {} variables", items.size(), target.variables.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) set(target.variables[i], items[i]);
}

std::string Interpreter::filtered(const std::vector<Filter>& filters, std::string text) {
  Value value = std::move(text);
  for (const Filter& filter : filters) value = apply_filter(filter.name, value, evaluate(filter.arguments));
  return to_text(value);
}

Interpreter::Flow Interpreter::execute(const Set& node) {
  if (node.value) {
    assign(node.target, evaluate(node.value));
  } else {
    // The body has a scope of its own.
    scopes_.emplace_back();
    Flow flow = Flow::normal;
    std::string text = captured([&] { flow = execute(node.body); });
    scopes_.pop_back();
    if (flow != Flow::normal) return flow;
    assign(node.target, filtered(node.filters, std::move(text)));
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const MacroStatement& node) {
  charge_text(node.name.size());
  scopes_.back().insert_or_assign(node.name, Function{node.name, &node});
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const FilterBlock& node) {
  scopes_.emplace_back();
  Flow flow = Flow::normal;
  std::string text = captured([&] { flow = execute(node.body); });
  scopes_.pop_back();
  if (flow != Flow::normal) return flow;
  print(filtered(node.filters, std::move(text)));
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const Generation& node) {
  scopes_.emplace_back();
  const Flow flow = execute(node.body);
  scopes_.pop_back();
  return flow;
}

// --- expressions ---

Value Interpreter::evaluate(const Expression& expression) {
  const Deeper deeper(*this);
  line_ = expression.line;
  charge(1);
  return std::visit([this](const auto& node) { return evaluate(node); }, expression.node);
}

Value Interpreter::evaluate(const ListLiteral& node) {
  std::vector<Value> items;
  for (const ExpressionPtr& item : node.items) items.push_back(evaluate(item));
  return Value::list(std::move(items), node.tuple);
}

Value Interpreter::evaluate(const DictLiteral& node) {
  std::vector<std::pair<std::string, Value>> entries;
  for (const auto& [key_node, item_node] : node.entries) {
    const Value key = evaluate(key_node);
    const std::string& name = key.text("the key of a dict");
    charge_text(name.size());
    entries.emplace_back(name, evaluate(item_node));
  }
  return Value::dict(std::move(entries));
}

Value Interpreter::evaluate(const Item& node) {
  const Value object = evaluate(node.object);
  return get_item(object, evaluate(node.index));
}

Value Interpreter::evaluate(const Slice& node) {
  const Value object = evaluate(node.object), begin = evaluate(node.begin), end = evaluate(node.end);
  return get_slice(object, begin, end, evaluate(node.step));
}

Value Interpreter::evaluate(const Call& node) {
  Value result;
  if (const auto* method = std::get_if<Attribute>(&node.callee->node)) {
    const Value object = evaluate(method->object);
    // A namespace can hold a macro.
    const Value held = object.space() ? get_attribute(object, method->name) : Value();
    const Given given = evaluate(node.arguments);
    result = held.function() && held.function()->macro ? call_macro(*held.function()->macro, given)
                                                       : call_method(object, method->name, given);
  } else {
    const Value callee = evaluate(node.callee);
    const Given given = evaluate(node.arguments);
    if (callee.is_undefined()) throw Fault(fmt::format("'{}' is undefined", callee.undefined_name()));
    const Function* function = callee.function();
    if (!function) throw Fault(fmt::format("a {} cannot be called", callee.type_name()));
    if (!function->macro && !is_function(function->name))
      throw Fault(fmt::format("'{}' cannot be called like this", function->name));
    result = function->macro ? call_macro(*function->macro, given) : call_function(function->name, given);
  }
  return result;
}

Value Interpreter::call_macro(const MacroStatement& macro, const Given& given) {
  const Deeper deeper(*this);
  if (given.values.size() > macro.parameters.size()) {
    throw Fault(fmt::format("the macro '{}' has {} arguments, expected at most {}", macro.name, given.values.size(),
                            macro.parameters.size()));
  }
  charge(static_cast<int64_t>(macro.parameters.size() * (1 + given.named.size() / 8)));
  const size_t outer_visible = std::exchange(visible_from_, scopes_.size());
  scopes_.emplace_back();
  std::vector<bool> used(given.named.size());
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const auto& [name, otherwise] = macro.parameters[i];
    charge_text(name.size());
    Value value = i < given.values.size() ? given.values[i] : Value(Undefined{name});
    bool found = i < given.values.size();
    for (size_t n = 0; n < given.named.size(); ++n) {
      if (given.named[n].first != name) continue;
      value = given.named[n].second;
      found = used[n] = true;
    }
    if (!found && otherwise) value = evaluate(otherwise);
    scopes_.back().insert_or_assign(name, std::move(value));
  }
  for (size_t n = 0; n < used.size(); ++n) {
    if (!used[n]) throw Fault(fmt::format("the macro '{}' has no argument '{}'", macro.name, given.named[n].first));
  }
  std::string text = captured([&] { execute(macro.body); });
  scopes_.pop_back();
  visible_from_ = outer_visible;
  return text;
}

Value Interpreter::evaluate(const Filter& node) {
  const Value value = evaluate(node.value);
  return apply_filter(node.name, value, evaluate(node.arguments));
}

Value Interpreter::evaluate(const Test& node) {
  const Value value = evaluate(node.value);
  return apply_test(node.name, value, evaluate(node.arguments)) != node.negated;
}

Value Interpreter::evaluate(const Chain& node) {
  Value value = evaluate(node.first);
  for (const auto& [op, operand] : node.rest) {
    if (node.kind == Chain::Kind::logic) {
      if (value.truth() == (op == Operator::either)) return value;
      value = evaluate(operand);
    } else if (node.kind == Chain::Kind::arithmetic) {
      value = operate(op, value, evaluate(operand));
    } else {
      Value right = evaluate(operand);
      if (!relates(op, value, right)) return false;
      value = std::move(right);
    }
  }
  return node.kind == Chain::Kind::comparison ? Value(true) : value;
}

Value Interpreter::evaluate(const Unary& node) {
  const Value value = evaluate(node.operand);
  if (node.sign == Sign::negation) return !value.truth();
  if (node.sign == Sign::minus) return negative(value);
  return operate(Operator::add, int64_t{0}, value);
}

Value Interpreter::evaluate(const Conditional& node) {
  return evaluate(evaluate(node.condition).truth() ? node.then : node.otherwise);
}

Given Interpreter::evaluate(const Arguments& arguments) {
  Given given;
  for (const ExpressionPtr& value : arguments.values) given.values.push_back(evaluate(value));
  for (const auto& [name, value] : arguments.named) {
    charge_text(name.size());
    given.named.emplace_back(name, evaluate(value));
  }
  return given;
}

}  // namespace hxq::jinja
