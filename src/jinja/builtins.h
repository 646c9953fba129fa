#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja/syntax.h"
#include "jinja/value.h"

// What the language has without a template's doing. All throw `Fault` for names and arguments they do not know.
namespace hxq::jinja {

/// Evaluated arguments.
struct Given {
  std::vector<Value> values;
  std::vector<std::pair<std::string, Value>> named;
};

/// Arguments by the parameters of what is called. `given` must outlive it.
class Bound {
 public:
  Bound(const Given& given, std::string_view called, std::initializer_list<std::string_view> parameters);

  /// Null when the argument is absent.
  const Value* operator[](size_t parameter) const { return values_[parameter]; }
  /// Throws `Fault` when it is absent.
  const Value& need(size_t parameter) const;
  bool flag(size_t parameter, bool otherwise) const;
  int64_t integer(size_t parameter, int64_t otherwise) const;
  std::string text(size_t parameter, std::string_view otherwise) const;

 private:
  std::string called_;
  std::vector<const Value*> values_;
};

Value apply_filter(const std::string& name, const Value& value, const Given& given);
bool apply_test(const std::string& name, const Value& value, const Given& given);
Value call_method(const Value& object, const std::string& name, const Given& given);

/// A function that every template finds under this name.
bool is_function(std::string_view name);
Value call_function(const std::string& name, const Given& given);

/// Names that mean a method of a dict, not one of its keys.
bool is_dict_method(std::string_view name);

Value operate(Operator op, const Value& left, const Value& right);
/// Whether left op right, for comparisons and `in`.
bool relates(Operator op, const Value& left, const Value& right);
Value negative(const Value& value);
Value get_attribute(const Value& object, const std::string& name);
Value get_item(const Value& object, const Value& index);
/// object[begin:end:step]; undefined or none: left out.
Value get_slice(const Value& object, const Value& begin, const Value& end, const Value& step);

}  // namespace hxq::jinja
