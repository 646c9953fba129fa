#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "hxq/error.h"
#include "hxq/tensor.h"

namespace hxq::tools {

/// An option that turns out to be wrong only with the model or the text at hand.
struct UsageError : Error {
  using Error::Error;
};

std::string not_as_expected(const std::string& expected, const std::string& found);

/// Accepts numbers that `holds` is true of; `expected` says in words which.
template <typename Holds>
CLI::Validator number(const std::string& expected, Holds holds) {
  const auto check = [expected, holds](const std::string& text) {
    double value = 0;
    if (CLI::detail::lexical_cast(text, value) && holds(value)) return std::string();
    return not_as_expected(expected, text);
  };
  return CLI::Validator(check, "");
}

/// Accepts whole numbers from `low` to `high`.
template <typename T = int64_t>
CLI::Validator whole_number(std::type_identity_t<T> low, std::type_identity_t<T> high = std::numeric_limits<T>::max()) {
  const auto check = [low, high](const std::string& text) {
    T value = 0, taken = 0;
    const char* end = text.data() + text.size();
    const auto [parsed_to, fault] = std::from_chars(text.data(), end, value);
    // CLI11 by itself takes what is too large for the largest number, and 010 for 8.
    const bool whole = parsed_to == end && fault == std::errc() && CLI::detail::lexical_cast(text, taken);
    if (whole && value == taken && value >= low && value <= high) return std::string();
    const bool open = high == std::numeric_limits<T>::max();
    return not_as_expected(
        open ? fmt::format("a whole number, at least {}", low) : fmt::format("a whole number from {} to {}", low, high),
        text);
  };
  return CLI::Validator(check, "");
}

/// -t,--threads.
CLI::Option* add_threads(CLI::App& app, int& threads, const std::string& description);

/// An option that takes a size, at least `least`: "5GB", "500MB" or bytes.
CLI::Option* add_size(CLI::App& app, const std::string& name, int64_t& bytes, int64_t least,
                      const std::string& description);

/// An option that takes one of `choices` by its name, in lower case or not; the default is what `dtype` has.
CLI::Option* add_dtype(CLI::App& app, const std::string& name, DType& dtype, const std::vector<DType>& choices,
                       const std::string& description);

/// An option that names a file or folder. An empty name, most likely of a variable that is not set, is wrong use.
CLI::Option* add_path(CLI::App& app, const std::string& name, std::string& path, const std::string& description);

/// DST, the folder that a verb makes. "-" is wrong use: elsewhere it is a standard stream, which takes no folder.
CLI::Option* add_new_folder(CLI::App& app, std::string& folder);

/// --max-shard-size.
CLI::Option* add_shard_size(CLI::App& app, int64_t& bytes);

/// What is wrong with the arguments, on one line that says where help is.
std::string usage_text(const CLI::App& app, const CLI::ParseError& error);

}  // namespace hxq::tools
