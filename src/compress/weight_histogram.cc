#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <set>

#include "codec/stored_tensors.h"
#include "folder/model_folder.h"
#include "hxq/error.h"
#include "hxq/report.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr int kBins = 120;
/// Bins end that many standard deviations from the mean: a few outliers would leave all other weights in one bin.
constexpr double kDeviations = 6;
/// Weights decoded at a time.
constexpr int64_t kBlockWeights = int64_t{1} << 18;

/// What is known of the finite weights of a block.
struct Moments {
  int64_t count = 0;
  int64_t not_finite = 0;
  double mean = 0;
  double squares = 0;  ///< sum of squared distances from the mean
  double least = std::numeric_limits<double>::infinity();
  double largest = -std::numeric_limits<double>::infinity();
};

/// Calls `look(block, weights)` for every block of rows, in any order, from several threads.
template <class Look>
void for_each_block(const StoredMatrix& matrix, int64_t block_rows, int blocks, int threads, Look look) {
  parallel_for(threads, blocks, [&](int block) {
    const int64_t begin = block * block_rows;
    const int64_t end = std::min(begin + block_rows, matrix.rows);
    std::vector<float> weights(static_cast<size_t>((end - begin) * matrix.cols));
    decode_dense_rows(matrix, begin, end, weights);
    look(static_cast<size_t>(block), weights);
  });
}

/// Sums are of distances from the first finite weight: those of weights that hardly differ would cancel.
Moments moments_of(const std::vector<float>& weights) {
  Moments moments;
  double first = 0, sum = 0, squares = 0;
  for (const float weight : weights) {
    if (!std::isfinite(weight)) {
      ++moments.not_finite;
      continue;
    }
    const double w = weight;
    if (moments.count++ == 0) first = w;
    const double distance = w - first;
    sum += distance;
    squares += distance * distance;
    moments.least = std::min(moments.least, w);
    moments.largest = std::max(moments.largest, w);
  }
  if (moments.count == 0) return moments;
  const double mean = sum / static_cast<double>(moments.count);
  moments.mean = first + mean;
  moments.squares = squares - sum * mean;
  return moments;
}

/// Joins blocks in their order, so that the ends of the bins do not depend on threads.
void set_range(const std::vector<Moments>& blocks, WeightHistogram& histogram) {
  Moments all;
  for (const Moments& block : blocks) {
    histogram.not_finite += block.not_finite;
    if (block.count == 0) continue;
    const auto before = static_cast<double>(all.count);
    all.count += block.count;
    const double share = static_cast<double>(block.count) / static_cast<double>(all.count);
    const double distance = block.mean - all.mean;
    all.mean += share * distance;
    all.squares += block.squares + before * share * distance * distance;
    all.least = std::min(all.least, block.least);
    all.largest = std::max(all.largest, block.largest);
  }
  if (all.count == 0) return;
  const double variance = all.squares / static_cast<double>(all.count);
  const double reach = variance > 0 ? kDeviations * std::sqrt(variance) : std::numeric_limits<double>::infinity();
  histogram.low = std::max(all.least, all.mean - reach);
  histogram.high = std::min(all.largest, all.mean + reach);
}

/// Adds weights to the counts, whose ends are set.
void count(const std::vector<float>& weights, WeightHistogram& histogram) {
  const double width = histogram.high - histogram.low;
  const double bins_per_unit = width > 0 ? kBins / width : 0;
  for (const float weight : weights) {
    const double w = weight;
    if (!std::isfinite(w)) continue;
    if (w < histogram.low) {
      ++histogram.below;
    } else if (w > histogram.high) {
      ++histogram.above;
    } else {
      const auto bin = static_cast<int>((w - histogram.low) * bins_per_unit);
      ++histogram.counts[static_cast<size_t>(std::min(bin, kBins - 1))];
    }
  }
}

void count_weights(const StoredMatrix& matrix, int threads, WeightHistogram& histogram) {
  histogram.counts.assign(kBins, 0);
  if (matrix.rows == 0 || matrix.cols == 0) return;
  const int64_t block_rows = std::max<int64_t>(1, kBlockWeights / matrix.cols);
  const auto blocks = static_cast<int>((matrix.rows - 1) / block_rows + 1);
  std::vector<Moments> moments(static_cast<size_t>(blocks));
  for_each_block(matrix, block_rows, blocks, threads,
                 [&](size_t block, const std::vector<float>& weights) { moments[block] = moments_of(weights); });
  set_range(moments, histogram);
  std::vector<WeightHistogram> parts(static_cast<size_t>(blocks), {.low = histogram.low, .high = histogram.high});
  for_each_block(matrix, block_rows, blocks, threads, [&](size_t block, const std::vector<float>& weights) {
    parts[block].counts.assign(kBins, 0);
    count(weights, parts[block]);
  });
  for (const WeightHistogram& part : parts) {
    for (size_t i = 0; i < part.counts.size(); ++i) histogram.counts[i] += part.counts[i];
    histogram.below += part.below;
    histogram.above += part.above;
  }
}

/// A tensor as a matrix with its last dimension along the columns.
std::unique_ptr<const StoredMatrix> exact_matrix(TensorView view) {
  const int64_t cols = view.shape.empty() ? 1 : view.shape.back();
  view.shape = {cols == 0 ? 0 : view.size() / cols, cols};
  return std::make_unique<ExactMatrix>(view);
}

/// The source's tensor; null without a source.
const TensorView* source_of(const std::optional<Checkpoint>& source, const StoredTensor& tensor, int64_t weights) {
  if (!source) return nullptr;
  const TensorView* view = source->find(tensor.name);
  if (!view) throw Error("missing", source->place(tensor.name));
  if (view->size() != weights) {
    throw Error(fmt::format("has {} weights, expected {}", view->size(), weights), source->place(tensor.name));
  }
  return view;
}

}  // namespace

std::vector<WeightHistogram> weight_histograms(const std::filesystem::path& dir, const Inspection& inspection,
                                               const HistogramOptions& options) {
  const ModelFolder folder = ModelFolder::open(dir);
  std::optional<Checkpoint> source;
  if (!options.source.empty()) source.emplace(Checkpoint::open(options.source));
  std::map<std::string_view, const InspectedTensor*> wanted;
  for (const InspectedTensor& tensor : inspection.tensors) wanted.emplace(tensor.name, &tensor);
  const int threads = options.threads > 0 ? options.threads : available_threads();
  std::vector<WeightHistogram> histograms;
  int64_t done = 0;
  for (const StoredTensor& tensor : list_tensors(folder.checkpoint)) {
    const auto listed = wanted.find(tensor.name);
    if (listed == wanted.end()) continue;
    if (options.progress) options.progress(tensor.name, done, inspection.stored_bytes);
    done += listed->second->stored_bytes;
    const TensorView* exact = tensor.codec ? nullptr : folder.checkpoint.find(tensor.name);
    if (exact && !is_float(exact->dtype)) continue;
    std::unique_ptr<const StoredMatrix> matrix =
        exact ? exact_matrix(*exact) : tensor.codec->read(folder.checkpoint, tensor.module, folder.shape_of(tensor));
    WeightHistogram histogram{.tensor = tensor.name, .levels = matrix->weight_levels()};
    if (const TensorView* view = source_of(source, tensor, matrix->rows * matrix->cols);
        view && is_float(view->dtype)) {
      histogram.of_source = true;
      matrix = exact_matrix(*view);
    }
    count_weights(*matrix, threads, histogram);
    histograms.push_back(std::move(histogram));
  }
  if (options.progress) options.progress({}, inspection.stored_bytes, inspection.stored_bytes);
  return histograms;
}

}  // namespace hxq
