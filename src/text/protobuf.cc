#include "text/protobuf.h"

#include <cstring>

#include "hxq/error.h"

namespace hxq::text {

void ProtobufReader::fail(const std::string& what) const {
  throw Error(what, {.file = file_, .offset = offset_ + at_});
}

uint64_t ProtobufReader::varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = static_cast<unsigned char>(take(1)[0]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  fail("found a number of more than 64 bits, expected a Protocol Buffers message");
}

std::string_view ProtobufReader::take(uint64_t bytes) {
  if (bytes > message_.size() - at_) fail("the message ends within a field");
  at_ += bytes;
  return message_.substr(at_ - bytes, bytes);
}

std::optional<ProtobufReader::Field> ProtobufReader::next() {
  if (at_ == message_.size()) return std::nullopt;
  const uint64_t tag = varint();
  Field field{.number = static_cast<uint32_t>(tag >> 3)};
  switch (tag & 7) {
    case 0:
      field.value = varint();
      break;
    case 1:
      std::memcpy(&field.value, take(8).data(), 8);
      break;
    case 2:
      field.bytes = take(varint());
      field.has_bytes = true;
      break;
    case 5:
      std::memcpy(&field.value, take(4).data(), 4);
      break;
    default:
      fail("found a field of an unknown kind, expected a Protocol Buffers message");
  }
  return field;
}

ProtobufReader ProtobufReader::inner(const Field& field) const {
  const auto begin = static_cast<uint64_t>(field.bytes.data() - message_.data());
  return ProtobufReader(field.bytes, file_, offset_ + begin);
}

}  // namespace hxq::text
