#pragma once

#include <cstddef>
#include <span>

/// Each function gives arbitrary bytes to one of the readers and uses whatever that accepts, as a model would. `Error`
/// is the right answer to bad input; anything else that comes out, or a fault of memory, is a bug.
namespace hxq::fuzz {

/// A safetensors file: its tensors, its compressed modules, their decoded rows.
void read_safetensors(std::span<const std::byte> bytes);

/// A config.json: the description of its model.
void read_config(std::span<const std::byte> bytes);

/// A .npy file, or an .npz archive with the members of a sidecar.
void read_npy(std::span<const std::byte> bytes);

/// A tokenizer.json: a text there and back.
void read_tokenizer(std::span<const std::byte> bytes);

/// A chat template: a conversation through it.
void read_template(std::span<const std::byte> bytes);

}  // namespace hxq::fuzz
