#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/json_part.h"
#include "text/regex.h"

namespace hxq::text {

/// The way from tokens back to text: types ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence, Strip.
/// Without one, tokens are joined with spaces.
class Decoder {
 public:
  Decoder();

  /// From the part "decoder". Throws `Error` for an unknown type.
  explicit Decoder(const JsonPart& part);

  /// What a token adds in the middle of a text, before its bytes become characters.
  std::string bytes_of(std::string_view token) const;

  /// One step at work on one stream of tokens. A step receives tokens and hands on tokens; steps after `fuses` receive
  /// the pieces of one long token.
  class Stage {
   public:
    virtual ~Stage() = default;
    virtual void push(std::string token) = 0;

    /// Hands on what was held back, and is as new afterwards.
    virtual void finish() = 0;

    void set_next(Stage* next) { next_ = next; }

   protected:
    void emit(std::string token) { next_->push(std::move(token)); }

   private:
    Stage* next_ = nullptr;
  };

  /// A decoding under way.
  class Stream {
   public:
    explicit Stream(const Decoder& decoder);
    void push(std::string_view token) { stages_.front()->push(std::string(token)); }
    void finish();

    /// The text completed since the last call, valid UTF-8.
    std::string take();

   private:
    std::vector<std::unique_ptr<Stage>> stages_;  // the last one collects
  };

  // The steps, as the file gives them.
  struct Join {};
  struct ByteLevel {};
  struct ByteFallback {};
  struct Fuse {};
  struct Replace {
    Regex pattern;
    std::string content;
  };
  struct Strip {
    std::string content;  // one character
    size_t start, stop;   // how many to take off at each end, at most
  };
  struct Metaspace {
    std::string replacement;  // one character
    bool drop_first;          // those in the first token go, instead of becoming spaces
  };

 private:
  using Step = std::variant<Join, ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace>;

  void add(const JsonPart& part);

  std::vector<Step> steps_;
};

}  // namespace hxq::text
