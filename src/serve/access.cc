#include "serve/access.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

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

std::string in_small_letters(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  return lower;
}

/// Of IP: no name server decides where it leads.
bool is_address(const std::string& name) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  if (name.starts_with('[') && name.ends_with(']')) {
    return inet_pton(AF_INET6, name.substr(1, name.size() - 2).c_str(), &bytes) == 1;
  }
  return inet_pton(AF_INET, name.c_str(), &bytes) == 1;
}

/// RFC 3986, 3.2.2.
bool may_be_in_name(char c) {
  constexpr std::string_view kOthers = "-._~%!$&'()*+,;=";
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || kOthers.find(c) != kOthers.npos;
}

}  // namespace

std::string name_of_host(std::string_view host) {
  const size_t bracket = host.starts_with('[') ? host.find(']') : 0;
  if (bracket == host.npos) return {};
  const size_t colon = std::min(host.find(':', bracket), host.size());
  const std::string_view port = host.substr(std::min(colon + 1, host.size()));
  if (!std::ranges::all_of(port, [](char c) { return c >= '0' && c <= '9'; })) return {};
  std::string name(host.substr(0, colon));
  const bool is_well_formed = name.starts_with('[') ? is_address(name) : std::ranges::all_of(name, may_be_in_name);
  return is_well_formed ? name : std::string();
}

Access::Access(std::vector<std::string> keys, std::vector<std::string> origins, std::string host)
    : keys_(std::move(keys)), origins_(std::move(origins)), names_{"localhost", in_small_letters(host)} {}

bool Access::has_key(std::string_view authorization) const {
  if (keys_.empty()) return true;
  constexpr std::string_view kScheme = "bearer ";
  if (in_small_letters(authorization.substr(0, kScheme.size())) != kScheme) return false;
  const std::string_view sent = authorization.substr(kScheme.size());
  bool found = false;
  for (const std::string& key : keys_) found |= is_same_secret(sent, key);
  return found;
}

bool Access::lists(std::string_view origin) const {
  return std::ranges::any_of(origins_, [&](const std::string& any) { return any == "*" || any == origin; });
}

bool Access::serves(std::string_view host) const {
  if (!keys_.empty() || host.empty()) return true;  // browsers always send a Host
  const std::string asked = in_small_letters(host);
  const std::string name = name_of_host(asked);
  if (name.empty()) return false;
  return std::ranges::count(names_, name) > 0 || is_address(name) || lists("http://" + asked) ||
         lists("https://" + asked);
}

bool Access::admits(std::string_view origin, std::string_view host) const {
  if (origin.empty() || lists(origin)) return true;
  const size_t scheme = origin.find("://");
  return scheme != std::string_view::npos && origin.substr(scheme + 3) == host && serves(host);
}

}  // namespace hxq::serve
