#include "text/decoder_stages.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "io/utf8.h"
#include "text/byte_level.h"
#include "text/normalizer.h"

namespace hxq::text {

namespace {

class JoinStage : public Decoder::Stage {
 public:
  void push(std::string token) override {
    if (!first_) token.insert(token.begin(), ' ');
    first_ = false;
    emit(std::move(token));
  }
  void finish() override { first_ = true; }

 private:
  bool first_ = true;
};

// Hands on what is complete of the bytes of all tokens together.
class ByteLevelStage : public Decoder::Stage {
 public:
  void push(std::string token) override {
    append_from_byte_level(token, bytes_);
    std::string text;
    take_complete_utf8(bytes_, text);
    if (!text.empty()) emit(std::move(text));
  }
  void finish() override {
    if (!bytes_.empty()) emit(std::string(kReplacementCharacter));
    bytes_.clear();
  }

 private:
  std::string bytes_;
};

// A run of byte tokens is text if all of it is valid, and U+FFFD for each of its bytes if not: it is known only when
// the run ends.
class ByteFallbackStage : public Decoder::Stage {
 public:
  void push(std::string token) override {
    if (const auto byte = fallback_byte(token)) {
      run_ += *byte;
      return;
    }
    finish();
    emit(std::move(token));
  }
  void finish() override {
    if (run_.empty()) return;
    const std::string run = std::exchange(run_, {});
    if (is_valid_utf8(run)) return emit(run);
    for (size_t i = 0; i < run.size(); ++i) emit(std::string(kReplacementCharacter));
  }

 private:
  std::string run_;
};

// Tokens become pieces of one token just by what the later stages make of them.
class FuseStage : public Decoder::Stage {
 public:
  void push(std::string token) override { emit(std::move(token)); }
  void finish() override {}
};

class GatherStage : public Decoder::Stage {
 public:
  void push(std::string piece) override { whole_ += piece; }
  void finish() override { emit(std::exchange(whole_, {})); }

 private:
  std::string whole_;
};

class ReplaceStage : public Decoder::Stage {
 public:
  explicit ReplaceStage(const Decoder::Replace& step) : step_(step) {}
  void push(std::string token) override { emit(replace_matches(step_.pattern, token, step_.content)); }
  void finish() override {}

 private:
  const Decoder::Replace& step_;
};

class MetaspaceStage : public Decoder::Stage {
 public:
  explicit MetaspaceStage(const Decoder::Metaspace& step) : step_(step) {}
  void push(std::string token) override {
    const bool drop = first_ && step_.drop_first;
    first_ = false;
    emit(from_metaspace(step_, token, drop ? "" : " "));
  }
  void finish() override { first_ = true; }

 private:
  const Decoder::Metaspace& step_;
  bool first_ = true;
};

// Takes a character off the two ends of what it receives as one token; `stop` of them at the end are held back, as more
// may follow.
class StripStage : public Decoder::Stage {
 public:
  StripStage(const Decoder::Strip& step, bool pieces) : step_(step), pieces_(pieces) {}

  void push(std::string token) override {
    add(token);
    if (!pieces_) end_token();
  }
  void finish() override {
    if (pieces_) end_token();
  }

 private:
  void add(std::string_view text) {
    while (at_start_ && taken_ < step_.start && text.starts_with(step_.content)) {
      text.remove_prefix(step_.content.size());
      ++taken_;
    }
    if (text.empty()) return;
    at_start_ = false;
    size_t ends = 0;
    std::string_view rest = text;
    while (!rest.empty() && rest.ends_with(step_.content)) {
      rest.remove_suffix(step_.content.size());
      ++ends;
    }
    if (!rest.empty()) release(held_);
    held_ += ends;
    if (!rest.empty()) emit(std::string(rest));
    if (held_ > step_.stop) release(held_ - step_.stop);
  }

  void release(size_t count) {
    std::string out;
    for (size_t i = 0; i < count; ++i) out += step_.content;
    held_ -= count;
    if (!out.empty()) emit(std::move(out));
  }

  void end_token() {
    held_ = 0;
    taken_ = 0;
    at_start_ = true;
  }

  const Decoder::Strip& step_;
  const bool pieces_;
  bool at_start_ = true;
  size_t taken_ = 0;  // at the start
  size_t held_ = 0;   // at the end so far
};

}  // namespace

std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

std::string from_metaspace(const Decoder::Metaspace& step, std::string_view token, std::string_view space) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const size_t found = std::min(token.find(step.replacement, at), token.size());
    out.append(token, at, found - at);
    if (found < token.size()) out += space;
    at = found + step.replacement.size();
  }
  return out;
}

DecoderStage make_stage(const Decoder::Join&, bool) { return std::make_unique<JoinStage>(); }
DecoderStage make_stage(const Decoder::ByteLevel&, bool) { return std::make_unique<ByteLevelStage>(); }
DecoderStage make_stage(const Decoder::ByteFallback&, bool) { return std::make_unique<ByteFallbackStage>(); }
DecoderStage make_stage(const Decoder::Fuse&, bool) { return std::make_unique<FuseStage>(); }
DecoderStage make_stage(const Decoder::Replace& step, bool) { return std::make_unique<ReplaceStage>(step); }
DecoderStage make_stage(const Decoder::Strip& step, bool pieces) { return std::make_unique<StripStage>(step, pieces); }
DecoderStage make_stage(const Decoder::Metaspace& step, bool) { return std::make_unique<MetaspaceStage>(step); }
DecoderStage make_gather_stage() { return std::make_unique<GatherStage>(); }
DecoderStage make_collect_stage() { return std::make_unique<CollectStage>(); }

}  // namespace hxq::text
