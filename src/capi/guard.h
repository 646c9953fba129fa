#pragma once

#include <exception>
#include <string>
#include <utility>

#include "hxq/c_api.h"
#include "hxq/error.h"

/// What every function of the interface does around its body: exceptions become statuses.
namespace hxq::capi {

/// A wrong call, as opposed to wrong data.
class InvalidArgument : public std::exception {
 public:
  explicit InvalidArgument(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

/// The progress function asked to stop.
class Cancelled : public std::exception {
 public:
  const char* what() const noexcept override { return "cancelled"; }
};

/// Remembers the exception being handled for `hxq_last_error`, and names it. doing: what ran, for running out of
/// memory.
hxq_status fail(const char* doing) noexcept;

/// Runs the body of a function of the interface; nothing gets out of it. doing: "multiplying", "opening a model", ...
template <class Body>
hxq_status guard(const char* doing, Body&& body) noexcept {
  try {
    body();
    return HXQ_OK;
  } catch (...) {
    return fail(doing);
  }
}

/// Text for the caller to free with `hxq_free`.
char* copy_text(const std::string& text);

}  // namespace hxq::capi
