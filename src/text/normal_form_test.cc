#include "text/normal_form.h"

#include <gtest/gtest.h>

namespace hxq::text {
namespace {

TEST(NormalForm, FollowsTheExamplesOfTheStandard) {
  // Unicode Standard Annex 15, figures 3 to 6.
  struct Case {
    const char *source, *nfd, *nfc, *nfkd, *nfkc;
  };
  const Case cases[] = {
      {"\u212B", "A\u030A", "\u00C5", "A\u030A", "\u00C5"},
      {"\u2126", "\u03A9", "\u03A9", "\u03A9", "\u03A9"},
      {"\u1E0B\u0323", "d\u0323\u0307", "\u1E0D\u0307", "d\u0323\u0307", "\u1E0D\u0307"},
      {"q\u0307\u0323", "q\u0323\u0307", "q\u0323\u0307", "q\u0323\u0307", "q\u0323\u0307"},
      {"\uFB01", "\uFB01", "\uFB01", "fi", "fi"},
      {"2\u2075", "2\u2075", "2\u2075", "25", "25"},
      {"\u1E9B\u0323", "\u017F\u0323\u0307", "\u1E9B\u0323", "s\u0323\u0307", "\u1E69"},
      {"\uAC01", "\u1100\u1161\u11A8", "\uAC01", "\u1100\u1161\u11A8", "\uAC01"},
      {"\u1100\u1161\u11A8", "\u1100\u1161\u11A8", "\uAC01", "\u1100\u1161\u11A8", "\uAC01"},
      {"\u0344", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301", "\u0308\u0301"},
      {"\u0958", "\u0915\u093C", "\u0915\u093C", "\u0915\u093C", "\u0915\u093C"},
      {"\u00A0x", "\u00A0x", "\u00A0x", " x", " x"},
  };
  for (const Case& c : cases) {
    // In the middle of other text, which must stay.
    for (const std::string before : {"", "plain ", "\u00e9tat.", "\u4e00"}) {
      for (const std::string after : {"", " z", "\u4e00\n"}) {
        EXPECT_EQ(normalize(before + c.source + after, NormalForm::nfc),
                  normalize(before, NormalForm::nfc) + c.nfc + after);
        EXPECT_EQ(normalize(before + c.source + after, NormalForm::nfd),
                  normalize(before, NormalForm::nfd) + c.nfd + after);
        EXPECT_EQ(normalize(before + c.source + after, NormalForm::nfkd),
                  normalize(before, NormalForm::nfkd) + c.nfkd + after);
        EXPECT_EQ(normalize(before + c.source + after, NormalForm::nfkc),
                  normalize(before, NormalForm::nfkc) + c.nfkc + after);
      }
    }
  }
}

TEST(NormalForm, ComposesWithAPlainCharacterBefore) {
  EXPECT_EQ(normalize("ae\u0301e", NormalForm::nfc), "a\u00e9e");
  EXPECT_EQ(normalize("\u00e2\u0301", NormalForm::nfc), "\u1ea5");
}

TEST(NormalForm, CharactersAfterUnicode9StayAsTheyAre) {
  EXPECT_EQ(normalize("\u32ff", NormalForm::nfkc), "\u32ff");
  EXPECT_EQ(normalize("\U00011935\U00011930", NormalForm::nfc), "\U00011935\U00011930");
  EXPECT_EQ(normalize("a\u0898\u0334", NormalForm::nfd), "a\u0898\u0334");  // 0334 does not move over it
  EXPECT_EQ(normalize("a\u0301\u0334", NormalForm::nfd), "a\u0334\u0301");
}

TEST(NormalForm, OrdersALongRunOfMarks) {
  std::string above, below;
  for (int i = 0; i < 50000; ++i) above += "\u0307", below += "\u0323";
  EXPECT_EQ(normalize("q" + above + below, NormalForm::nfd), "q" + below + above);
}

}  // namespace
}  // namespace hxq::text
