#include "compress/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>

#include "hxq/error.h"

namespace hxq {

std::string sha256_hex(std::span<const std::byte> bytes) {
  std::array<unsigned char, 32> digest{};
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    throw Error("the cryptographic library cannot compute SHA-256");
  }
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace hxq
