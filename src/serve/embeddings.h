#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/api_error.h"
#include "serve/served_model.h"
#include "serve/update.h"

namespace hxq::serve {

/// What /v1/embeddings is asked for.
struct EmbeddingRequest {
  std::vector<std::vector<int32_t>> texts;
  bool base64 = false;  ///< numbers as little-endian float32 in base64, not as a list

  int64_t tokens() const noexcept;
};

/// Reads a request's body. Throws `ApiError`.
EmbeddingRequest read_embedding_request(std::string_view body, const ServedModel& served);

/// The answer to a request for embeddings, as it comes.
class EmbeddingAnswer {
 public:
  /// `served` must outlive it.
  EmbeddingAnswer(EmbeddingRequest request, const ServedModel& served);

  const EmbeddingRequest& request() const noexcept { return request_; }

  /// `text`: its number.
  void add(size_t text, Update update);

  /// All have ended.
  bool done() const noexcept { return open_ == 0; }

  /// Why one could not be made; none: they all were, so far.
  const std::optional<ApiError>& fault() const noexcept { return fault_; }

  /// The next piece of the body, of about 64 KB, when it is done; empty after the last. Embeddings that were in one are
  /// forgotten.
  std::string take_piece();

 private:
  EmbeddingRequest request_;
  const ServedModel& served_;
  std::vector<std::vector<float>> embeddings_;
  size_t open_;
  size_t taken_ = 0;  // of the embeddings
  bool is_taken_ = false;
  std::optional<ApiError> fault_;
};

}  // namespace hxq::serve
