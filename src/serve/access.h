#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hxq::serve {

/// The name or address in a header Host, without the port; empty if it has none or is malformed (RFC 3986, 3.2.2).
std::string name_of_host(std::string_view host);

/// Who may use the server.
class Access {
 public:
  /// keys: none: anybody. origins: "*": all. host: the name or address that the server was told to listen on.
  Access(std::vector<std::string> keys, std::vector<std::string> origins, std::string host = "localhost");

  /// Whether the header Authorization has one of the keys. How long that takes does not depend on where a key that was
  /// sent differs from one that is right.
  bool has_key(std::string_view authorization) const;

  /// Whether a request with that header Host may be meant for this server. A page can have its own name resolved to
  /// this machine (DNS rebinding) and then is, for browsers, a page of this server's: where no key keeps it out, its
  /// name has to. Let in are addresses, which no name server resolves, localhost, what the server was told to listen
  /// on, and hosts of listed origins.
  bool serves(std::string_view host) const;

  /// Whether pages of another origin are to be let in: then answers say so to browsers.
  bool lists(std::string_view origin) const;

  /// Whether a request with these headers may be from a page of the server's own, or of an origin that is listed, or
  /// from no page at all (no Origin).
  bool admits(std::string_view origin, std::string_view host) const;

 private:
  std::vector<std::string> keys_, origins_, names_;
};

}  // namespace hxq::serve
