#include "usage.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "hxq/model.h"

namespace hxq::tools {
namespace {

/// Arguments that belong to no option, in the order they were given.
std::vector<std::string> unexpected(const CLI::App& app) {
  std::vector<std::string> arguments = app.remaining();
  std::erase(arguments, "--");
  return arguments;
}

std::string fault_text(const CLI::App& app, const CLI::ParseError& error) {
  std::vector<std::string> extra = unexpected(app);
  const bool no_verb = app.get_parent() == nullptr;
  // What follows "--" is left to the command itself.
  if (!no_verb) std::ranges::copy(unexpected(*app.get_parent()), std::back_inserter(extra));
  if (!extra.empty() && (no_verb || dynamic_cast<const CLI::ExtrasError*>(&error))) {
    return fmt::format("unexpected argument{}: {}", extra.size() > 1 ? "s" : "", fmt::join(extra, " "));
  }
  if (no_verb && dynamic_cast<const CLI::RequiredError*>(&error)) return "expected a verb";
  const std::string fault = error.what();
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) && fault.ends_with(" missing")) {
    return fault.substr(0, fault.find(':')) + " needs a value";
  }
  return fault;
}

}  // namespace

std::string not_as_expected(const std::string& expected, const std::string& found) {
  return fmt::format("expected {}, found {}", expected, found.empty() ? "nothing" : found);
}

CLI::Option* add_threads(CLI::App& app, int& threads, const std::string& description) {
  return app.add_option("-t,--threads", threads, description)->check(whole_number(0, kMaxThreads));
}

CLI::Option* add_size(CLI::App& app, const std::string& name, int64_t& bytes, int64_t least,
                      const std::string& description) {
  const auto parse = [&bytes, name, least](const std::vector<std::string>& given) {
    const std::string& text = given.back();
    int64_t count = 0;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), count);
    const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
    int64_t scale = 0;
    for (const auto& [unit_name, size] :
         {std::pair<std::string_view, int64_t>{"", 1}, {"KB", 1000}, {"MB", 1'000'000}, {"GB", 1'000'000'000}}) {
      if (unit == unit_name) scale = size;
    }
    const bool fits =
        fault == std::errc() && scale > 0 && count >= least && !__builtin_mul_overflow(count, scale, &bytes);
    if (!fits) throw CLI::ValidationError(name, not_as_expected("a size such as 5GB, 500MB or 1000000", text));
    return true;
  };
  return app.add_option(name, CLI::callback_t(parse), description)->type_name("SIZE")->type_size(1)->expected(1);
}

CLI::Option* add_dtype(CLI::App& app, const std::string& name, DType& dtype, const std::vector<DType>& choices,
                       const std::string& description) {
  const auto lower_name = [](DType type) { return CLI::detail::to_lower(std::string(name_of(type))); };
  const auto take = [&dtype, choices, lower_name](const std::string& given) {
    dtype = *std::ranges::find(choices, given, lower_name);
  };
  std::vector<std::string> names;
  std::ranges::transform(choices, std::back_inserter(names), lower_name);
  return app.add_option_function<std::string>(name, take, description)
      ->transform(CLI::IsMember(names, CLI::ignore_case))
      ->default_str(lower_name(dtype));
}

CLI::Option* add_path(CLI::App& app, const std::string& name, std::string& path, const std::string& description) {
  const auto check = [](const std::string& text) { return text.empty() ? not_as_expected("a path", text) : ""; };
  return app.add_option(name, path, description)->check(CLI::Validator(check, ""));
}

CLI::Option* add_new_folder(CLI::App& app, std::string& folder) {
  const auto check = [](const std::string& text) {
    return text == "-" ? not_as_expected("a folder to create (./- makes one of that name)", text) : "";
  };
  return app.add_option("DST", folder, "Folder to create")->required()->check(CLI::Validator(check, ""));
}

CLI::Option* add_shard_size(CLI::App& app, int64_t& bytes) {
  return add_size(app, "--max-shard-size", bytes, 1,
                  "Tensors in one file at most; more become shards with an index (5GB)");
}

std::string usage_text(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<const CLI::App*> verbs = app.get_subcommands([](const CLI::App*) { return true; });
  const auto verb = std::ranges::find_if(verbs, [](const CLI::App* any) { return any->parsed(); });
  std::string fault = fault_text(verb == verbs.end() ? app : **verb, error);
  std::ranges::replace_if(
      fault, [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  return fmt::format("{} (see hxq {}--help)", fault, verb == verbs.end() ? "" : (*verb)->get_name() + " ");
}

}  // namespace hxq::tools
