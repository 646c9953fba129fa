#pragma once

#include <string>
#include <string_view>

namespace hxq::text {

/// The normalization forms of Unicode Standard Annex 15.
enum class NormalForm { nfc, nfd, nfkc, nfkd };

/// `text`, valid UTF-8, in that form as Hugging Face computes it: with the data of Unicode 9.0, for which characters
/// assigned later neither decompose, compose nor reorder.
std::string normalize(std::string_view text, NormalForm form);

}  // namespace hxq::text
