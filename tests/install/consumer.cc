// A program that knows the installed headers and libraries alone: compresses a folder, scores tokens, writes with it
// and serves it for a moment.

#include <cstdio>

#include "hxq/compress.h"
#include "hxq/error.h"
#include "hxq/generate.h"
#include "hxq/perplexity.h"
#include "hxq/serve.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    const hxq::Receipt receipt = hxq::compress(argv[1], argv[2]);
    const hxq::Model model = hxq::Model::open(argv[2]);
    const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
    const hxq::PerplexityResult result = hxq::perplexity(model, tokens);
    const hxq::Tokenizer tokenizer = hxq::Tokenizer::load(argv[2]);
    const hxq::GenerateResult text = hxq::generate(model, tokenizer, "The", {.max_tokens = 4});
    hxq::Server server(model, tokenizer, nullptr, {.port = 0, .interrupted = [] { return true; }});
    server.run();
    std::printf("%lld tensors, %lld tokens, perplexity %.3f\n",
                static_cast<long long>(receipt.totals.tensors_compressed), static_cast<long long>(result.tokens_scored),
                result.perplexity);
    return receipt.totals.tensors_compressed == 49 && result.tokens_scored == 7 && text.tokens.size() == 4 ? 0 : 1;
  } catch (const hxq::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
