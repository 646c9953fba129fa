// Small valid files, damaged at random but the same way in every run: every reader must answer with `Error` or a
// result.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "fuzz/readers.h"
#include "hxq/compress.h"
#include "hxq/error.h"
#include "hxq/model.h"
#include "hxq/tokenizer.h"
#include "hxq/verify.h"
#include "model_runner.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

const fs::path kTests = fs::path(HXQ_SOURCE_DIR) / "tests";

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(random_() % bound); }

  /// One to three changes, most of them among the first `head` bytes.
  std::string mutate(std::string bytes, size_t head) {
    for (size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) change(bytes, head);
    return bytes;
  }

 private:
  void change(std::string& bytes, size_t head) {
    const size_t at = below(below(4) > 0 ? std::min(head, bytes.size()) : bytes.size());
    const size_t length = 1 + below(std::min<size_t>(16, bytes.size() - at));
    switch (below(8)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(random_());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.append(1 + below(64), static_cast<char>(random_()));
        break;
      case 4:
        bytes.erase(at, length);
        break;
      case 5:
        bytes.insert(at, bytes.substr(below(bytes.size()), length));
        break;
      default:
        replace_number(bytes, at);
        break;
    }
  }

  /// The first decimal number after `at` becomes one that is likely to be trouble.
  void replace_number(std::string& bytes, size_t at) {
    static const char* const kNumbers[] = {
        "0",     "1",  "-1", "255", "65536", "2147483647", "4294967296", "9223372036854775807", "18446744073709551616",
        "1e308", "0.5"};
    const size_t begin = bytes.find_first_of("0123456789", at);
    if (begin == bytes.npos) return;
    const size_t end = std::min(bytes.find_first_not_of("0123456789", begin), bytes.size());
    bytes.replace(begin, end - begin, kNumbers[below(std::size(kNumbers))]);
  }

  std::mt19937_64 random_;
};

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

/// Runs everything on a folder that was damaged; how many of the calls were content with it.
int use_folder(const fs::path& dir, bool write) {
  int content = 0;
  const auto run = [&](auto body) {
    try {
      body();
      ++content;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()), "");
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  };
  run([&] { inspect(dir); });
  run([&] { verify(dir); });
  run([&] {
    const Model model = Model::open(dir, {.threads = 1});
    testing::ModelRunner runner(model);
    std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
    const std::vector<int32_t> tokens = {0, 0, 0};
    runner.prefill(tokens, Logits::last, logits);
  });
  if (!write) return content;
  const testing::TempDir out;
  run([&] { compress(dir, out.path() / "compressed"); });
  run([&] { decompress(dir, out.path() / "dense"); });
  return content;
}

class Folders : public ::testing::TestWithParam<const char*> {};

TEST_P(Folders, DamagedAnywhere) {
  constexpr int kCases = 500;
  const fs::path source = kTests / GetParam();
  Mutator mutator(7);
  int content = 0;
  for (int i = 0; i < kCases; ++i) {
    const testing::TempDir dir;
    const bool weights = mutator.below(2) == 0;
    for (const char* name : {"config.json", "model.safetensors", "hxq_receipt.json"}) {
      if (!fs::exists(source / name)) continue;
      const std::string bytes = read_file(source / name);
      const bool damage = (std::string_view(name) == "model.safetensors") == weights;
      dir.write(name, damage ? mutator.mutate(bytes, 6000) : bytes);
    }
    content += use_folder(dir.path(), i % 10 == 0);
  }
  EXPECT_GT(content, kCases / 20) << "damage that is always noticed at once tests little";
  EXPECT_LT(content, 3 * kCases);
}

INSTANTIATE_TEST_SUITE_P(Mutation, Folders,
                         ::testing::Values("golden/1", "golden/2", "golden/3", "e2e/llama-llama3", "e2e/mamba2-limit",
                                           "e2e/qwen2-sliding", "e2e/zamba2-adapters"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace_if(
                               name, [](char c) { return !std::isalnum(c); }, '_');
                           return name;
                         });

TEST(Mutation, Safetensors) {
  const std::string valid = read_file(kTests / "golden/1/model.safetensors");
  Mutator mutator(1);
  for (int i = 0; i < 1500; ++i) fuzz::read_safetensors(bytes_of(mutator.mutate(valid, 6000)));
}

TEST(Mutation, Configs) {
  Mutator mutator(2);
  for (const char* folder : {"golden/1", "golden/2", "e2e/llama-llama3", "e2e/mamba2-limit", "e2e/zamba2-adapters"}) {
    const std::string valid = read_file(kTests / folder / "config.json");
    ASSERT_NE(valid, "") << folder;
    for (int i = 0; i < 1000; ++i) fuzz::read_config(bytes_of(mutator.mutate(valid, valid.size())));
  }
}

TEST(Mutation, Npy) {
  std::string valid("\x93NUMPY\x01\0", 8);
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n";
  valid += std::string{static_cast<char>(header.size()), 0} + header + std::string(24, 'x');
  Mutator mutator(3);
  for (int i = 0; i < 3000; ++i) fuzz::read_npy(bytes_of(mutator.mutate(valid, valid.size())));
}

TEST(Mutation, Tokenizers) {
  const std::string valid = read_file(fs::path(HXQ_SOURCE_DIR) / "fuzz/seeds/read_tokenizer/tokenizer.json");
  Mutator mutator(4);
  for (int i = 0; i < 3000; ++i) fuzz::read_tokenizer(bytes_of(mutator.mutate(valid, valid.size())));
  const testing::TempDir dir;
  dir.write("tokenizer.json", valid);
  EXPECT_NO_THROW(Tokenizer::load(dir.path()));
}

TEST(Mutation, ChatTemplates) {
  const std::string valid = read_file(fs::path(HXQ_SOURCE_DIR) / "fuzz/seeds/read_template/chat_template.jinja");
  ASSERT_NE(valid, "");
  Mutator mutator(6);
  for (int i = 0; i < 3000; ++i) fuzz::read_template(bytes_of(mutator.mutate(valid, valid.size())));
}

/// A tree with every kind of file.
TEST(Mutation, Cdnav3Trees) {
  const auto npy = [](const std::string& descr, const std::string& shape, const std::string& data) {
    const std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
    return std::string("\x93NUMPY\x01\0", 8) + std::string{static_cast<char>(header.size()), 0} + header + data;
  };
  const std::map<std::string, std::string> files = {
      {"m_weight.cdnav3/meta.json", R"({"format_version":"cdna_v3","tensor_name":"m.weight","shape":[2,4],)"
                                    R"("index_dtype":"uint8","storage_mode":"codebook","vector_dim":1})"},
      {"m_weight.cdnav3/codebook.npy", npy("<f4", "(3,)", std::string(12, '\x3f'))},
      {"m_weight.cdnav3/indices.bin", std::string("\0\1\2\0\1\2\0\1", 8)},
      {"m_weight.cdnav3/channel_scales.npy", npy("<f4", "(4,)", std::string(16, '\x3f'))},
      {"norm.npy", npy("<f2", "(4,)", std::string(8, '\x3c'))},
      {"norm.npy.meta.json", R"({"tensor_name":"norm","shape":[4],"storage_mode":"exact"})"},
      {"old_name.npy", npy("<f4", "(1,)", std::string(4, '\x3f'))},
  };
  Mutator mutator(5);
  int content = 0;
  for (int i = 0; i < 600; ++i) {
    const testing::TempDir dir;
    const size_t damaged = mutator.below(files.size() + 1);  // one too many: none
    size_t at = 0;
    for (const auto& [name, bytes] : files)
      dir.write(name, at++ == damaged ? mutator.mutate(bytes, bytes.size()) : bytes);
    const int answers = use_folder(dir.path(), i % 20 == 0);
    content += answers;
    if (damaged == files.size()) {
      EXPECT_GE(answers, 2) << "inspect and verify take the tree as it is";
    }
  }
  EXPECT_GT(content, 100);
}

}  // namespace
}  // namespace hxq
