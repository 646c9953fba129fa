#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "io/utf8.h"
#include "jinja/builtins.h"

namespace hxq::jinja {
namespace {

[[noreturn]] void fail_operands(std::string_view sign, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    if (value->is_undefined()) throw Fault(fmt::format("'{}' is undefined", value->undefined_name()));
  }
  throw Fault(fmt::format("a {} {} a {} is not defined", left.type_name(), sign, right.type_name()));
}

/// `value`, which is written before `overflow` is known.
int64_t checked(bool overflow, const int64_t& value) {
  if (overflow) throw Fault("a number does not fit 64 bits");
  return value;
}

bool integers(const Value& left, const Value& right) {
  return left.is_number() && right.is_number() && !left.is_float() && !right.is_float();
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == -1) {
    int64_t negated = 0;
    return checked(__builtin_sub_overflow(int64_t{0}, a, &negated), negated);
  }
  return a / b - ((a % b != 0) && ((a < 0) != (b < 0)));
}

Value add(const Value& left, const Value& right) {
  if (integers(left, right)) {
    int64_t sum = 0;
    return checked(__builtin_add_overflow(left.integer(""), right.integer(""), &sum), sum);
  }
  if (left.is_number() && right.is_number()) return left.number() + right.number();
  if (left.text() && right.text()) return *left.text() + *right.text();
  if (!left.list() || !right.list() || left.list()->tuple != right.list()->tuple) fail_operands("+", left, right);
  std::vector<Value> items = left.list()->items;
  items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
  return Value::list(std::move(items), left.list()->tuple);
}

Value subtract(const Value& left, const Value& right) {
  if (integers(left, right)) {
    int64_t difference = 0;
    return checked(__builtin_sub_overflow(left.integer(""), right.integer(""), &difference), difference);
  }
  if (left.is_number() && right.is_number()) return left.number() - right.number();
  fail_operands("-", left, right);
}

Value repeat(const Value& value, int64_t times) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  if (value.text()) {
    const std::string& text = *value.text();
    if (!text.empty() && count > kMaxTextBytes / text.size()) throw Fault("a repeated text is too long");
    std::string out;
    for (size_t i = 0; !text.empty() && i < count; ++i) out += text;
    return out;
  }
  const std::vector<Value>& items = value.list()->items;
  if (!items.empty() && count > kMaxItems / items.size()) throw Fault("a repeated list is too long");
  std::vector<Value> out;
  for (size_t i = 0; !items.empty() && i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  return Value::list(std::move(out), value.list()->tuple);
}

Value multiply(const Value& left, const Value& right) {
  if (integers(left, right)) {
    int64_t product = 0;
    return checked(__builtin_mul_overflow(left.integer(""), right.integer(""), &product), product);
  }
  if (left.is_number() && right.is_number()) return left.number() * right.number();
  if ((left.text() || left.list()) && right.is_integer()) return repeat(left, right.integer(""));
  if ((right.text() || right.list()) && left.is_integer()) return repeat(right, left.integer(""));
  fail_operands("*", left, right);
}

Value power(const Value& left, const Value& right) {
  if (!left.is_number() || !right.is_number()) fail_operands("**", left, right);
  if (!integers(left, right) || right.integer("") < 0) return std::pow(left.number(), right.number());
  const int64_t base = left.integer("");
  int64_t exponent = right.integer("");
  if (exponent > 64 && (base < -1 || base > 1)) throw Fault("a number does not fit 64 bits");
  if (exponent > 64) exponent = exponent % 2 + 2;
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) checked(__builtin_mul_overflow(result, base, &result), result);
  return result;
}

Value divide(Operator op, std::string_view sign, const Value& left, const Value& right) {
  if (!left.is_number() || !right.is_number()) fail_operands(sign, left, right);
  if (right.number() == 0) throw Fault("division by zero");
  if (op == Operator::divide) return left.number() / right.number();
  const bool exact = integers(left, right);
  if (op == Operator::floor_divide) {
    if (exact) return floor_divide(left.integer(""), right.integer(""));
    return std::floor(left.number() / right.number());
  }
  if (exact) {
    const int64_t a = left.integer(""), b = right.integer("");
    if (b == -1) return int64_t{0};
    return a - floor_divide(a, b) * b;
  }
  const double rest = std::fmod(left.number(), right.number());
  return rest != 0 && (rest < 0) != (right.number() < 0) ? rest + right.number() : rest;
}

bool contains(const Value& container, const Value& item) {
  if (container.text())
    return find_text(*container.text(), item.text("what is looked for in a text")) != std::string::npos;
  if (container.dict()) return item.text() && container.dict()->find(*item.text());
  if (container.list()) {
    return std::ranges::any_of(container.list()->items, [&](const Value& other) { return equal(item, other); });
  }
  if (container.is_undefined()) return false;
  throw Fault(fmt::format("a {} cannot contain anything", container.type_name()));
}

Value loop_attribute(const Loop& loop, const std::string& name) {
  const std::vector<Value>& items = loop.items.list()->items;
  const auto index = static_cast<int64_t>(loop.index), length = static_cast<int64_t>(items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return length - index;
  if (name == "revindex0") return length - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index == length - 1;
  if (name == "length") return length;
  if (name == "depth") return loop.depth;
  if (name == "depth0") return loop.depth - 1;
  if (name == "previtem" && index > 0) return items[loop.index - 1];
  if (name == "nextitem" && index + 1 < length) return items[loop.index + 1];
  return Undefined{"loop." + name};
}

}  // namespace

Value operate(Operator op, const Value& left, const Value& right) {
  switch (op) {
    case Operator::add:
      return add(left, right);
    case Operator::subtract:
      return subtract(left, right);
    case Operator::multiply:
      return multiply(left, right);
    case Operator::divide:
      return divide(op, "/", left, right);
    case Operator::floor_divide:
      return divide(op, "//", left, right);
    case Operator::modulo:
      return divide(op, "%", left, right);
    case Operator::power:
      return power(left, right);
    default:
      return to_text(left) + to_text(right);
  }
}

bool relates(Operator op, const Value& left, const Value& right) {
  switch (op) {
    case Operator::equal:
      return equal(left, right);
    case Operator::unequal:
      return !equal(left, right);
    case Operator::in:
      return contains(right, left);
    case Operator::not_in:
      return !contains(right, left);
    case Operator::less:
      return compare(left, right) < 0;
    case Operator::less_equal:
      return compare(left, right) <= 0;
    case Operator::greater:
      return compare(left, right) > 0;
    default:
      return compare(left, right) >= 0;
  }
}

Value negative(const Value& value) {
  if (value.is_float()) return -value.number();
  return subtract(int64_t{0}, value);
}

Value get_attribute(const Value& object, const std::string& name) {
  charge_text(name.size());
  if (object.is_undefined()) throw Fault(fmt::format("'{}' is undefined", object.undefined_name()));
  if (object.dict()) {
    if (is_dict_method(name)) return Function{name};
    const Value* found = object.dict()->find(name);
    return found ? *found : Undefined{name};
  }
  if (object.space()) {
    const auto found = object.space()->attributes.find(name);
    return found == object.space()->attributes.end() ? Undefined{name} : found->second;
  }
  if (object.loop()) return loop_attribute(*object.loop(), name);
  return Undefined{name};
}

Value get_item(const Value& object, const Value& index) {
  if (index.text()) charge_text(index.text()->size());
  if (object.is_undefined()) throw Fault(fmt::format("'{}' is undefined", object.undefined_name()));
  if (object.dict() && index.text()) {
    const Value* found = object.dict()->find(*index.text());
    return found ? *found : Undefined{*index.text()};
  }
  if (index.text()) return get_attribute(object, *index.text());
  if (!index.is_number() || index.is_float() || (!object.list() && !object.text())) return Undefined{"item"};
  int64_t at = index.integer("");
  if (at < 0) at += length_of(object);
  if (object.text() && at >= 0) {
    std::string_view rest = *object.text();
    charge(std::min(at, static_cast<int64_t>(rest.size())) / 16);
    for (; !rest.empty(); --at) {
      const size_t size = first_code_point(rest).size;
      if (at == 0) return std::string(rest.substr(0, size));
      rest.remove_prefix(size);
    }
  } else if (at >= 0 && at < length_of(object)) {
    return object.list()->items[static_cast<size_t>(at)];
  }
  return Undefined{fmt::format("item {}", index.integer(""))};
}

Value get_slice(const Value& object, const Value& begin, const Value& end, const Value& step_value) {
  if (!object.text() && !object.list()) {
    if (object.is_undefined()) throw Fault(fmt::format("'{}' is undefined", object.undefined_name()));
    throw Fault(fmt::format("a {} cannot be sliced", object.type_name()));
  }
  const auto absent = [](const Value& value) { return value.is_undefined() || value.is_none(); };
  const int64_t step = absent(step_value) ? 1 : step_value.integer("a slice's step");
  if (step == 0) throw Fault("a slice's step is 0");
  const int64_t length = length_of(object);
  charge(1);
  const int64_t lowest = step > 0 ? 0 : -1, highest = step > 0 ? length : length - 1;
  const auto bound = [&](const Value& value, int64_t otherwise) {
    if (absent(value)) return otherwise;
    int64_t at = value.integer("a slice's bound");
    if (at < 0) at += length;
    return std::clamp(at, lowest, highest);
  };
  const int64_t first = bound(begin, step > 0 ? lowest : highest), last = bound(end, step > 0 ? highest : lowest);
  std::vector<size_t> indices;
  // The step is clamped so that the index cannot overflow.
  const int64_t stride = std::clamp(step, -length - 1, length + 1);
  for (int64_t at = first; stride > 0 ? at < last : at > last; at += stride) indices.push_back(static_cast<size_t>(at));
  charge(static_cast<int64_t>(indices.size() / 8));
  if (object.list()) {
    std::vector<Value> items;
    for (const size_t i : indices) items.push_back(object.list()->items[i]);
    return Value::list(std::move(items), object.list()->tuple);
  }
  const auto characters = characters_of(*object.text());
  std::string out;
  for (const size_t i : indices) out += characters[i];
  return out;
}

}  // namespace hxq::jinja
