#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/stored_matrix.h"
#include "hxq/tensor.h"
#include "io/checkpoint.h"

namespace hxq {

/// A stored tensor of a compressed module m, under the key "m.suffix".
struct PartSpec {
  enum class Kind : uint8_t {
    needed,    ///< a module without it is not stored with this codec
    optional,  ///< read if it is there
    derived,   ///< never read: what other writers work out from the others and store too
  };
  std::string_view suffix;
  Kind kind = Kind::needed;
  std::string_view older_name = {};  ///< another suffix for the same part, read where the first is not there
};

/// A number that `hxq inspect` and the C ABI tell of a module, by its name in JSON: "codewords", ...
struct Fact {
  std::string name;
  int64_t value = 0;
};

/// What a module's headers tell, without its weights being read.
struct StoredForm {
  std::string text;  ///< for a table: the codec and what distinguishes its variants
  DType dtype;       ///< of the part that has the weights
  int64_t outliers = 0;
  std::vector<Fact> facts = {};
};

/// A way to store a matrix: one row of the table that everything goes through which reads compressed checkpoints. What
/// a codec stores is told by its parts; docs/add_a_codec.md says how to add one.
struct Codec {
  std::string_view id;  ///< in the receipt, in `hxq inspect`, and for `hxq compress --codec`
  /// The first is needed. A module is stored with the codec whose needed parts are all there; of several such, with
  /// the one that needs the most.
  std::span<const PartSpec> parts;

  /// [rows, cols] by the parts' shapes alone, or [rows * cols] where they do not tell rows from columns. Throws
  /// `Error` if the shapes are not those of a matrix stored with this codec.
  Shape (*shape)(const Checkpoint& checkpoint, std::string_view module);

  /// The matrix, with everything checked that decoding relies on. `expected`: the parameter's shape where it is known
  /// (dimensions before the last are taken together), otherwise empty; another one is an error. Throws `Error` that
  /// names file and tensor.
  std::unique_ptr<const StoredMatrix> (*read)(const Checkpoint& checkpoint, std::string_view module,
                                              const Shape& expected);

  StoredForm (*describe)(const Checkpoint& checkpoint, std::string_view module);
};

/// The name of what is stored as it is, where the name of a codec is expected.
inline constexpr std::string_view kExact = "exact";

/// All codecs: those of the library (`codecs.cc`), then registered ones.
std::span<const Codec* const> codecs() noexcept;

/// Null when there is none of that name.
const Codec* find_codec(std::string_view id) noexcept;

/// Adds a codec for the rest of the program; `codec` must stay where it is. From any thread, also while the program's
/// static objects are made; checkpoints that are opened later know it. Throws `Error` for a name that is taken or a row
/// that lacks something.
void register_codec(const Codec& codec);

/// The codec that `module` is stored with; null when it is not stored compressed.
const Codec* codec_of(const Checkpoint& checkpoint, std::string_view module);

/// The matrix of a module that `codec_of` knows. Throws as `Codec::read`, and if it is not stored compressed.
std::unique_ptr<const StoredMatrix> read_matrix(const Checkpoint& checkpoint, std::string_view module,
                                                const Shape& expected = {});

/// "module.suffix".
std::string part_key(std::string_view module, std::string_view suffix);

/// The part under its name or its older one; null if it is absent or has no elements.
const TensorView* find_part(const Checkpoint& checkpoint, std::string_view module, const PartSpec& part);

/// Whether some codec has a part with that suffix.
bool is_part_suffix(std::string_view suffix) noexcept;

}  // namespace hxq
