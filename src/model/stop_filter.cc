#include "model/stop_filter.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace hxq {
namespace {

/// Length of the longest end of `text` that begins `stop`.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

StopFilter::StopFilter(const std::vector<std::string>& stops) {
  std::ranges::copy_if(stops, std::back_inserter(stops_), [](const std::string& stop) { return !stop.empty(); });
}

std::string StopFilter::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) found = std::min(found, held_.find(stop));
  if (found != std::string::npos) {
    stopped_ = true;
    std::string certain = held_.substr(0, found);
    held_.clear();
    return certain;
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) keep = std::max(keep, overlap(held_, stop));
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopFilter::finish() { return std::exchange(held_, {}); }

}  // namespace hxq
