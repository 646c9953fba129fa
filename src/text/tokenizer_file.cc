#include "text/tokenizer_file.h"

#include <fmt/format.h>

#include "io/json.h"

namespace hxq::text {

namespace {

using nlohmann::json;
using Event = JsonEvent;

// Receives the parser's events and moves the elements of model.vocab and model.merges out of its way: hundreds of
// thousands of strings that would otherwise each become a node of a tree.
class ListTaker : public JsonFilter {
 public:
  explicit ListTaker(TokenizerFile& file) : file_(file) {}

  // Whether the parser is to keep the value.
  bool keep(int depth, Event event, json& value) override {
    if (event == Event::key && depth <= 2) {
      (depth == 1 ? section_ : field_) = value.get_ref<const std::string&>();
      if (depth == 1) field_.clear();
      if (depth == 2 && section_ == "model") is_vocab_ = field_ == "vocab", is_merges_ = field_ == "merges";
      return true;
    }
    if (section_ != "model" || depth < 3) return true;
    if (is_vocab_) return vocab_event(depth, event, value);
    if (is_merges_) return merges_event(depth, event, value);
    return true;
  }

 private:
  void note_fault(std::string what) {
    if (file_.fault.empty()) file_.fault = std::move(what);
  }

  bool vocab_event(int depth, Event event, json& value) {
    if (depth == 3 && event == Event::key) {
      key_ = value.get_ref<const std::string&>();
      return false;
    }
    if (depth != 3 || event != Event::value || !value.is_number_integer()) {
      note_fault(fmt::format("model.vocab: expected a number as the id of '{}'", key_));
      return true;
    }
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{kMaxTokenId};
    if (!fits) {
      note_fault(fmt::format("model.vocab: found {} as the id of '{}', expected one from 0 to {}", value.dump(), key_,
                             kMaxTokenId));
      return false;
    }
    file_.tokens.push_back(key_);
    file_.ids.push_back(static_cast<int32_t>(value.get<uint64_t>()));
    return false;
  }

  bool merges_event(int depth, Event event, json& value) {
    if (depth == 3 && event == Event::value && value.is_string()) {
      take_joined_merge(value.get_ref<const std::string&>());
      return false;
    }
    if (depth == 4 && event == Event::value && value.is_string()) {
      file_.merge_halves.push_back(value.get_ref<const std::string&>());
      return false;
    }
    if (depth == 3 && event == Event::array_start) {
      halves_before_ = file_.merge_halves.size();
      return true;
    }
    if (depth == 3 && event == Event::array_end && file_.merge_halves.size() == halves_before_ + 2) return false;
    note_fault(fmt::format("model.merges: expected two tokens as merge {}", file_.merge_halves.size() / 2));
    return true;
  }

  // "left right"; a comment line of merges.txt may have come along.
  void take_joined_merge(std::string_view merge) {
    if (merge.starts_with("#version")) return;
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      note_fault(fmt::format("model.merges: found '{}' as merge {}, expected two tokens with one space between", merge,
                             file_.merge_halves.size() / 2));
      return;
    }
    file_.merge_halves.push_back(merge.substr(0, space));
    file_.merge_halves.push_back(merge.substr(space + 1));
  }

  TokenizerFile& file_;
  std::string section_, field_, key_;
  bool is_vocab_ = false, is_merges_ = false;
  size_t halves_before_ = 0;
};

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  TokenizerFile file;
  file.name = path.string();
  ListTaker taker(file);
  file.json = load_json(path, &taker, kMaxJsonList);
  return file;
}

}  // namespace hxq::text
