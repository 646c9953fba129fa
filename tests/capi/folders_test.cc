#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "capi_test_support.h"
#include "hxq/compress.h"
#include "hxq/verify.h"
#include "temp_dir.h"

namespace hxq::testing {
namespace {

namespace fs = std::filesystem;

const std::string kModel = HXQ_SOURCE_DIR "/models/wiki-mamba-7m";

/// The bundled model, compressed once.
const fs::path& compressed() {
  static const TempDir dir;
  static const fs::path folder = [] {
    const fs::path made = dir.path() / "model";
    char* text = nullptr;
    EXPECT_OK(hxq_compress(kModel.c_str(), made.c_str(), nullptr, nullptr, &text));
    hxq_free(text);
    return made;
  }();
  return folder;
}

nlohmann::json taken(char* text) {
  const Text owned(text);
  return nlohmann::json::parse(text);
}

std::string file_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every key of every object in `json`; not those of objects whose keys are names of tensors' parts.
void collect_keys(const nlohmann::json& json, std::set<std::string>& keys) {
  if (json.is_array()) {
    for (const auto& entry : json) collect_keys(entry, keys);
  } else if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      keys.insert(key);
      collect_keys(value, keys);
    }
  }
}

/// The keys that the comment before a function of the header names.
std::set<std::string> documented_keys(const std::string& function) {
  const std::string header = file_text(HXQ_SOURCE_DIR "/include/hxq/c_api.h");
  const size_t end = header.find("HXQ_API hxq_status " + function + "(");
  EXPECT_NE(end, std::string::npos) << function;
  const std::string comment = header.substr(header.rfind("/*", end), end - header.rfind("/*", end));
  std::set<std::string> keys;
  const std::regex pattern(R"re("(\w+)": ?)re");
  for (std::sregex_iterator it(comment.begin(), comment.end(), pattern), last; it != last; ++it) {
    keys.insert((*it)[1]);
  }
  return keys;
}

void expect_documented(const std::string& function, const nlohmann::json& json,
                       const std::set<std::string>& parts = {}) {
  std::set<std::string> keys;
  collect_keys(json, keys);
  for (const std::string& part : parts) keys.erase(part);
  std::set<std::string> documented = documented_keys(function);
  for (const std::string& part : parts) documented.erase(part);
  EXPECT_EQ(keys, documented) << function;
}

TEST(Folders, CompressIsThatOfTheLibrary) {
  const TempDir dir;
  compress(kModel, dir.path() / "model");
  for (const char* file : {"model.safetensors", "config.json"}) {
    EXPECT_EQ(file_text(compressed() / file), file_text(dir.path() / "model" / file)) << file;
  }
}

TEST(Folders, JsonHasTheFieldsThatTheHeaderNames) {
  char* text = nullptr;
  const std::string folder = compressed().string();
  ASSERT_OK(hxq_inspect(folder.c_str(), &text));
  const nlohmann::json inspected = taken(text);
  expect_documented("hxq_inspect", inspected);
  EXPECT_EQ(inspected, nlohmann::json::parse(to_json(inspect(compressed()))));

  ASSERT_OK(hxq_verify(folder.c_str(), kModel.c_str(), nullptr, &text));
  const nlohmann::json verified = taken(text);
  expect_documented("hxq_verify", verified);
  EXPECT_TRUE(verified["ok"]);

  const std::string file = (compressed() / "model.safetensors").string();
  const char* const paths[] = {file.c_str()};
  ASSERT_OK(hxq_stored_modules(paths, 1, &text));
  expect_documented("hxq_stored_modules", taken(text),
                    {"codebook", "indices", "sidecar_positions", "sidecar_values", "svd_U", "svd_s", "svd_Vt"});

  hxq_encoded* parts = nullptr;
  ASSERT_OK(hxq_stored_parts(folder.c_str(), "backbone.layers.0.mixer.in_proj.weight", &parts, &text));
  const EncodedHandle encoded(parts);
  expect_documented("hxq_stored_parts", taken(text));
  EXPECT_EQ(hxq_encoded_count(parts), 4u);
}

TEST(Folders, ReadsTensorsDecoded) {
  const std::string folder = compressed().string();
  const char* name = "backbone.layers.0.mixer.in_proj.weight";
  int64_t shape[4] = {};
  int32_t rank = 0;
  ASSERT_OK(hxq_read_tensor(folder.c_str(), name, shape, &rank, nullptr, 0));
  ASSERT_EQ(rank, 2);
  std::vector<float> values(shape[0] * shape[1]);
  expect_invalid(hxq_read_tensor(folder.c_str(), name, shape, &rank, values.data(), 5), "room for 5 floats");
  ASSERT_OK(hxq_read_tensor(folder.c_str(), name, shape, &rank, values.data(), shape[0] * shape[1]));

  const TempDir dir;
  const std::string dense = (dir.path() / "dense").string();
  ASSERT_OK(hxq_decompress(folder.c_str(), dense.c_str(), HXQ_F32, nullptr));
  std::vector<float> decompressed(values.size());
  ASSERT_OK(hxq_read_tensor(dense.c_str(), name, shape, &rank, decompressed.data(), shape[0] * shape[1]));
  EXPECT_EQ(values, decompressed);
}

TEST(Folders, WritesCdnav3) {
  const TempDir dir;
  const std::vector<float> source = random_floats(40 * 32, 3);
  const hxq_tensor given = tensor("layer.weight", HXQ_F32, {40, 32}, source.data());
  char* text = nullptr;
  ASSERT_OK(hxq_cdnav3_write(dir.path().c_str(), &given, 0, nullptr, &text));
  EXPECT_EQ(taken(text)["tensor_name"], "layer.weight");
  const std::string folder = (dir.path() / "layer_weight.cdnav3").string();
  hxq_encoded* parts = nullptr;
  for (const char* name : {static_cast<const char*>(nullptr), "layer.weight"}) {
    ASSERT_OK(hxq_stored_parts(folder.c_str(), name, &parts, &text));
    hxq_encoded_destroy(parts);
    EXPECT_EQ(taken(text)["shape"], nlohmann::json({40, 32}));
  }
  expect_failure(hxq_stored_parts(folder.c_str(), "other", &parts, &text), HXQ_BAD_DATA, "of tensor 'layer.weight'");
  const hxq_tensor nameless = tensor(nullptr, HXQ_F32, {40, 32}, source.data());
  expect_invalid(hxq_cdnav3_write(dir.path().c_str(), &nameless, 0, nullptr, &text), "no name");
  const hxq_tensor strange = tensor("\xff", HXQ_F32, {40, 32}, source.data());
  expect_invalid(hxq_cdnav3_write(dir.path().c_str(), &strange, 0, nullptr, &text), "not UTF-8");
  expect_invalid(hxq_cdnav3_write("", &given, 0, nullptr, &text), "empty path");
  for (const auto change : {+[](hxq_encode_options& o) { o.profile = "g4"; },
                            +[](hxq_encode_options& o) { o.bits = 4; }, +[](hxq_encode_options& o) { o.group = 32; }}) {
    hxq_encode_options options;
    hxq_encode_options_init(&options);
    change(options);
    expect_invalid(hxq_cdnav3_write(dir.path().c_str(), &given, 0, &options, &text), "have no effect");
  }
}

struct Reports {
  int32_t count = 0;
  int32_t stop_at = 0;
  static int32_t report(const char*, int64_t done, int64_t total, void* user) {
    auto& self = *static_cast<Reports*>(user);
    EXPECT_LE(done, total);
    return ++self.count == self.stop_at ? 1 : 0;
  }
};

TEST(Folders, StopWhenProgressAsksTo) {
  const TempDir dir;
  const std::string target = (dir.path() / "target").string();
  const std::string folder = compressed().string();
  for (const int32_t stop_at : {1, 4}) {
    Reports reports{.stop_at = stop_at};
    const hxq_progress progress = {Reports::report, &reports, nullptr};
    char* text = nullptr;
    expect_failure(hxq_compress(kModel.c_str(), target.c_str(), nullptr, &progress, &text), HXQ_CANCELLED, "cancelled");
    reports.count = 0;
    expect_failure(hxq_decompress(folder.c_str(), target.c_str(), HXQ_F32, &progress), HXQ_CANCELLED, "cancelled");
    reports.count = 0;
    expect_failure(hxq_verify(folder.c_str(), nullptr, &progress, &text), HXQ_CANCELLED, "cancelled");
    EXPECT_EQ(text, nullptr);
    EXPECT_TRUE(fs::is_empty(dir.path())) << "something is left behind";
  }
}

TEST(Folders, NoticesAreTold) {
  const TempDir dir;
  const std::string source = (dir.path() / "source").string(), target = (dir.path() / "target").string();
  fs::create_directory(source);
  fs::copy(fs::path(kModel) / "model.safetensors", source);
  dir.write("source/other.pt", "weights");
  std::string lines;
  const auto notice = [](const char* line, void* user) { *static_cast<std::string*>(user) += line; };
  const hxq_progress progress = {nullptr, &lines, notice};
  char* text = nullptr;
  ASSERT_OK(hxq_compress(source.c_str(), target.c_str(), nullptr, &progress, &text));
  taken(text);
  EXPECT_NE(lines.find("does not know this architecture (there is no config.json)"), lines.npos) << lines;
  EXPECT_NE(lines.find("left out: other.pt"), lines.npos) << lines;
  lines.clear();
  dir.write("target/other.pt", "weights");
  ASSERT_OK(hxq_decompress(target.c_str(), (dir.path() / "dense").c_str(), HXQ_F32, &progress));
  EXPECT_NE(lines.find("left out: other.pt"), lines.npos) << lines;
}

TEST(Folders, CompressToShards) {
  const TempDir dir;
  const fs::path sharded = dir.path() / "model";
  hxq_compress_options options;
  hxq_compress_options_init(&options);
  options.max_shard_bytes = 3'000'000;
  char* text = nullptr;
  ASSERT_OK(hxq_compress(kModel.c_str(), sharded.c_str(), &options, nullptr, &text));
  const nlohmann::json receipt = taken(text);
  const nlohmann::json index = nlohmann::json::parse(file_text(sharded / "model.safetensors.index.json"));
  std::set<std::string> shards;
  for (const auto& [key, file] : index["weight_map"].items()) shards.insert(file);
  const int64_t stored = receipt["totals"]["stored_bytes"];
  EXPECT_GE(std::ssize(shards), (stored + options.max_shard_bytes - 1) / options.max_shard_bytes);
  EXPECT_FALSE(fs::exists(sharded / "model.safetensors"));
  for (const std::string& shard : shards) EXPECT_LT(fs::file_size(sharded / shard), 3'100'000u) << shard;
}

/// Compresses in a process of its own, which is killed at the third tensor.
void compress_and_be_killed(const std::string& target) {
  const pid_t child = fork();
  if (child == 0) {
    int32_t reports = 0;
    const auto report = [](const char*, int64_t, int64_t, void* user) {
      return ++*static_cast<int32_t*>(user) == 3 ? raise(SIGKILL) : 0;
    };
    const hxq_progress progress = {report, &reports, nullptr};
    char* text = nullptr;
    hxq_compress(kModel.c_str(), target.c_str(), nullptr, &progress, &text);
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST(Folders, CompressTakesUpWhatAKilledOneHasDone) {
  const std::string expected = file_text(compressed() / "model.safetensors");  // before the fork: makes threads
  const TempDir dir;
  const std::string target = (dir.path() / "model").string();
  ASSERT_NO_FATAL_FAILURE(compress_and_be_killed(target));
  const fs::path journal = target + ".partial/.hxq-journal";
  ASSERT_TRUE(fs::exists(journal));
  std::string done = file_text(journal);
  EXPECT_EQ(std::ranges::count(done, '\n'), 3);  // what it is of, and two tensors

  hxq_compress_options options;
  hxq_compress_options_init(&options);
  options.resume = 1;
  char* text = nullptr;
  const auto resume = [&] { return hxq_compress(kModel.c_str(), target.c_str(), &options, nullptr, &text); };
  const fs::path left = target + ".partial", kept = target + ".kept";
  fs::copy(left, kept);
  // What was done counts: a hash that is not that of the bytes stops the work.
  char& digit = done[done.find("\"sha256\":\"") + 10];
  digit = digit == '0' ? '1' : '0';
  std::ofstream(journal) << done;
  expect_failure(resume(), HXQ_BAD_DATA, "cannot be taken up");
  ASSERT_FALSE(fs::exists(left));
  fs::rename(kept, left);
  ASSERT_OK(resume());
  hxq_free(text);
  EXPECT_TRUE(file_text(fs::path(target) / "model.safetensors") == expected);
}

TEST(Folders, WrongOptionsAreInvalidAndWrongFilesAreBadData) {
  const TempDir dir;
  const std::string target = (dir.path() / "target").string();
  char* text = nullptr;
  hxq_compress_options options;
  hxq_compress_options_init(&options);
  EXPECT_EQ(options.sidecar_fraction, 0.001);
  const auto with = [&](auto change) {
    hxq_compress_options changed = options;
    change(changed);
    return hxq_compress(kModel.c_str(), target.c_str(), &changed, nullptr, &text);
  };
  expect_invalid(with([](auto& o) { o.sidecar_fraction = 0.7; }), "sidecar_fraction is 0.7");
  expect_invalid(with([](auto& o) { o.sidecar_fraction = std::nan(""); }), "sidecar_fraction is nan");
  expect_invalid(with([](auto& o) { o.threads = -2; }), "-2 threads");
  const hxq_role_bits twice[] = {{"head", 4}, {"head", 5}}, nameless = {nullptr, 4}, unknown = {"norm", 4};
  const auto with_bits_for = [&](const hxq_role_bits* of, size_t count) {
    return with([&](auto& o) { o.profile = "g4", o.bits_for = of, o.bits_for_count = count; });
  };
  expect_invalid(with_bits_for(twice, 2), "bits_for names 'head' twice");
  expect_invalid(with_bits_for(&nameless, 1), "bits_for is null");
  expect_invalid(with_bits_for(nullptr, 1), "bits_for is null");
  expect_failure(with_bits_for(&unknown, 1), HXQ_BAD_DATA, "expected embedding, projection or head");
  expect_invalid(with([](auto& o) { o.max_shard_bytes = -1; }), "max_shard_bytes is -1");
  expect_invalid(with([](auto& o) { o.keep_count = 1; }), "keep is null");
  const char* const nothing[] = {nullptr};
  expect_invalid(with([&](auto& o) {
                   o.only = nothing;
                   o.only_count = 1;
                 }),
                 "only is null");
  expect_invalid(hxq_compress(nullptr, target.c_str(), nullptr, nullptr, &text), "source is null");
  expect_invalid(hxq_compress(kModel.c_str(), nullptr, nullptr, nullptr, &text), "destination is null");
  expect_invalid(hxq_compress(kModel.c_str(), target.c_str(), nullptr, nullptr, nullptr), "receipt_json is null");
  expect_invalid(hxq_decompress(kModel.c_str(), target.c_str(), HXQ_I64, nullptr), "dtype is I64");
  expect_invalid(hxq_decompress(kModel.c_str(), target.c_str(), 99, nullptr), "dtype 99");
  expect_invalid(hxq_decompress(kModel.c_str(), nullptr, HXQ_F32, nullptr), "destination is null");
  expect_invalid(hxq_inspect(nullptr, &text), "folder is null");
  expect_invalid(hxq_inspect(kModel.c_str(), nullptr), "json is null");
  expect_invalid(hxq_verify(nullptr, nullptr, nullptr, &text), "folder is null");
  expect_invalid(hxq_verify(kModel.c_str(), "", nullptr, &text), "source is an empty text");
  expect_invalid(with([](auto& o) { o.profile = ""; }), "profile is an empty text");
  expect_invalid(hxq_stored_modules(nullptr, 1, &text), "paths is null");
  expect_invalid(hxq_stored_modules(nothing, 1, &text), "a path is null");
  expect_invalid(hxq_stored_modules(nothing, 0, &text), "no files");
  expect_invalid(hxq_read_tensor(kModel.c_str(), nullptr, nullptr, nullptr, nullptr, 0), "name is null");
  expect_failure(hxq_compress("/nonexistent", target.c_str(), nullptr, nullptr, &text), HXQ_BAD_DATA, "/nonexistent");
  expect_failure(hxq_inspect("/nonexistent", &text), HXQ_BAD_DATA, "/nonexistent");
  hxq_encoded* parts = nullptr;
  expect_failure(hxq_stored_parts(kModel.c_str(), "no.such", &parts, &text), HXQ_BAD_DATA, "no.such");
  EXPECT_EQ(text, nullptr);
  EXPECT_EQ(parts, nullptr);
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

}  // namespace
}  // namespace hxq::testing
