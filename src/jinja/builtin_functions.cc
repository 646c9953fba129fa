#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "jinja/builtins.h"

namespace hxq::jinja {
namespace {

constexpr std::array<std::string_view, 5> kFunctions = {"dict", "namespace", "raise_exception", "range",
                                                        "strftime_now"};

Value range(const Given& given) {
  if (given.values.empty() || given.values.size() > 3 || !given.named.empty())
    throw Fault("range needs one to three integers");
  std::vector<int64_t> numbers;
  for (const Value& value : given.values) numbers.push_back(value.integer("an argument of range"));
  int64_t begin = numbers.size() > 1 ? numbers[0] : 0;
  const int64_t end = numbers.size() > 1 ? numbers[1] : numbers[0];
  const int64_t step = numbers.size() > 2 ? numbers[2] : 1;
  if (step == 0) throw Fault("the step of a range is 0");
  std::vector<Value> items;
  while (step > 0 ? begin < end : begin > end) {
    if (items.size() == kMaxItems) throw Fault(fmt::format("a range of more than {} numbers", kMaxItems));
    items.emplace_back(begin);
    if (__builtin_add_overflow(begin, step, &begin)) break;
  }
  return Value::list(std::move(items));
}

/// The local time, as C's strftime.
std::string formatted_time(const std::string& format) {
  constexpr size_t kMost = 4096;
  if (format.empty()) return {};
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::string out(kMost, '\0');
  out.resize(format.size() < kMost / 16 ? std::strftime(out.data(), out.size(), format.c_str(), &local) : 0);
  if (out.empty()) throw Fault("the format of a time is too long");
  return out;
}

}  // namespace

Bound::Bound(const Given& given, std::string_view called, std::initializer_list<std::string_view> parameters)
    : called_(called), values_(parameters.size(), nullptr) {
  charge(static_cast<int64_t>(given.values.size() + given.named.size()));
  if (given.values.size() > values_.size()) {
    throw Fault(fmt::format("'{}' has {} arguments, expected at most {}", called, given.values.size(), values_.size()));
  }
  for (size_t i = 0; i < given.values.size(); ++i) values_[i] = &given.values[i];
  for (const auto& [name, value] : given.named) {
    const auto parameter = std::ranges::find(parameters, std::string_view(name));
    if (parameter == parameters.end()) throw Fault(fmt::format("'{}' has no argument '{}'", called, name));
    values_[static_cast<size_t>(parameter - parameters.begin())] = &value;
  }
}

const Value& Bound::need(size_t parameter) const {
  if (!values_[parameter]) throw Fault(fmt::format("'{}' needs {} or more arguments", called_, parameter + 1));
  return *values_[parameter];
}

bool Bound::flag(size_t parameter, bool otherwise) const {
  return values_[parameter] ? values_[parameter]->truth() : otherwise;
}

int64_t Bound::integer(size_t parameter, int64_t otherwise) const {
  return values_[parameter] ? values_[parameter]->integer(called_.c_str()) : otherwise;
}

std::string Bound::text(size_t parameter, std::string_view otherwise) const {
  if (!values_[parameter]) return std::string(otherwise);
  const std::string& text = values_[parameter]->text(called_.c_str());
  charge_text(text.size());
  return text;
}

bool is_function(std::string_view name) { return std::ranges::find(kFunctions, name) != kFunctions.end(); }

Value call_function(const std::string& name, const Given& given) {
  if (name == "range") return range(given);
  if (name == "raise_exception") {
    throw Fault("the template refuses this: " + to_text(Bound(given, name, {"message"}).need(0)));
  }
  if (name == "strftime_now")
    return formatted_time(Bound(given, name, {"format"}).need(0).text("the format of a time"));
  if (!given.values.empty()) throw Fault(fmt::format("'{}' takes arguments with names alone", name));
  if (name == "dict") return Value::dict(given.named);
  auto space = std::make_shared<Namespace>();
  for (const auto& [key, value] : given.named) space->attributes.insert_or_assign(key, value);
  return space;
}

}  // namespace hxq::jinja
