// Sizes and errors of the encoder, as committed in results.csv: a change that moves them shows as a diff to review.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "codec/codebook/encode.h"
#include "codec/encode_test_data.h"
#include "compress/plan.h"
#include "decoded_snr.h"
#include "folder/model_folder.h"

namespace hxq {
namespace {

const std::filesystem::path kResults = std::filesystem::path(HXQ_SOURCE_DIR) / "tests/regression/results.csv";
constexpr const char* kHeader = "source,dtype,shape,outliers,bytes,bits_per_weight,ratio_to_f32,snr_db";
/// Sums may be rounded differently by another compiler.
constexpr double kToleranceDb = 0.0015;

struct Row {
  std::string exact;  // all columns but the last
  double snr_db = 0;

  std::string text() const { return fmt::format("{},{:.3f}", exact, snr_db); }
};

Row measure(const std::string& name, const TensorView& source) {
  const EncodedTensor encoded = encode_codebook(source, {.threads = 1});
  size_t bytes = 0;
  for (const EncodedPart& part : encoded.parts) bytes += part.bytes.size();
  const double weights = static_cast<double>(source.size());
  const double bits = 8 * static_cast<double>(bytes) / weights;
  return {fmt::format("{},{},{}x{},{},{},{:.4f},{:.4f}", name, name_of(source.dtype), source.shape[0], source.shape[1],
                      encoded.outliers, bytes, bits, bits / 32),
          testing::decoded_snr_db(source, encoded)};
}

std::vector<Row> results_now() {
  std::vector<Row> rows;
  for (const char* distribution : {"gaussian", "laplace", "student3", "cauchy", "mixture", "uniform"}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const testing::Matrix matrix(dtype, 256, 300, testing::draw(distribution, 256 * 300, 3));
      rows.push_back(measure(distribution, matrix.view()));
    }
  }
  const ModelFolder model = ModelFolder::open(std::filesystem::path(HXQ_SOURCE_DIR) / "models/wiki-mamba-7m");
  for (const PlanEntry& entry : plan_entries(model, {})) {
    if (entry.encoder) rows.push_back(measure("wiki-mamba-7m/" + entry.name, entry.view));
  }
  return rows;
}

std::vector<Row> results_committed() {
  std::ifstream file(kResults);
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, kHeader);
  std::vector<Row> rows;
  while (std::getline(file, line)) {
    const size_t comma = line.rfind(',');
    rows.push_back({line.substr(0, comma), std::stod(line.substr(comma + 1))});
  }
  return rows;
}

TEST(EncoderResults, AreAsCommitted) {
  const std::vector<Row> now = results_now(), committed = results_committed();
  for (size_t i = 0; i < std::min(now.size(), committed.size()); ++i) {
    EXPECT_EQ(now[i].exact, committed[i].exact);
    EXPECT_NEAR(now[i].snr_db, committed[i].snr_db, kToleranceDb) << now[i].exact;
  }
  EXPECT_EQ(now.size(), committed.size());
  if (!HasFailure()) return;
  const std::filesystem::path fresh = std::filesystem::current_path() / "results.csv";
  std::ofstream file(fresh);
  file << kHeader << "\n";
  for (const Row& row : now) file << row.text() << "\n";
  std::cout << "If the change is meant: cp " << fresh.string() << " " << kResults.string() << "\n";
}

}  // namespace
}  // namespace hxq
