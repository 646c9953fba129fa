// Serves one tokenizer over stdin and stdout to parity.py.
// Request:  op (1 byte), flag (1 byte), size (u32, little-endian), payload.  Answer: size (u32), payload.
//   e  payload: bytes of a text; flag: add special tokens         answer: ids, i32
//   d  payload: ids, i32; flag: skip special tokens               answer: bytes of the text
//   s  the same through StreamDecoder                             answer: what each push and the flush gave, 0xFF
//   between
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "hxq/tokenizer.h"

namespace {

bool read_exactly(void* to, size_t size) { return std::fread(to, 1, size, stdin) == size; }

void answer(const void* bytes, size_t size) {
  const auto count = static_cast<uint32_t>(size);
  std::fwrite(&count, sizeof count, 1, stdout);
  if (size > 0) std::fwrite(bytes, 1, size, stdout);
  std::fflush(stdout);
}

std::string stream(const hxq::Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  hxq::StreamDecoder decoder(tokenizer, skip);
  std::string out;
  for (const int32_t id : ids) out += decoder.push(id) + '\xFF';
  return out + decoder.flush();
}

int serve(const char* dir) {
  const hxq::Tokenizer tokenizer = hxq::Tokenizer::load(dir);
  char header[6];
  std::string payload;
  while (read_exactly(header, sizeof header)) {
    uint32_t size = 0;
    std::memcpy(&size, header + 2, sizeof size);
    payload.resize(size);
    if (!read_exactly(payload.data(), size)) return 1;
    const bool flag = header[1] != 0;
    if (header[0] == 'e') {
      const std::vector<int32_t> ids = tokenizer.encode(payload, flag);
      answer(ids.data(), ids.size() * sizeof(int32_t));
      continue;
    }
    std::vector<int32_t> ids(size / sizeof(int32_t));
    if (!ids.empty()) std::memcpy(ids.data(), payload.data(), ids.size() * sizeof(int32_t));
    const std::string text = header[0] == 'd' ? tokenizer.decode(ids, flag) : stream(tokenizer, ids, flag);
    answer(text.data(), text.size());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tokenizer_driver FOLDER\n");
    return 2;
  }
  try {
    return serve(argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
