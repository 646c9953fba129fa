// Folders written by the other implementation of the format, with digests of every tensor as it decodes them.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "codec/codebook/read.h"
#include "codec/stored_tensors.h"
#include "hxq/error.h"
#include "hxq/model.h"
#include "hxq/verify.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/npy.h"
#include "kernels/cpu_context.h"
#include "kernels/kernels.h"
#include "model_runner.h"
#include "shared_data.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

fs::path peer_dir() { return testing::shared_dir() / "peer"; }

std::string sha256(std::span<const float> values) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  EVP_Digest(values.data(), values.size_bytes(), digest.data(), &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::vector<float> decode(const CodebookMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  matrix.decode_rows(0, matrix.rows, out);
  return out;
}

double norm(std::span<const float> values) {
  double sum = 0;
  for (float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

/// The module of a coded tensor: expected.json of a .cdnav3 tree names parameters.
std::string module_of(std::string_view name) {
  return std::string(name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name);
}

/// numpy's name of a stored dtype.
std::string numpy_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::u8:
      return "uint8";
    case DType::i64:
      return "int64";
    default:
      return std::string(name_of(dtype));
  }
}

class Peer : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { HXQ_REQUIRE_SHARED(); }
  fs::path dir() const { return peer_dir() / GetParam(); }
  nlohmann::json expected() const { return load_json(dir() / "expected.json"); }
};

TEST_P(Peer, EveryCodedTensorDecodesToItsDigest) {
  const Checkpoint checkpoint = Checkpoint::open(dir());
  const nlohmann::json all = expected()["coded"];
  ASSERT_GE(all.size(), 49u);
  for (const auto& [name, want] : all.items()) {
    SCOPED_TRACE(name);
    CodebookMatrix matrix = read_codebook_matrix(checkpoint, module_of(name), want["shape"].get<Shape>());
    EXPECT_EQ((Shape{matrix.rows, matrix.cols}), want["shape"].get<Shape>());
    EXPECT_EQ(matrix.k, want["k"]);
    EXPECT_EQ(matrix.d, want["d"]);
    EXPECT_EQ(matrix.sidecar.value.size(), want["sidecar"]);
    EXPECT_EQ(matrix.low_rank.rank, want["svd_rank"]);
    if (matrix.low_rank.rank == 0) {
      EXPECT_EQ(sha256(decode(matrix)), want["sha256_reader"]);
    } else {
      // The sum's rounding is the implementation's own affair; its norm in double is not.
      EXPECT_NEAR(norm(decode(matrix)), want["l2_float64"].get<double>(), 1e-7 * want["l2_float64"].get<double>());
      matrix.low_rank = {};
      EXPECT_EQ(sha256(decode(matrix)), want["sha256_without_svd"]);
    }
  }
}

TEST_P(Peer, FirstValuesAreThoseOfTheOtherImplementation) {
  const Checkpoint checkpoint = Checkpoint::open(dir());
  const nlohmann::json json = expected();
  ASSERT_EQ(json["first64"].size(), 2u);
  for (const auto& [name, want] : json["first64"].items()) {
    const CodebookMatrix matrix =
        read_codebook_matrix(checkpoint, module_of(name), json["coded"][name]["shape"].get<Shape>());
    const std::vector<float> decoded = decode(matrix);
    // Without a low-rank term the values are copies. With one, two sums of eight products below 1 may differ.
    const float tolerance = matrix.low_rank.rank == 0 ? 0.0f : 6e-8f;
    ASSERT_EQ(want.size(), 64u);
    for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(decoded[i], want[i].get<float>(), tolerance) << name << " " << i;
  }
}

TEST_P(Peer, EveryExactTensorIsTheSource) {
  const Checkpoint checkpoint = Checkpoint::open(dir());
  const nlohmann::json all = expected()["exact"];
  ASSERT_GE(all.size(), 50u);
  for (const auto& [name, want] : all.items()) {
    SCOPED_TRACE(name);
    const std::optional<StoredTensor> found = find_tensor(checkpoint, name);
    ASSERT_TRUE(found);
    EXPECT_FALSE(found->codec);
    EXPECT_EQ(found->shape, want["shape"].get<Shape>());
    const TensorView& tensor = *checkpoint.find(name);
    EXPECT_EQ(numpy_name(tensor.dtype), want["dtype"]);
    EXPECT_EQ(sha256(to_float(tensor)), want["sha256_as_float32"]);
  }
}

TEST_P(Peer, ListsTheModelsTensorsOnce) {
  const Checkpoint checkpoint = Checkpoint::open(dir());
  const nlohmann::json json = expected();
  std::set<std::string> want;
  for (const auto& [name, tensor] : json["exact"].items()) want.insert(name);
  for (const auto& [name, tensor] : json["coded"].items()) {
    const bool is_parameter = name.ends_with(".weight") || name.ends_with("A_log");
    want.insert(is_parameter ? name : name + ".weight");
  }
  std::vector<std::string> listed;
  for (const StoredTensor& tensor : list_tensors(checkpoint)) {
    listed.push_back(tensor.name);
    const std::optional<StoredTensor> found = find_tensor(checkpoint, tensor.name);
    ASSERT_TRUE(found) << tensor.name;
    EXPECT_EQ(found->codec, tensor.codec) << tensor.name;
    EXPECT_EQ(found->module, tensor.module) << tensor.name;
    EXPECT_EQ(found->shape, tensor.shape) << tensor.name;
    EXPECT_EQ(tensor.codec != nullptr, !json["exact"].contains(tensor.name)) << tensor.name;
  }
  std::ranges::sort(listed);  // layers come as 2, 10; the set has 10, 2
  EXPECT_EQ(listed, std::vector<std::string>(want.begin(), want.end()));
}

TEST_P(Peer, Verifies) {
  const VerifyResult result = verify(dir());
  for (const Problem& problem : result.problems) ADD_FAILURE() << problem.message;
  EXPECT_GE(result.compressed, 48);
}

INSTANTIATE_TEST_SUITE_P(Folders, Peer, ::testing::Values("hxq-scalar", "hxq-svd", "hxq-vq12", "cdnav3"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(PeerScalar, RunsToTheLogitsOfTheOtherImplementation) {
  HXQ_REQUIRE_SHARED();
  const nlohmann::json reference = load_json(testing::shared_dir() / "reference" / "wiki-mamba-7m.json");
  const auto ids = reference["first_ids"].get<std::vector<int32_t>>();
  const MappedFile file = MappedFile::open(peer_dir() / "hxq-scalar" / "logits.npy");
  const std::vector<float> expected = to_float(parse_npy(file.bytes(), "logits.npy"));
  ASSERT_EQ(expected.size(), 16u * 8192u);
  for (const Target target : kernels::supported_targets()) {
    SCOPED_TRACE(name_of(target));
    const Model model = Model::open(peer_dir() / "hxq-scalar", {.target = target});
    testing::ModelRunner runner(model);
    std::vector<float> logits(ids.size() * static_cast<size_t>(model.info().vocab_size));
    runner.prefill(ids, Logits::all, logits);
    const float* last = logits.data() + logits.size() - expected.size();
    float largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) largest = std::max(largest, std::abs(last[i] - expected[i]));
    EXPECT_LE(largest, 1e-3f);
  }
}

TEST(PeerTree, StandsAloneAsWellAsBesideAConfig) {
  HXQ_REQUIRE_SHARED();
  const Checkpoint beside = Checkpoint::open(peer_dir() / "cdnav3");
  const Checkpoint alone = Checkpoint::open(peer_dir() / "cdnav3" / "cdnav3");
  EXPECT_EQ(beside.config()["model_type"], "mamba");
  EXPECT_TRUE(alone.config().is_null());
  ASSERT_EQ(beside.tensors().size(), alone.tensors().size());
  for (const auto& [name, tensor] : beside.tensors()) {
    ASSERT_NE(alone.find(name), nullptr) << name;
    EXPECT_TRUE(std::ranges::equal(tensor.bytes, alone.find(name)->bytes)) << name;
  }
}

TEST(PeerTree, HasTheKeysThatTheOtherConverterMakesOfIt) {
  HXQ_REQUIRE_SHARED();
  const Checkpoint tree = Checkpoint::open(peer_dir() / "cdnav3");
  const nlohmann::json keys = load_json(peer_dir() / "hxq-writer-b" / "keys.json");
  for (const auto& [name, tensor] : tree.tensors()) {
    ASSERT_TRUE(keys.contains(name)) << name;
    EXPECT_EQ(tensor.shape, keys[name][1].get<Shape>()) << name;
    // The tree holds sidecar values in F16; the converter widens them.
    const bool widened = name.ends_with(".sidecar_values");
    EXPECT_EQ(numpy_name(tensor.dtype), widened ? "float16" : keys[name][0].get<std::string>()) << name;
  }
  // What the tree does not hold, the converter takes from the source model.
  for (const auto& [name, key] : keys.items()) {
    const bool from_source = name.ends_with(".A_log") || name.ends_with(".D");
    EXPECT_EQ(tree.find(name) == nullptr, from_source) << name;
  }
}

TEST(PeerVectorCodebook, FlatIndicesNeedAShapeUnlessACopyTellsIt) {
  HXQ_REQUIRE_SHARED();
  const Checkpoint checkpoint = Checkpoint::open(peer_dir() / "hxq-vq12");
  EXPECT_THROW(read_codebook_matrix(checkpoint, "backbone.layers.0.mixer.in_proj"), Error);
  EXPECT_THROW(read_codebook_matrix(checkpoint, "backbone.layers.0.mixer.in_proj", {512, 256}), Error);
  EXPECT_EQ(read_codebook_matrix(checkpoint, "backbone.layers.0.mixer.in_proj", {1024, 256}).rows, 1024);
  const CodebookMatrix a_log = read_codebook_matrix(checkpoint, "backbone.layers.0.mixer.A_log");
  EXPECT_EQ((Shape{a_log.rows, a_log.cols}), (Shape{512, 16}));
}

}  // namespace
}  // namespace hxq
