#include "text/regex.h"

#include <gtest/gtest.h>

#include <vector>

#include "hxq/error.h"
#include "io/utf8.h"

namespace hxq::text {
namespace {

std::vector<std::string> matches(std::string_view pattern, const std::string& subject,
                                 Regex::Syntax syntax = Regex::Syntax::oniguruma) {
  const Regex regex(pattern, syntax);
  std::vector<std::string> out;
  RegexScan(regex).for_each_match(subject,
                                  [&](size_t begin, size_t end) { out.push_back(subject.substr(begin, end - begin)); });
  return out;
}

bool is_member(std::string_view character_class, char32_t c) { return !matches(character_class, to_utf8(c)).empty(); }

using Strings = std::vector<std::string>;

TEST(Regex, WhiteSpaceIsThePropertyWhiteSpace) {
  for (char32_t c = 0; c < 0x3100; ++c) {
    EXPECT_EQ(is_member("\\s", c), is_white_space(c)) << static_cast<uint32_t>(c);
    EXPECT_EQ(is_member("[^\\S]", c), is_white_space(c)) << static_cast<uint32_t>(c);
    EXPECT_EQ(is_member("\\S", c), !is_white_space(c)) << static_cast<uint32_t>(c);
  }
  EXPECT_FALSE(is_member("\\s", 0x180E));
}

TEST(Regex, KnowsTheCharactersOfUnicode16) {
  EXPECT_TRUE(is_member("\\p{L}", 0x31350));    // CJK extension H, 15.0
  EXPECT_TRUE(is_member("[\\p{L}]", 0x2EBF0));  // CJK extension I, 15.1
  EXPECT_TRUE(is_member("\\p{Lu}", 0xA7CB));    // 16.0
  EXPECT_FALSE(is_member("\\P{L}", 0xA7CB));
  EXPECT_FALSE(is_member("[^\\s\\p{L}\\p{N}]", 0x10D40));  // a digit of 16.0
  EXPECT_TRUE(is_member("\\d", 0x10D40));
  EXPECT_TRUE(is_member("\\p{Han}", 0x323AF));
  EXPECT_FALSE(is_member("\\p{Han}", 0x3001));  // common, though Han is among its Script_Extensions
}

TEST(Regex, FollowsOnigurumaWhereTheSyntaxDiffers) {
  EXPECT_EQ(matches("^.$", "a\nb"), (Strings{"a", "b"}));
  EXPECT_EQ(matches("(?m:a.b)", "a\nb"), (Strings{"a\nb"}));
  EXPECT_EQ(matches("a.b", "a\nb"), Strings{});
  EXPECT_EQ(matches("\\h+", "xfe09g"), (Strings{"fe09"}));
  EXPECT_EQ(matches("a{,2}b", "aaab"), (Strings{"aab"}));
  EXPECT_EQ(matches("[a[bc]]+", "xabcd"), (Strings{"abc"}));
  EXPECT_EQ(matches("\\v", "\n\v"), (Strings{"\v"}));
  EXPECT_EQ(matches("\\u00e9", "\u00e9"), (Strings{"\u00e9"}));
  EXPECT_EQ(matches("(?i:'s|'LL)", "it's I'll x'\u017f"), (Strings{"'s", "'ll", "'\u017f"}));
  EXPECT_EQ(matches("a{x}", "a{x}"), (Strings{"a{x}"}));
  EXPECT_EQ(matches("(?<n>a)(?!b)", "aba"), (Strings{"a"}));
}

TEST(Regex, EmptyMatchesDoNotFollowAMatchDirectly) {
  EXPECT_EQ(matches("x*", "axxb"), (Strings{"", "xx", ""}));
  EXPECT_EQ(matches("x*", "\u00e9"), (Strings{"", ""}));
  EXPECT_EQ(matches("x*", ""), Strings{});
}

TEST(Regex, LiteralsStandForThemselves) {
  EXPECT_EQ(matches("a.[", "a.[ab[", Regex::Syntax::literal), (Strings{"a.["}));
}

TEST(Regex, ALongSubjectNeedsNoDeepStack) {
  const std::string spaces(1 << 20, ' ');
  EXPECT_EQ(matches("\\s+(?!\\S)|\\s+", spaces + "a"), (Strings{spaces.substr(1), " "}));
  EXPECT_EQ(matches("(?:a|b)+", std::string(1 << 20, 'a')).size(), 1u);
}

TEST(Regex, RejectsWhatHasNoEqual) {
  for (const char* pattern : {"[a&&b]", "[[:alpha:]]", "\\q", "(", "a{2}+", "\\p{Nonsense}", "\\p", "[a", "(?s:a)",
                              "[\\b]", "[\\P{L}]", "\\u12", "a\\"}) {
    EXPECT_THROW(Regex(pattern, Regex::Syntax::oniguruma), Error) << pattern;
  }
}

}  // namespace
}  // namespace hxq::text
