#include "model/stop_filter.h"

#include <gtest/gtest.h>

namespace hxq {
namespace {

/// What comes through when the text arrives in pieces of that many bytes.
std::string filtered(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopFilter filter(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece) out += filter.push(text.substr(at, piece));
  return filter.stopped() ? out : out + filter.finish();
}

TEST(StopFilter, CutsBeforeTheFirstStopHoweverTextArrives) {
  for (size_t piece = 1; piece <= 12; ++piece) {
    EXPECT_EQ(filtered({"END"}, "one ENEND two", piece), "one EN");
    EXPECT_EQ(filtered({"zz", "two"}, "one two zz", piece), "one ");
    EXPECT_EQ(filtered({"", "absent"}, "one abse", piece), "one abse");
    EXPECT_EQ(filtered({"aab"}, "aaaaab", piece), "aaa");
  }
}

TEST(StopFilter, HoldsBackOnlyWhatMayBeAStop) {
  StopFilter filter({"stop"});
  EXPECT_EQ(filter.push("text st"), "text ");
  EXPECT_EQ(filter.push("ar"), "star");
  EXPECT_FALSE(filter.stopped());
  EXPECT_EQ(filter.push(" stop more"), " ");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push("x"), "");
}

}  // namespace
}  // namespace hxq
