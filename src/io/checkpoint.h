#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/error.h"
#include "hxq/tensor.h"
#include "io/safetensors.h"

namespace hxq {

struct CheckpointContents;

/// The tensors of a model as they are stored, mapped, and its config.json. Immutable; move-only; views stay valid for
/// the lifetime of the object, also when it is moved.
class Checkpoint {
 public:
  /// Opens one of, tried in this order:
  /// - a `.safetensors` file (no config);
  /// - a folder with `model.safetensors`, or `model.safetensors.index.json` and its shards;
  /// - a folder with a `.cdnav3` tree in its subfolder `cdnav3/`;
  /// - a `.cdnav3` tree itself: a folder of `*.cdnav3` folders and `*.npy` files;
  /// - a folder with one index or file of another name (`diffusion_pytorch_model.safetensors`, say).
  /// `config.json` is read if the folder has one. Throws `Error` if none of these is there or something is malformed.
  static Checkpoint open(const std::filesystem::path& path);

  /// Tensors that lie in somebody else's memory, which must outlive the result, with the text of a config.json if it is
  /// not empty; no path. Throws `Error` for text that is not JSON.
  static Checkpoint over(TensorMap tensors, std::string_view config = {});

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  /// The path given to `open`.
  const std::filesystem::path& path() const;

  /// The files that are mapped, as they were opened.
  std::vector<std::filesystem::path> files() const;

  /// Whether the tensors are those of a `.cdnav3` tree, whose writers leave some out.
  bool is_tree() const;

  /// config.json; null when there is none.
  const nlohmann::json& config() const;

  /// Every stored key whose dtype the project reads. The parts of `.cdnav3` folders are under the names that
  /// safetensors files use: `m.codebook`, `m.indices`, `m.sidecar_positions`, `m.sidecar_values`, `m.svd_U`, ...
  const TensorMap& tensors() const;

  /// `__metadata__` of all files; what they disagree on is as the first of them says.
  const Metadata& metadata() const;

  /// Keys whose dtype the project does not read, with the dtype's name as stored.
  const std::map<std::string, std::string, std::less<>>& unsupported() const;

  /// The stored tensor, or null. Throws `Error` if it is there with a dtype that the project does not read.
  const TensorView* find(std::string_view name) const;

  /// The parameter that the compressed module stands for where the files say so (`.cdnav3` trees); otherwise empty.
  std::string_view parameter_of(std::string_view module) const;

  /// File and tensor for messages; with `byte`, also the offset in the file of that byte of the tensor (unless the
  /// tensor was inflated from an archive).
  ErrorPlace place(std::string_view tensor, std::optional<uint64_t> byte = {}) const;

  /// Begins to read a tensor that is needed soon.
  void fetch(const TensorView& tensor) const;

  /// Gives the pages of a finished tensor back; it may still be read.
  void drop(const TensorView& tensor) const;

 private:
  explicit Checkpoint(std::unique_ptr<CheckpointContents> contents);

  std::unique_ptr<CheckpointContents> contents_;
};

}  // namespace hxq
