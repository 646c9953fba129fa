#include "io/utf8.h"

#include <gtest/gtest.h>

namespace hxq {
namespace {

// The examples of Unicode 15, 3.9 (tables 3-8 to 3-11) and the ends of the ranges; expected as Python's
// bytes.decode(errors="replace") gives.
TEST(Utf8, ReplacesEachMaximalIllFormedSubsequence) {
  const std::pair<std::string, std::string> cases[] = {
      {"plain", "plain"},
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "????????A"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "????????A"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "?????A??B"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "????A"},
      {"\xF0\x9F\x98", "?"},
      {"a\xE2\x82", "a?"},
      {"\xC2", "?"},
      {"\xC3\x28", "?("},
      {"\xEF\xBF\xBF\xF4\x8F\xBF\xBF\xED\x9F\xBF", "\xEF\xBF\xBF\xF4\x8F\xBF\xBF\xED\x9F\xBF"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF8\x88\x80\x80\x80", "?????"},
  };
  for (const auto& [bytes, marked] : cases) {
    std::string expected;
    for (const char c : marked) expected += c == '?' ? kReplacementCharacter : std::string_view(&c, 1);
    EXPECT_EQ(to_valid_utf8(bytes), expected);
    EXPECT_EQ(is_valid_utf8(bytes), bytes == expected);
  }
}

TEST(Utf8, TakingBytesOneByOneGivesTheSame) {
  const std::string bytes = "a\xC3\xA9\xE2\x82\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0\x80\xFFz\xF0\x9F";
  std::string pending, out;
  for (const char byte : bytes) {
    pending += byte;
    take_complete_utf8(pending, out);
    EXPECT_TRUE(is_valid_utf8(out));
    EXPECT_LT(pending.size(), 4u);
  }
  EXPECT_EQ(pending, "\xF0\x9F");
  EXPECT_EQ(out + std::string(kReplacementCharacter), to_valid_utf8(bytes));
}

TEST(Utf8, DecodesFromBothEnds) {
  for (const char32_t c :
       {U'\0', U'a', U'\u007f', U'\u0080', U'\u07ff', U'\u0800', U'\uffff', U'\U00010000', U'\U0010ffff'}) {
    const std::string text = to_utf8(c);
    EXPECT_EQ(first_code_point(text + "x").value, c);
    EXPECT_EQ(first_code_point(text + "x").size, text.size());
    EXPECT_EQ(last_code_point("x" + text).value, c);
  }
}

}  // namespace
}  // namespace hxq
