#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hxq::serve {

/// Who may use the server.
class Access {
 public:
  /// keys: none: anybody. origins: "*": all.
  Access(std::vector<std::string> keys, std::vector<std::string> origins)
      : keys_(std::move(keys)), origins_(std::move(origins)) {}

  /// Whether the header Authorization has one of the keys. How long that takes does not depend on where a key that was
  /// sent differs from one that is right.
  bool has_key(std::string_view authorization) const;

  /// Whether pages of another origin are to be let in: then answers say so to browsers.
  bool lists(std::string_view origin) const;

  /// Whether a request with these headers may be from a page of the server's own, or of an origin that is listed, or
  /// from no page at all (no Origin).
  bool admits(std::string_view origin, std::string_view host) const;

 private:
  std::vector<std::string> keys_, origins_;
};

}  // namespace hxq::serve
