// A program that links the runtime library alone: tokens in, perplexity out.

#include <cstdio>

#include "hxq/error.h"
#include "hxq/perplexity.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const hxq::Model model = hxq::Model::open(argv[1]);
    const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
    return hxq::perplexity(model, tokens).tokens_scored == 7 ? 0 : 1;
  } catch (const hxq::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
