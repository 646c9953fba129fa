#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "hxq/tokenizer.h"
#include "shared_data.h"

namespace hxq::testing {
namespace {

std::string read(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// llama.cpp's vocabulary tests: inputs separated by a line of their own, and a line of ids for each.
void check_vectors(const char* vectors, const char* tokenizer_name) {
  const auto dir = shared_dir() / "tokenizers";
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string inputs = read(dir / "vectors" / (std::string(vectors) + ".inp"));
  std::istringstream lines(read(dir / "vectors" / (std::string(vectors) + ".out")));
  const Tokenizer tokenizer = Tokenizer::load(dir / tokenizer_name);
  std::string line;
  size_t count = 0;
  for (size_t at = 0; at < inputs.size() && std::getline(lines, line); ++count) {
    const size_t end = std::min(inputs.find(separator, at), inputs.size());
    std::istringstream numbers(line);
    const std::vector<int32_t> expected{std::istream_iterator<int32_t>(numbers), {}};
    const std::string input = inputs.substr(at, end - at);
    EXPECT_EQ(tokenizer.encode(input, false), expected) << "'" << input << "'";
    EXPECT_EQ(tokenizer.decode(expected), input);
    at = end + separator.size();
  }
  EXPECT_GT(count, 40u);
}

TEST(Vectors, Qwen2) {
  HXQ_REQUIRE_SHARED();
  check_vectors("qwen2", "qwen2");
}

TEST(Vectors, Llama2) {
  HXQ_REQUIRE_SHARED();
  check_vectors("llama-spm", "llama2");
}

}  // namespace
}  // namespace hxq::testing
