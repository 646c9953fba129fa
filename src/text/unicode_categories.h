#pragma once

#include <span>

namespace hxq::text {

/// Code points `first` to `last` are of the general category `category`.
struct CategoryRange {
  char32_t first;
  char32_t last;
  char category[3];
};

/// The code points assigned in Unicode 15.0, 15.1 and 16.0 (the version of Oniguruma 6.9.10, which Hugging Face uses),
/// with their categories, and U+1171E, which changed its own. PCRE2 10.40 to 10.42 know Unicode 14.0 only. Ascending.
std::span<const CategoryRange> categories_since_unicode_15();

}  // namespace hxq::text
