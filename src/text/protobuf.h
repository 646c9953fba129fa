#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hxq::text {

/// The fields of one message in the wire format of Protocol Buffers, in the order in which they are stored. Messages
/// within it are fields of bytes, to be read by another reader.
class ProtobufReader {
 public:
  struct Field {
    uint32_t number = 0;
    uint64_t value = 0;           ///< of an integer or a fixed-size number, its bits
    std::string_view bytes = {};  ///< of a text, bytes or a message
    bool has_bytes = false;
  };

  /// `file` and `offset`, of the message within it, are for messages about faults.
  ProtobufReader(std::string_view message, std::string file, uint64_t offset = 0)
      : message_(message), file_(std::move(file)), offset_(offset) {}

  /// The next field; nothing at the end. Throws `Error` for bytes that are no fields.
  std::optional<Field> next();

  /// A reader of the message in `field`, which this one returned.
  ProtobufReader inner(const Field& field) const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  uint64_t varint();
  std::string_view take(uint64_t bytes);

  std::string_view message_;
  std::string file_;
  uint64_t offset_;
  size_t at_ = 0;
};

}  // namespace hxq::text
