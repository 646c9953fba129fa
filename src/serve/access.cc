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

/// `lower`: in small letters.
bool is_same_but_for_case(std::string_view text, std::string_view lower) {
  return std::ranges::equal(text, lower, [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; });
}

/// Of a header Host, without the port; nothing if it is none.
std::string_view name_of_host(std::string_view host) {
  const size_t bracket = host.starts_with('[') ? host.find(']') : 0;
  if (bracket == host.npos) return {};
  const size_t colon = std::min(host.find(':', bracket), host.size());
  const bool has_port =
      std::ranges::all_of(host.substr(std::min(colon + 1, host.size())), [](char c) { return c >= '0' && c <= '9'; });
  return has_port ? host.substr(0, colon) : std::string_view();
}

/// Of IP: no name server decides where it leads.
bool is_address(std::string_view name) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  if (name.starts_with('['))
    return inet_pton(AF_INET6, std::string(name.substr(1, name.size() - 2)).c_str(), &bytes) == 1;
  return inet_pton(AF_INET, std::string(name).c_str(), &bytes) == 1;
}

}  // namespace

Access::Access(std::vector<std::string> keys, std::vector<std::string> origins, std::string host, bool on_loopback)
    : keys_(std::move(keys)),
      origins_(std::move(origins)),
      names_{"localhost", "127.0.0.1", "[::1]"},
      on_loopback_(on_loopback) {
  std::ranges::transform(host, host.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  names_.push_back(host.find(':') == host.npos ? std::move(host) : "[" + host + "]");
}

bool Access::has_key(std::string_view authorization) const {
  if (keys_.empty()) return true;
  constexpr std::string_view kScheme = "bearer ";
  if (!is_same_but_for_case(authorization.substr(0, kScheme.size()), kScheme)) return false;
  const std::string_view sent = authorization.substr(kScheme.size());
  bool found = false;
  for (const std::string& key : keys_) found |= is_same_secret(sent, key);
  return found;
}

bool Access::lists(std::string_view origin) const {
  return std::ranges::any_of(origins_, [&](const std::string& any) { return any == "*" || any == origin; });
}

bool Access::is_own(std::string_view host) const {
  const std::string_view name = name_of_host(host);
  return !name.empty() &&
         std::ranges::any_of(names_, [&](const std::string& own) { return is_same_but_for_case(name, own); });
}

bool Access::serves(std::string_view host) const {
  // Browsers always send a Host.
  return !on_loopback_ || !keys_.empty() || host.empty() || is_own(host);
}

bool Access::admits(std::string_view origin, std::string_view host) const {
  if (origin.empty() || lists(origin)) return true;
  const size_t scheme = origin.find("://");
  if (scheme == std::string_view::npos || origin.substr(scheme + 3) != host) return false;
  return !keys_.empty() || is_own(host) || is_address(name_of_host(host));
}

}  // namespace hxq::serve
