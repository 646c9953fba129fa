#pragma once

#include <concepts>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace hxq::jinja {

/// What is wrong with a template or its use, without the place: `Template` adds file and line.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What a template may make, so that none can take memory or stack out of proportion.
inline constexpr size_t kMaxTextBytes = size_t{4} << 20;
inline constexpr size_t kMaxItems = 100'000;  // of a list or a range, as in Jinja's sandbox
inline constexpr int kMaxValueDepth = 150;    // lists within lists

/// What a rendering may still do and make. While one is alive, whatever reads or makes values on its thread pays to it.
class Budget {
 public:
  explicit Budget(int64_t work);
  ~Budget();
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

 private:
  friend void charge(int64_t work);
  int64_t work_;
  Budget* outer_;
};

/// Pays for work: 1 is about a step of a template, or an item read or made. Throws `Fault` when none is left.
void charge(int64_t work);
/// Pays for a text of so many bytes that is read or made.
inline void charge_text(size_t bytes) { charge(static_cast<int64_t>(bytes / 64)); }

class Value;
struct List;
struct Dict;
struct Namespace;
struct Loop;
struct MacroStatement;

struct Undefined {
  std::string name;  // what was looked for
};
struct None {};
/// A macro, or something built in.
struct Function {
  std::string name;
  const MacroStatement* macro = nullptr;
};

/// A value of the template language. Texts, lists and dicts are shared and never change.
class Value {
 public:
  using Data = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                            std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                            std::shared_ptr<const Loop>, Function>;

  Value() = default;
  Value(Undefined undefined);  ///< Keeps the beginning of a long name
  Value(None none) : data_(none) {}
  Value(std::same_as<bool> auto flag) : data_(flag) {}
  Value(int64_t number) : data_(number) {}
  Value(double number) : data_(number) {}
  Value(std::string text);  ///< Throws `Fault` if it is too long
  Value(Function function) : data_(std::move(function)) {}
  Value(std::shared_ptr<Namespace> space) : data_(std::move(space)) {}
  Value(std::shared_ptr<const Loop> loop) : data_(std::move(loop)) {}

  /// Throw `Fault` if they are too large, nest too deep, or would hold what may change.
  static Value list(std::vector<Value> items, bool tuple = false);
  static Value dict(std::vector<std::pair<std::string, Value>> entries);  // of equal keys the last value counts
  static Value from_json(const nlohmann::ordered_json& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }
  const std::string* text() const { return shared<const std::string>(); }
  const List* list() const { return shared<const List>(); }
  const Dict* dict() const { return shared<const Dict>(); }
  Namespace* space() const { return shared<Namespace>(); }
  const Loop* loop() const { return shared<const Loop>(); }
  const Function* function() const { return std::get_if<Function>(&data_); }
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

  double number() const;                          ///< of is_number()
  int64_t integer(const char* of) const;          ///< Throws `Fault` naming `of` unless it is an integer
  const std::string& text(const char* of) const;  ///< Throws `Fault` naming `of` unless it is a text

  /// Python's name for the type, for messages.
  std::string_view type_name() const;
  /// Python's truth.
  bool truth() const;
  /// How many lists and dicts contain each other here.
  int depth() const;

 private:
  template <class T>
  T* shared() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&data_);
    return pointer ? pointer->get() : nullptr;
  }

  Data data_;
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};

struct Dict {
  std::vector<std::pair<std::string, Value>> entries;  // in order of insertion
  int depth = 1;

  const Value* find(std::string_view key) const;
};

/// The one thing that a template can change after making it.
struct Namespace {
  std::map<std::string, Value, std::less<>> attributes;
};

/// What `loop` is in the body of a for.
struct Loop {
  Value items;
  size_t index = 0;
  int64_t depth = 1;  // of nested loops
};

/// Python's ==.
bool equal(const Value& left, const Value& right);
/// Python's order: negative, zero or positive. Throws `Fault` for values that have none.
int compare(const Value& left, const Value& right);

/// str(): as a value is printed.
std::string to_text(const Value& value);
/// json.dumps(ensure_ascii=False); indent < 0: on one line.
std::string to_json(const Value& value, int indent);

/// The items that a for goes through: of a list, the characters of a text, the keys of a dict, nothing of undefined.
std::vector<Value> items_of(const Value& value);
/// len().
int64_t length_of(const Value& value);

/// Where `text` has `wanted` at or after `from`, or npos, in linear time.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);
/// The last such place in all of `text`.
size_t find_last_text(std::string_view text, std::string_view wanted);

/// The characters of valid UTF-8.
std::vector<std::string_view> characters_of(std::string_view text);
/// Whether Python's str.isspace() holds.
bool is_space(char32_t c);
enum class Side : uint8_t { left, right, both };
/// `text` without the characters at its ends that are in `characters`; empty: without white space.
std::string_view strip(std::string_view text, Side side = Side::both, std::string_view characters = {});

}  // namespace hxq::jinja
