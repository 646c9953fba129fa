#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "hxq/chat.h"
#include "hxq/generate.h"

namespace hxq::tools {

/// An option that may be given again and again, with one text each time, taken as it is.
CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& texts,
                       const std::string& description);

/// How to choose tokens and when to stop: the options that all verbs share which generate text.
void add_generation_options(CLI::App& app, GenerateOptions& options);

/// Throws `Error` where no message would reach the model: another file, or a template for messages in parts.
void check_shows_messages(const ChatTemplate& chat_template, const Tokenizer& tokenizer);

/// What was generated and how fast, for --json.
nlohmann::ordered_json result_json(const GenerateResult& result);

/// JSON as the command prints it; `indent` < 0: on one line.
std::string dumped(const nlohmann::ordered_json& json, int indent);

/// One line about the speed, on standard error. seconds: that all of them took.
void print_speed(const std::vector<GenerateResult>& results, double seconds);

}  // namespace hxq::tools
