#pragma once

#include <cstdint>
#include <vector>

#include "text/json_part.h"

namespace hxq::text {

/// The special tokens that go around a text: types BertProcessing, ByteLevel (none), RobertaProcessing, Sequence,
/// TemplateProcessing. Of a template the form for a single text counts.
class PostProcessor {
 public:
  PostProcessor() = default;  ///< adds nothing

  /// From the part "post_processor". Throws `Error` for an unknown type.
  explicit PostProcessor(const JsonPart& part);

  const std::vector<int32_t>& before() const { return before_; }
  const std::vector<int32_t>& after() const { return after_; }

 private:
  void add(const JsonPart& part);
  void add_template(const JsonPart& part);
  void wrap(const std::vector<int32_t>& before, const std::vector<int32_t>& after);

  std::vector<int32_t> before_, after_;
};

}  // namespace hxq::text
