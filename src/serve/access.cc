#include "serve/access.h"

#include <algorithm>

namespace hxq::serve {
namespace {

/// In a time that depends on the length of `sent` alone.
bool is_same_secret(std::string_view sent, std::string_view secret) {
  volatile size_t difference = sent.size() ^ secret.size();
  for (size_t i = 0; i < sent.size(); ++i) {
    const char expected = secret.empty() ? '\0' : secret[i % secret.size()];
    difference = difference | static_cast<size_t>(static_cast<unsigned char>(sent[i] ^ expected));
  }
  return difference == 0;
}

bool starts_with_scheme(std::string_view authorization, std::string_view scheme) {
  return authorization.size() >= scheme.size() &&
         std::ranges::equal(authorization.substr(0, scheme.size()), scheme,
                            [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; });
}

}  // namespace

bool Access::has_key(std::string_view authorization) const {
  if (keys_.empty()) return true;
  constexpr std::string_view kScheme = "bearer ";
  if (!starts_with_scheme(authorization, kScheme)) return false;
  const std::string_view sent = authorization.substr(kScheme.size());
  bool found = false;
  for (const std::string& key : keys_) found |= is_same_secret(sent, key);
  return found;
}

bool Access::lists(std::string_view origin) const {
  return std::ranges::any_of(origins_, [&](const std::string& any) { return any == "*" || any == origin; });
}

bool Access::admits(std::string_view origin, std::string_view host) const {
  if (origin.empty() || lists(origin)) return true;
  const size_t scheme = origin.find("://");
  return scheme != std::string_view::npos && origin.substr(scheme + 3) == host;
}

}  // namespace hxq::serve
