#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "serve/api_error.h"
#include "serve/completion_request.h"
#include "serve/update.h"

namespace hxq::serve {

/// The answer to a request for a text, as it comes: the body, or the events of a stream.
class Completion {
 public:
  /// `served` must outlive it. id: of the answer.
  Completion(CompletionRequest request, const ServedModel& served, std::string id);

  const CompletionRequest& request() const noexcept { return request_; }

  void add(size_t choice, Update update);

  /// Every choice has ended.
  bool done() const noexcept { return open_ == 0; }

  /// Why a choice could not be completed; none: they all were, so far.
  const std::optional<ApiError>& fault() const noexcept { return fault_; }

  /// The body, when it is done.
  nlohmann::ordered_json body() const;

  /// Of a stream: the events since the last call. When it is done, the end of the stream, too.
  std::string take_events();

 private:
  struct Choice {
    std::string text = {};
    std::vector<TokenUpdate> tokens = {};
    std::optional<Ending> ending = {};
    size_t characters = 0;  ///< of the text at `bytes`, for offsets that count characters
    size_t bytes = 0;
  };

  nlohmann::ordered_json head(bool chunk) const;
  nlohmann::ordered_json usage() const;
  nlohmann::ordered_json logprobs_json(Choice& choice, const std::string& text,
                                       const std::vector<TokenUpdate>& tokens) const;
  void put_event(nlohmann::ordered_json choice);
  void put_chunk(size_t number, const std::string& text, const std::vector<TokenUpdate>& tokens);
  void put_end_of_choice(size_t number);
  void put_end();

  CompletionRequest request_;
  const ServedModel& served_;
  std::string id_;
  int64_t created_;
  std::vector<Choice> choices_;
  size_t open_;
  std::optional<ApiError> fault_;
  std::string events_;
};

/// A server-sent event with that data, which is on one line.
std::string sse_event(std::string_view data);

/// What ends a stream whose texts could not be completed.
std::string fault_events(const ApiError& fault);

/// A comment, which clients leave out: something to send while there is nothing to say.
inline constexpr std::string_view kSseComment = ": \n\n";

/// JSON on one line.
std::string dumped(const nlohmann::ordered_json& json);

}  // namespace hxq::serve
