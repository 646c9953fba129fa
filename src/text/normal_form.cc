#include "text/normal_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "hxq/error.h"
#include "io/utf8.h"

namespace hxq::text {

namespace {

struct Range {
  char32_t first, last;
};

// Characters assigned after Unicode 9.0 (up to 18.0) that decompose, compose as the first of a pair, or have a
// combining class. Ascending.
constexpr Range kNewer[] = {
    {0x0558, 0x0558},   {0x058B, 0x058C},   {0x05C8, 0x05C9},   {0x07FD, 0x07FD},   {0x0897, 0x089F},
    {0x08CA, 0x08D3},   {0x09FE, 0x09FE},   {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},
    {0x1715, 0x1715},   {0x1ABF, 0x1AF0},   {0x1DF6, 0x1DFA},   {0x209D, 0x209F},   {0x32FF, 0x32FF},
    {0xA7F1, 0xA7F4},   {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x105C9, 0x105C9}, {0x105D2, 0x105D2},
    {0x105DA, 0x105DA}, {0x105E4, 0x105E4}, {0x10781, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BF},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF}, {0x10EF0, 0x10EFB},
    {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x11382, 0x11385}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x11391}, {0x113C2, 0x113C2},
    {0x113C5, 0x113C5}, {0x113C7, 0x113C8}, {0x113CE, 0x113D0}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1611E, 0x1611E}, {0x16121, 0x16129}, {0x1612F, 0x1612F},
    {0x16D63, 0x16D63}, {0x16D67, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1B123, 0x1B126}, {0x1CCD6, 0x1CCF9},
    {0x1D127, 0x1D128}, {0x1D250, 0x1D252}, {0x1D25B, 0x1D25C}, {0x1D25F, 0x1D25F}, {0x1D280, 0x1D281},
    {0x1D6A6, 0x1D6A6}, {0x1DF95, 0x1DF95}, {0x1DFCD, 0x1DFFF}, {0x1E030, 0x1E06D}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
    {0x1E6E3, 0x1E6E3}, {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5}, {0x1F16C, 0x1F16C},
    {0x1FBF0, 0x1FBF9},
};

bool is_newer(char32_t c) {
  const auto range =
      std::lower_bound(std::begin(kNewer), std::end(kNewer), c, [](const Range& r, char32_t v) { return r.last < v; });
  return range != std::end(kNewer) && range->first <= c;
}

utf8proc_option_t decompose_options(NormalForm form) {
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
}

bool composes(NormalForm form) { return form == NormalForm::nfc || form == NormalForm::nfkc; }

// Code points below this are as they should be, have no combining class and do not compose with one before.
char32_t first_active(NormalForm form) { return form == NormalForm::nfc ? 0x300 : 0x80; }

using CodePoints = std::vector<utf8proc_int32_t>;

void append_decomposition(char32_t c, utf8proc_option_t options, CodePoints& out) {
  constexpr size_t kLongest = 32;  // the longest decomposition is 18
  const size_t before = out.size();
  out.resize(before + kLongest);
  int boundary_class = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), out.data() + before, kLongest, options,
                                             &boundary_class);
  if (count < 0 || count > static_cast<utf8proc_ssize_t>(kLongest)) throw Error("cannot normalize a text: utf8proc");
  out.resize(before + static_cast<size_t>(count));
}

// Canonical ordering: each run of combining characters by class, equal ones as they were.
void order_marks(CodePoints& points) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto at = points.begin(); at != points.end();) {
    if (combining_class(*at) == 0) {
      ++at;
      continue;
    }
    const auto end = std::find_if(at, points.end(), [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(at, end, [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    at = end;
  }
}

void append_normalized(std::string_view segment, NormalForm form, CodePoints& points, std::string& out) {
  points.clear();
  const utf8proc_option_t options = decompose_options(form);
  for (size_t at = 0; at < segment.size();) {
    const CodePoint c = first_code_point(segment.substr(at));
    append_decomposition(c.value, options, points);
    at += c.size;
  }
  order_marks(points);
  if (composes(form)) {
    const auto count = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                                                static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (count < 0) throw Error("cannot normalize a text: utf8proc");
    points.resize(static_cast<size_t>(count));
  }
  for (const utf8proc_int32_t c : points) append_code_point(out, static_cast<char32_t>(c));
}

}  // namespace

// Only the stretches of active characters, each with the character before it (which it may compose with), go through
// utf8proc; a newer character ends a stretch.
std::string normalize(std::string_view text, NormalForm form) {
  std::string out;
  out.reserve(text.size());
  CodePoints points;
  const char32_t active = first_active(form);
  const size_t none = text.size();
  size_t copied = 0, base = none;
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = first_code_point(text.substr(at));
    if (c.value < active || is_newer(c.value)) {
      base = c.value < active ? at : none;
      at += c.size;
      continue;
    }
    const size_t begin = base == none ? at : base;
    out += text.substr(copied, begin - copied);
    while (at < text.size()) {
      const CodePoint next = first_code_point(text.substr(at));
      if (next.value < active || is_newer(next.value)) break;
      at += next.size;
    }
    append_normalized(text.substr(begin, at - begin), form, points, out);
    copied = at;
    base = none;
  }
  out += text.substr(copied);
  return out;
}

}  // namespace hxq::text
