#include "text/normalizer.h"

#include <array>

#include "text/pattern.h"

namespace hxq::text {

namespace {

constexpr std::array<std::string_view, 7> kKnown = {"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Sequence"};

std::string apply_step(NormalForm form, const std::string& text) { return normalize(text, form); }

template <class Step>
std::string apply_step(const Step& step, std::string text) {
  if constexpr (requires { step.pattern; }) {
    return replace_matches(step.pattern, text, step.content);
  } else {
    return text.empty() ? text : step.text + text;
  }
}

}  // namespace

Normalizer::Normalizer(const JsonPart& part) { add(part); }

void Normalizer::add(const JsonPart& part) {
  const std::string type = part.string("type");
  if (type == "Sequence") {
    for (const JsonPart& item : part.items("normalizers")) add(item);
  } else if (type == "NFC") {
    steps_.emplace_back(NormalForm::nfc);
  } else if (type == "NFD") {
    steps_.emplace_back(NormalForm::nfd);
  } else if (type == "NFKC") {
    steps_.emplace_back(NormalForm::nfkc);
  } else if (type == "NFKD") {
    steps_.emplace_back(NormalForm::nfkd);
  } else if (type == "Prepend") {
    steps_.emplace_back(Prepend{part.string("prepend")});
  } else if (type == "Replace") {
    steps_.emplace_back(Replace{pattern_of(part), part.string("content")});
  } else {
    part.fail_unknown(type, kKnown);
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    out = std::visit([&](const auto& s) { return apply_step(s, std::move(out)); }, step);
  }
  return out;
}

std::string replace_matches(const Regex& pattern, std::string_view text, std::string_view content) {
  std::string out;
  out.reserve(text.size());
  size_t copied = 0;
  RegexScan(pattern).for_each_match(text, [&](size_t begin, size_t end) {
    out += text.substr(copied, begin - copied);
    out += content;
    copied = end;
  });
  out += text.substr(copied);
  return out;
}

}  // namespace hxq::text
