#include "io/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "temp_dir.h"

namespace hxq {
namespace {

using Json = nlohmann::json;

uint64_t fault_offset(std::string_view text) {
  try {
    parse_json(text, "x.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.place().file, "x.json");
    return error.place().offset.value_or(UINT64_MAX);
  }
  ADD_FAILURE() << "accepted: " << text;
  return UINT64_MAX;
}

TEST(Json, TakesPythonsNonFiniteNumbers) {
  const Json json =
      parse_json(R"({"a": Infinity, "b": [-Infinity, NaN], "c": "NaN, Infinity \" -Infinity", "d":-1})", "x");
  EXPECT_EQ(json["a"], std::numeric_limits<double>::infinity());
  EXPECT_EQ(json["b"][0], -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(json["b"][1].is_number() && std::isnan(json["b"][1].get<double>()));
  EXPECT_EQ(json["c"], "NaN, Infinity \" -Infinity");
  EXPECT_EQ(json["d"], -1);
}

TEST(Json, WritesWhatItRead) {
  for (const std::string text : {R"({
  "a": [
    0.0,
    Infinity,
    {
      "__float__": "Infinity"
    }
  ],
  "b": {
    "\u0001\"": -Infinity,
    "c": NaN
  },
  "d": [],
  "e": {},
  "f": "Ã© Infinity",
  "g": 1e-05,
  "h": null
})",
                                 "NaN", "[]"}) {
    EXPECT_EQ(json_text(parse_json(text, "x")), text);
  }
  const Json finite = {{"a", {1, 2.5, "x"}}, {"b", Json::object()}, {"c", {{"d", true}}}};
  EXPECT_EQ(json_text(finite), finite.dump(2));
}

TEST(Json, IsStrictOtherwise) {
  for (std::string_view text :
       {"",      "{",    "{\"a\":1,}", "{'a':1}", "[1 2]",  "nan",      "inf",          "+1",
        "01",    "NaNx", "1Infinity",  "{NaN:1}", "//c\n1", "\"\x80\"", "\"\xc0\xaf\"", "\"\\ud800\"",
        "1e999", "{}{}", "\"a",        "\"\\",    "tru"}) {
    EXPECT_THROW(parse_json(text, "x"), Error) << text;
  }
}

TEST(Json, NamesTheByteOfTheOriginalText) {
  EXPECT_EQ(fault_offset("[1, x]"), 4u);
  EXPECT_EQ(fault_offset("[NaN, -Infinity, x]"), 17u);
  EXPECT_EQ(fault_offset("[NaN NaN]"), 5u);
}

TEST(Json, BoundsTheNesting) {
  EXPECT_NO_THROW(parse_json(std::string(128, '[') + std::string(128, ']'), "x"));
  EXPECT_EQ(fault_offset(std::string(129, '[') + std::string(129, ']')), 128u);
  EXPECT_EQ(fault_offset(std::string(1 << 24, '[')), 128u);
}

TEST(Json, BoundsTheValues) {
  std::string text = "[";
  for (int i = 0; i < 5'000'000; ++i) text += "[],";
  EXPECT_THROW(parse_json(text + "0]", "a.json"), Error);
  EXPECT_EQ(parse_json("[\"" + text + "\"]", "a.json").size(), 1) << "in a text they are none";
}

TEST(Json, OrderedKeepsTheOrderOfTheText) {
  EXPECT_EQ(json_text(parse_ordered_json(R"({"b":1,"a":{"d":NaN,"c":-Infinity},"b":2})", "x")),
            "{\n  \"b\": 2,\n  \"a\": {\n    \"d\": NaN,\n    \"c\": -Infinity\n  }\n}");
  EXPECT_THROW(parse_ordered_json("{", "x"), Error);
  // A long document is still read: keys come by name then.
  std::string many = "{\"z\":0";
  for (int i = 0; i < 20'000; ++i) many += ",\"" + std::to_string(i) + "\":0";
  EXPECT_EQ(parse_ordered_json(many + "}", "x").size(), 20'001u);
}

TEST(Json, KeepsLargeIntegersInWhatIsEdited) {
  const testing::TempDir dir;
  const std::string large = "100000000000000000000000000000000000000007";
  const std::string text = "{\n  \"b\": " + large + R"(,
  "a": [
    -9223372036854775809,
    -9223372036854775808,
    18446744073709551616,
    18446744073709551615,
    -Infinity,
    "18446744073709551616",
    1e+40,
    0.5
  ]
})";
  dir.write("a.json", text);
  EXPECT_EQ(json_text(load_json_to_edit(dir.path() / "a.json")), text);
  EXPECT_EQ(load_ordered_json(dir.path() / "a.json")["b"], 1e41);
  for (const std::string& number : {large + "0x", "0" + large, large + "-", "--" + large, large + "."}) {
    dir.write("b.json", "[" + number + "]");
    EXPECT_THROW(load_json_to_edit(dir.path() / "b.json"), Error) << number;
  }
  // What looks like its stand-in would come out as a number.
  dir.write("c.json", R"({"hxq bare literal": "18446744073709551616"})");
  EXPECT_THROW(load_json_to_edit(dir.path() / "c.json"), Error);
}

struct Recorder : JsonEvents {
  void begin(bool object) override { text += object ? '{' : '['; }
  void end() override { text += '.'; }
  void key(std::string_view name) override { text += std::string(name) + ":"; }
  void string(std::string_view value) override { text += "'" + std::string(value) + "'"; }
  void number(uint64_t value) override { text += std::to_string(value) + " "; }
  void null() override { text += '0'; }
  void other() override { text += '?'; }
  std::string text;
};

TEST(Json, IsReadPieceByPiece) {
  Recorder recorder;
  read_json(R"({"a":[1,-2,3.5,18446744073709551615,"x\u0041"],"b":{},"a":null,"c":true})", "x", recorder);
  EXPECT_EQ(recorder.text, "{a:[1 ??18446744073709551615 'xA'.b:{.a:0c:?.");
  for (const std::string_view text : {"", "{", "[1,]", "NaN", "{} {}", "\"\x80\""}) {
    EXPECT_THROW(read_json(text, "x", recorder), Error) << text;
  }
  try {
    read_json("[1, x]", "x", recorder, 8);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.place().offset, 12u);
  }
}

TEST(Json, LoadsAFileAndNamesItInErrors) {
  const testing::TempDir dir;
  EXPECT_EQ(load_json(dir.write("a.json", "[1]"))[0], 1);
  EXPECT_THROW(load_json(dir.write("empty.json", "")), Error);
  EXPECT_THROW(load_json(dir.path()), Error);
  try {
    load_json(dir.path() / "absent.json");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.place().file, (dir.path() / "absent.json").string());
    EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos) << error.what();
  }
}

TEST(Error, NamesItsFileUnlessAskedNotTo) {
  const Error placed("bad\nheader", {.file = "/home/me/model.safetensors", .tensor = "w", .offset = 8});
  EXPECT_STREQ(placed.what(), "/home/me/model.safetensors: tensor 'w': bad?header (at byte 8)");
  EXPECT_EQ(placed.without_file(), "tensor 'w': bad?header (at byte 8)");
  EXPECT_EQ(Error("no place").without_file(), "no place");
}

}  // namespace
}  // namespace hxq
