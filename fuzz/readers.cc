#include "fuzz/readers.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "codec/stored_tensors.h"
#include "desc/model_desc.h"
#include "folder/shared_copies.h"
#include "hxq/chat.h"
#include "hxq/error.h"
#include "hxq/receipt.h"
#include "hxq/tokenizer.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "jinja/template.h"
#include "temp_dir.h"

namespace hxq::fuzz {
namespace {

/// Sizes beyond this are valid, but take memory and time.
constexpr int64_t kMaxCols = 1 << 16;

template <class Body>
void expect_error_at_most(Body body) {
  try {
    body();
  } catch (const Error&) {
  }
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void decode_module(const Checkpoint& checkpoint, const std::string& module) {
  const auto matrix = read_matrix(checkpoint, module);
  if (matrix->rows == 0 || matrix->cols > kMaxCols) return;
  std::vector<float> row(static_cast<size_t>(matrix->cols));
  for (const int64_t r : {int64_t{0}, matrix->rows / 2, matrix->rows - 1}) decode_dense_rows(*matrix, r, r + 1, row);
  matrix->weight_levels();
}

void read_tensors(std::span<const std::byte> bytes) {
  expect_error_at_most([&] {
    const Checkpoint checkpoint = Checkpoint::over(parse_safetensors(bytes, "fuzz").tensors);
    for (const StoredTensor& tensor : list_tensors(checkpoint)) {
      expect_error_at_most([&] {
        find_tensor(checkpoint, tensor.name);
        if (tensor.codec) decode_module(checkpoint, tensor.module);
      });
    }
  });
}

void use_tokenizer(const std::filesystem::path& dir) {
  expect_error_at_most([&] {
    const Tokenizer tokenizer = Tokenizer::load(dir);
    const std::vector<int32_t> ids = tokenizer.encode(" Hello, w\xc3\xb6rld!\n\n  12345 \xff \xe4\xb8\xad<s>");
    tokenizer.decode(ids);
    StreamDecoder stream(tokenizer, false);
    for (const int32_t id : ids) stream.push(id);
    stream.flush();
  });
}

}  // namespace

std::string with_repaired_length(std::span<const std::byte> bytes) {
  constexpr size_t kLengthBytes = 8;
  std::string repaired(text_of(bytes));
  size_t end = repaired.size() < kLengthBytes ? repaired.npos : repaired.find("}}", kLengthBytes);
  if (end == repaired.npos) return {};
  end = std::min(repaired.find_first_not_of(' ', end + 2), repaired.size());  // writers pad headers with spaces
  const uint64_t length = end - kLengthBytes;
  std::memcpy(repaired.data(), &length, kLengthBytes);
  return repaired;
}

void read_safetensors(std::span<const std::byte> bytes) {
  read_tensors(bytes);
  if (const std::string repaired = with_repaired_length(bytes); !repaired.empty()) {
    read_tensors(std::as_bytes(std::span(repaired)));
  }
}

void read_index(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  static const bool made = [] {
    const auto shard = [](const std::string& name) {
      const std::string header = R"({")" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
      const uint64_t length = header.size();
      return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(4, '\0');
    };
    dir.write("one.safetensors", shard("a.weight"));
    dir.write("two.safetensors", shard("b"));
    return true;
  }();
  static_cast<void>(made);
  dir.write("model.safetensors.index.json", text_of(bytes));
  expect_error_at_most([&] { Checkpoint::open(dir.path()); });
}

void read_config(std::span<const std::byte> bytes) {
  expect_error_at_most([&] {
    const nlohmann::json config = parse_json(text_of(bytes), "config.json");
    parse_json(json_text(parse_json_to_edit(text_of(bytes), "config.json")), "edited config.json");
    is_known(config);
    const ModelDesc model = describe(config, "config.json");
    check_shared_copies(Checkpoint::over({}), model);
    for (const WeightDesc& weight : model.weights) element_count(weight.shape);
  });
}

void read_npy(std::span<const std::byte> bytes) {
  expect_error_at_most([&] { parse_npy(bytes, "fuzz.npy"); });
  for (const char* member : {"positions.npy", "values.npy"}) {
    expect_error_at_most([&] {
      if (const auto inflated = read_npz_member(bytes, member, 1 << 20, "fuzz.npz")) parse_npy(*inflated, "fuzz.npz");
    });
  }
}

void read_meta(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  static const bool made = [] {
    const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }";
    const std::string padded = header + std::string(118 - header.size() - 1, ' ') + "\n";
    dir.write("m.cdnav3/codebook.npy", std::string("\x93NUMPY\x01\x00\x76\x00", 10) + padded + std::string(16, '\0'));
    dir.write("m.cdnav3/indices.bin", std::string("\0\1\2\3\0\1", 6));
    return true;
  }();
  static_cast<void>(made);
  dir.write("m.cdnav3/meta.json", text_of(bytes));
  expect_error_at_most([&] {
    const Checkpoint checkpoint = Checkpoint::open(dir.path());
    for (const StoredTensor& tensor : list_tensors(checkpoint)) {
      if (tensor.codec) decode_module(checkpoint, tensor.module);
    }
  });
}

void read_receipt(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  dir.write(kReceiptFile, text_of(bytes));
  expect_error_at_most([&] {
    if (const auto receipt = hxq::read_receipt(dir.path())) to_json(*receipt);
  });
}

void read_tokenizer(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  dir.write("tokenizer.json", text_of(bytes));
  use_tokenizer(dir.path());
}

void read_tokenizer_model(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  dir.write("tokenizer.model", text_of(bytes));
  use_tokenizer(dir.path());
}

void read_tokenizer_config(std::span<const std::byte> bytes) {
  static const testing::TempDir dir;
  static const auto tokenizer = dir.write(
      "tokenizer.json", R"({"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"l":1,"o":2,"ll":3,)"
                        R"("llo":4,"<s>":5},"merges":["l l","ll o"],"unk_token":"a"}})");
  dir.write("tokenizer_config.json", text_of(bytes));
  use_tokenizer(dir.path());
  expect_error_at_most([&] {
    const Tokenizer named = Tokenizer::load(dir.path());
    const std::vector<ChatMessage> messages = {{"user", "hello"}};
    if (const auto chat = ChatTemplate::load(dir.path())) chat->render(messages, named);
  });
}

void read_template(std::span<const std::byte> bytes) {
  const nlohmann::ordered_json context = {{"messages",
                                           {{{"role", "system"}, {"content", " Be brief. "}},
                                            {{"role", "user"}, {"content", "One and two\xc3\xa9"}},
                                            {{"role", "assistant"}, {"content", "three"}},
                                            {{"role", "user"}, {"content", ""}}}},
                                          {"bos_token", "<s>"},
                                          {"add_generation_prompt", true}};
  expect_error_at_most([&] { jinja::Template(text_of(bytes), "fuzz").render(context); });
}

}  // namespace hxq::fuzz
