#pragma once

#include <cstddef>
#include <span>
#include <string>

/// Each function gives arbitrary bytes to one of the readers and uses whatever that accepts, as a model would. `Error`
/// is the right answer to bad input; anything else that comes out, or a fault of memory, is a bug.
namespace hxq::fuzz {

/// A safetensors file: its tensors, its compressed modules, their decoded rows.
void read_safetensors(std::span<const std::byte> bytes);

/// A model.safetensors.index.json, beside two shards.
void read_index(std::span<const std::byte> bytes);

/// A config.json: the description of its model.
void read_config(std::span<const std::byte> bytes);

/// A .npy file, or an .npz archive with the members of a sidecar.
void read_npy(std::span<const std::byte> bytes);

/// The meta.json of a tensor in a .cdnav3 tree, beside its other files.
void read_meta(std::span<const std::byte> bytes);

/// An hxq_receipt.json.
void read_receipt(std::span<const std::byte> bytes);

/// A tokenizer.json: a text there and back.
void read_tokenizer(std::span<const std::byte> bytes);

/// A tokenizer.model: a text there and back.
void read_tokenizer_model(std::span<const std::byte> bytes);

/// A tokenizer_config.json, beside a tokenizer.json: a text there and back, and the chat template in it.
void read_tokenizer_config(std::span<const std::byte> bytes);

/// A chat template: a conversation through it.
void read_template(std::span<const std::byte> bytes);

/// A safetensors file: its compressed modules, decoded and multiplied on every instruction set, against the scalar
/// decoder.
void every_target(std::span<const std::byte> bytes);

/// The file with the length before its header put right: changes of the header hide all behind it otherwise. Empty
/// where there is no header.
std::string with_repaired_length(std::span<const std::byte> bytes);

}  // namespace hxq::fuzz
