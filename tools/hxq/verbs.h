#pragma once

#include <CLI/CLI.hpp>
#include <functional>

/// One function per verb, each in the file of its name: declares the verb's options on `app` and returns what runs it.
/// The returned function gives the exit code: 0, or 1 when the answer is "no" (verify); it throws `hxq::Error` on
/// failure.
namespace hxq::tools {

using RunVerb = std::function<int()>;

RunVerb add_compress(CLI::App& app);
RunVerb add_inspect(CLI::App& app);
RunVerb add_verify(CLI::App& app);
RunVerb add_decompress(CLI::App& app);
RunVerb add_generate(CLI::App& app);
RunVerb add_chat(CLI::App& app);
RunVerb add_perplexity(CLI::App& app);
RunVerb add_report(CLI::App& app);
RunVerb add_serve(CLI::App& app);
RunVerb add_bench(CLI::App& app);

}  // namespace hxq::tools
