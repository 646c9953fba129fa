#include "io/sharded_writer.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "io/shard_name.h"
#include "io/system_error.h"

namespace hxq {

namespace fs = std::filesystem;
namespace {

/// The shard that a finished file's name is for.
std::optional<size_t> shard_of(const std::string& finished) {
  if (finished == "model.safetensors") return 0;
  const auto name = read_shard_name(finished);
  if (!name || name->model != "model" || name->number.size() != 5 || name->count.size() != 5) return std::nullopt;
  return std::stoul(std::string(name->number)) - 1;
}

}  // namespace

ShardedWriter::ShardedWriter(const fs::path& folder, std::vector<TensorPlan> plan, int64_t max_shard_bytes,
                             Metadata metadata)
    : folder_(folder),
      plan_(std::move(plan)),
      max_shard_bytes_(static_cast<uint64_t>(max_shard_bytes)),
      metadata_(std::move(metadata)) {
  if (max_shard_bytes <= 0) throw Error(fmt::format("shards of {} bytes: expected more than 0", max_shard_bytes));
  take_names_back();
}

bool ShardedWriter::may_have_written(const std::string& name) { return name.starts_with("shard-") || shard_of(name); }

/// A writer that was killed late has given some shards their final names.
void ShardedWriter::take_names_back() const {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) files.push_back(entry.path());
  for (const fs::path& file : files) {
    if (const auto shard = shard_of(file.filename().string())) fs::rename(file, shard_path(*shard));
  }
}

fs::path ShardedWriter::shard_path(size_t shard) const {
  return folder_ / fmt::format("shard-{:05d}.safetensors", shard + 1);
}

SafetensorsWriter& ShardedWriter::writer() {
  if (earlier_) throw Error("more tensors follow than an earlier run wrote", {.file = earlier_->file.path().string()});
  if (!writer_)
    writer_ = std::make_unique<SafetensorsWriter>(shard_path(finished_.size()), plan_, metadata_, Leftovers::take_up);
  return *writer_;
}

void ShardedWriter::begin_group(int64_t bytes) {
  if (shard_bytes_ > 0 && shard_bytes_ + static_cast<uint64_t>(bytes) > max_shard_bytes_) {
    if (!earlier_) writer().finish();
    finished_.push_back(shard_path(finished_.size()));
    writer_.reset();
    earlier_.reset();
    shard_bytes_ = 0;
  }
  if (shard_bytes_ == 0 && fs::exists(shard_path(finished_.size()))) {
    const fs::path shard = shard_path(finished_.size());
    earlier_ = SafetensorsFile::open(shard);
    for (const char* suffix : {".part", ".small"}) fs::remove(fs::path(shard) += suffix);
  }
  shard_bytes_ += static_cast<uint64_t>(bytes);
}

void ShardedWriter::add(std::string_view name, DType dtype, const Shape& shape, std::span<const std::byte> bytes) {
  writer().add(name, dtype, shape, bytes);
  where_.emplace(name, finished_.size());
  total_bytes_ += bytes.size();
}

bool ShardedWriter::take_up(std::string_view name, DType dtype, const Shape& shape,
                            const std::function<bool(std::span<const std::byte>)>& is_right) {
  const auto bytes = static_cast<uint64_t>(element_count(shape)) * size_of(dtype);
  if (earlier_) {
    const auto found = earlier_->contents.tensors.find(name);
    if (found == earlier_->contents.tensors.end() || found->second.dtype != dtype || found->second.shape != shape ||
        !is_right(found->second.bytes)) {
      return false;
    }
    earlier_->file.drop(found->second.bytes);
  } else if (!writer().take_up(name, dtype, shape, is_right)) {
    return false;
  }
  where_.emplace(name, finished_.size());
  total_bytes_ += bytes;
  return true;
}

void ShardedWriter::finish() {
  if (!earlier_) writer().finish();
  writer_.reset();
  earlier_.reset();
  finished_.push_back(shard_path(finished_.size()));
  std::vector<std::string> names;
  for (size_t i = 0; i < finished_.size(); ++i) {
    names.push_back(finished_.size() == 1 ? "model.safetensors"
                                          : fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, finished_.size()));
    if (rename(finished_[i].c_str(), (folder_ / names[i]).c_str()) != 0)
      throw_system_error(folder_ / names[i], "create");
  }
  if (names.size() == 1) return;
  nlohmann::json weight_map = nlohmann::json::object();
  for (const auto& [name, shard] : where_) weight_map[name] = names[shard];
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", std::move(weight_map)}};
  const fs::path path = folder_ / "model.safetensors.index.json";
  std::ofstream file(path, std::ios::binary);
  file << json_text(index) << '\n';
  file.close();
  if (!file) throw_system_error(path, "write");
}

}  // namespace hxq
