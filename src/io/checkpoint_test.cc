#include "io/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zip.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "refusal.h"
#include "temp_dir.h"

namespace hxq {
namespace {

/// A safetensors file of U8 tensors, name -> content.
std::string safetensors(const std::map<std::string, std::string>& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, content] : tensors) {
    header[name] = {
        {"dtype", "U8"}, {"shape", {content.size()}}, {"data_offsets", {data.size(), data.size() + content.size()}}};
    data += content;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}

std::string content(const Checkpoint& checkpoint, std::string_view name) {
  const TensorView* tensor = checkpoint.find(name);
  if (tensor == nullptr) return "(absent)";
  return {reinterpret_cast<const char*>(tensor->bytes.data()), tensor->bytes.size()};
}

/// The message of the error that opening gives.
std::string refusal(const std::filesystem::path& path) {
  return testing::refusal([&] { Checkpoint::open(path); });
}

#define EXPECT_REFUSED(path, text) EXPECT_NE(refusal(path).find(text), std::string::npos) << refusal(path)

TEST(Checkpoint, OpensAFileOrAFolder) {
  const testing::TempDir dir;
  dir.write("config.json", R"({"model_type": "mamba", "x": Infinity})");
  const auto file = dir.write("model.safetensors", safetensors({{"a", "12"}, {"b", "345"}}));
  const Checkpoint folder = Checkpoint::open(dir.path());
  EXPECT_EQ(folder.config()["model_type"], "mamba");
  EXPECT_EQ(content(folder, "b"), "345");
  EXPECT_EQ(folder.find("c"), nullptr);
  EXPECT_EQ(folder.tensors().size(), 2u);
  const Checkpoint alone = Checkpoint::open(file);
  EXPECT_TRUE(alone.config().is_null());
  EXPECT_EQ(content(alone, "a"), "12");
}

TEST(Checkpoint, SurvivesBeingMovedAndDroppingPages) {
  const testing::TempDir dir;
  const std::string big(1 << 20, 'x');
  dir.write("model.safetensors", safetensors({{"a", big}, {"b", "345"}}));
  Checkpoint first = Checkpoint::open(dir.path());
  const TensorView view = *first.find("a");
  const Checkpoint second = std::move(first);
  second.drop(view);
  EXPECT_EQ(content(second, "a"), big);
  EXPECT_EQ(view.bytes.data(), second.find("a")->bytes.data());
  second.drop(TensorView{});
}

/// Resident pages of this process.
int64_t resident_pages() {
  int64_t total = 0;
  int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident;
}

TEST(Checkpoint, DropGivesPagesBack) {
  constexpr int64_t kFewPages = 32;  // far below 16 MiB for any size of page
  const testing::TempDir dir;
  dir.write("model.safetensors", safetensors({{"a", std::string(16 << 20, 'x')}}));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const TensorView& tensor = *checkpoint.find("a");
  EXPECT_EQ(std::ranges::count(tensor.bytes, std::byte{'x'}), 16 << 20);
  const int64_t touched = resident_pages();
  checkpoint.drop(tensor);
  EXPECT_LT(resident_pages(), touched - kFewPages);
}

TEST(Checkpoint, PlacesFaultsInTheirFile) {
  const testing::TempDir dir;
  const std::string file = safetensors({{"a", "12"}, {"b", "345"}});
  dir.write("model.safetensors", file);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const ErrorPlace place = checkpoint.place("b", 1);
  EXPECT_EQ(place.file, (dir.path() / "model.safetensors").string());
  EXPECT_EQ(place.tensor, "b");
  ASSERT_TRUE(place.offset);
  EXPECT_EQ(file[*place.offset], '4');
  EXPECT_EQ(checkpoint.place("absent").file, dir.path().string());
}

TEST(Checkpoint, ThrowsForADtypeThatIsNotReadOnlyWhenUsed) {
  const testing::TempDir dir;
  const std::string header = R"({"q":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}})";
  const uint64_t length = header.size();
  dir.write("model.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) + header + "1234");
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.unsupported().at("q"), "F4");
  EXPECT_THROW(checkpoint.find("q"), Error);
}

TEST(Checkpoint, RefusesAFolderWithoutAModel) {
  const testing::TempDir dir;
  EXPECT_REFUSED(dir.path() / "absent", "No such file");
  EXPECT_REFUSED(dir.path(), "holds no model");
  dir.write("config.json", "{");
  EXPECT_REFUSED(dir.path(), "config.json: not valid JSON");
  ASSERT_EQ(mkfifo((dir.path() / "fifo").c_str(), 0600), 0);
  EXPECT_REFUSED(dir.path() / "fifo", "not a regular file");
}

TEST(Checkpoint, RefusesAShardWithoutItsIndex) {
  const testing::TempDir dir;
  dir.write("model-00001-of-00002.safetensors", safetensors({{"a", "12"}}));
  EXPECT_REFUSED(dir.path(), "model-00001-of-00002.safetensors: is one shard");
  EXPECT_REFUSED(dir.path(), "model.safetensors.index.json, which lists all of them, is missing");
  const testing::TempDir other;
  other.write("best-of-5.safetensors", safetensors({{"a", "12"}}));
  EXPECT_EQ(Checkpoint::open(other.path()).tensors().size(), 1u);
}

std::string index_of(const std::map<std::string, std::string>& weight_map) {
  return nlohmann::json{{"weight_map", weight_map}}.dump();
}

TEST(ShardedCheckpoint, JoinsItsShards) {
  const testing::TempDir dir;
  dir.write("1.safetensors", safetensors({{"a", "12"}, {"c", "wrong"}}));
  dir.write("2.safetensors", safetensors({{"b", "345"}, {"c", "right"}, {"unlisted", "u"}}));
  dir.write("model.safetensors.index.json",
            index_of({{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"c", "2.safetensors"}}));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_EQ(content(checkpoint, "a"), "12");
  EXPECT_EQ(content(checkpoint, "b"), "345");
  EXPECT_EQ(content(checkpoint, "c"), "right");
  EXPECT_EQ(content(checkpoint, "unlisted"), "u");
  EXPECT_EQ(checkpoint.place("b").file, (dir.path() / "2.safetensors").string());
}

TEST(ShardedCheckpoint, RefusesWhatDoesNotFitTogether) {
  const testing::TempDir dir;
  const auto with_index = [&](const std::string& index) {
    dir.write("model/model.safetensors.index.json", index);
    return refusal(dir.path() / "model");
  };
  dir.write("model/1.safetensors", safetensors({{"a", "12"}, {"d", "x"}}));
  dir.write("model/2.safetensors", safetensors({{"b", "345"}, {"d", "y"}}));
  dir.write("outside.safetensors", safetensors({{"a", "12"}}));
  const auto says = [&](const std::string& index, const std::string& text) {
    EXPECT_NE(with_index(index).find(text), std::string::npos) << with_index(index);
  };
  says(index_of({{"a", "3.safetensors"}}), "3.safetensors: cannot open");
  says(index_of({{"b", "1.safetensors"}}), "1.safetensors: tensor 'b': is not there");
  says(index_of({{"a", "1.safetensors"}, {"b", "2.safetensors"}}), "2.safetensors: tensor 'd': is stored in two files");
  for (const char* name : {"../outside.safetensors", "/etc/passwd", "..", ".", "", "./1.safetensors"}) {
    says(index_of({{"a", name}}), "expected the name of a file in the same folder");
  }
  says(index_of({{"a", std::string("1.safetensors\0x", 15)}}), "expected the name of a file");
  says(R"({"weight_map": []})", "weight_map");
  says(R"({"weight_map": {"a": 1}})", "not a string");
  says("[]", "weight_map");
  says("{", "not valid JSON");
}

std::string npy(const std::string& descr, const std::string& shape, std::string_view data) {
  const std::string dict = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + shape + ",), }";
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(dict.size()) + '\0' + dict + std::string(data);
}

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

/// A tree with one compressed tensor [2, 3] and one exact one.
void write_tree(const testing::TempDir& dir) {
  dir.write("m_weight.cdnav3/meta.json",
            R"({"tensor_name": "m_x.weight", "shape": [2, 3], "format_version": "cdna_v3"})");
  dir.write("m_weight.cdnav3/codebook.npy", npy("<f4", "2", floats({1, 2})));
  dir.write("m_weight.cdnav3/indices.bin", std::string("\0\1\0\1\1\0", 6));
  dir.write("n_weight.npy", npy("<f4", "2", floats({3, 4})));
  dir.write("n_weight.npy.meta.json", R"({"tensor_name": "n.weight", "action": "exact", "format": "npy"})");
}

TEST(CdnaTree, HasTheKeysOfASafetensorsFile) {
  const testing::TempDir dir;
  write_tree(dir);
  dir.write("old_style_bias.npy", npy("<f4", "1", floats({5})));
  dir.write("n.weight.npy", npy("<f4", "1", floats({6})));
  dir.write("manifest.json", "{}");
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  std::vector<std::string> keys;
  for (const auto& [name, tensor] : checkpoint.tensors()) keys.push_back(name);
  EXPECT_EQ(keys, (std::vector<std::string>{"m_x.codebook", "m_x.indices", "n.weight", "old.style.bias"}));
  EXPECT_EQ(checkpoint.find("m_x.indices")->shape, (Shape{2, 3}));
  EXPECT_EQ(content(checkpoint, "n.weight"), floats({3, 4}));
  EXPECT_EQ(checkpoint.parameter_of("m_x"), "m_x.weight");
  EXPECT_EQ(checkpoint.parameter_of("n"), "");
  EXPECT_EQ(checkpoint.place("m_x.indices").file, (dir.path() / "m_weight.cdnav3/indices.bin").string());
}

TEST(CdnaTree, RefusesWhatIsMissingOrMalformed) {
  struct Case {
    std::string file;
    std::string content;
    std::string says;
  };
  const std::string meta = "m_weight.cdnav3/meta.json";
  const std::string named = R"({"tensor_name": "m.weight")";
  for (const Case& fault : std::vector<Case>{
           {meta, "", "not valid JSON"},
           {meta, "[]", "not a JSON object"},
           {meta, R"({"shape": [2, 3]})", "tensor_name"},
           {meta, named + "}", "'shape'"},
           {meta, named + R"(, "shape": [6]})", "'shape'"},
           {meta, named + R"(, "shape": [2, -3]})", "'shape'"},
           {meta, named + R"(, "shape": [4294967296, 4294967296]})", "'shape'"},
           {meta, named + R"(, "shape": [2, 4]})", "6 bytes, expected 8"},
           {meta, named + R"(, "shape": [2, 3], "index_dtype": "uint16"})", "6 bytes, expected 12"},
           {meta, named + R"(, "shape": [2, 3], "index_dtype": "int32"})", "index_dtype"},
           {meta, named + R"(, "shape": [2, 3], "storage_mode": "morpho"})", "storage_mode 'morpho'"},
           {meta, named + R"(, "shape": [2, 3], "format_version": "cdna_v4"})", "format_version"},
           {"m_weight.cdnav3/indices.bin", "12345", "5 bytes, expected 6"},
           {"m_weight.cdnav3/codebook.npy", npy("<f4", "2, 2", floats({1, 2, 3, 4})), "codewords of 2"},
           {"m_weight.cdnav3/codebook.npy", npy("<f4", "2, 0", ""), "codewords of 0"},
           {"m_weight.cdnav3/sidecar.npz", "PK", "not a valid .npz"},
           {"n_weight.npy", "x", "not a .npy file"},
           {"n_weight.npy.meta.json", "{}", "tensor_name"},
           {"again.npy.meta.json", R"({"tensor_name": "n.weight"})", "stored twice"},
           {"z.cdnav3/meta.json", R"({"tensor_name": "m_x.weight", "shape": [2, 3]})", "stored twice"},
       }) {
    const testing::TempDir dir;
    write_tree(dir);
    if (fault.file == "again.npy.meta.json") dir.write("again.npy", npy("<f4", "1", floats({1})));
    dir.write(fault.file, fault.content);
    EXPECT_REFUSED(dir.path(), fault.says);
  }
  for (const char* part : {"meta.json", "codebook.npy", "indices.bin"}) {
    const testing::TempDir dir;
    write_tree(dir);
    std::filesystem::remove(dir.path() / "m_weight.cdnav3" / part);
    EXPECT_REFUSED(dir.path(), std::string(part) + ": cannot open");
  }
}

TEST(CdnaTree, RefusesASidecarThatWouldInflateBeyondTheMatrix) {
  const testing::TempDir dir;
  write_tree(dir);
  const std::string bomb(16 << 20, '\0');
  zip_t* archive = zip_open((dir.path() / "m_weight.cdnav3/sidecar.npz").c_str(), ZIP_CREATE, nullptr);
  zip_file_add(archive, "positions.npy", zip_source_buffer(archive, bomb.data(), bomb.size(), 0), 0);
  ASSERT_EQ(zip_close(archive), 0);
  EXPECT_REFUSED(dir.path(), "inflates to 16777216 bytes");
}

}  // namespace
}  // namespace hxq
