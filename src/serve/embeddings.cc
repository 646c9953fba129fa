#include "serve/embeddings.h"

#include <fmt/format.h>

#include <boost/archive/iterators/base64_from_binary.hpp>
#include <boost/archive/iterators/transform_width.hpp>
#include <cstring>
#include <utility>

#include "serve/completion.h"
#include "serve/completion_request.h"
#include "serve/parameters.h"

namespace hxq::serve {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMostTexts = 2048;  // as OpenAI's

/// The numbers as they lie in memory, which is little-endian wherever this runs.
std::string base64_of(const std::vector<float>& numbers) {
  const size_t size = numbers.size() * sizeof(float), missing = (3 - size % 3) % 3;
  std::string bytes(size + missing, '\0');
  std::memcpy(bytes.data(), numbers.data(), size);
  using SixBits = boost::archive::iterators::transform_width<const char*, 6, 8>;
  using Letters = boost::archive::iterators::base64_from_binary<SixBits>;
  std::string text(Letters(bytes.data()), Letters(bytes.data() + bytes.size()));
  return text.replace(text.size() - missing, missing, missing, '=');
}

/// As a list of JSON. Whole numbers are written as floats too: clients with strict types tell 1.0 from 1.
void put_list(std::string& text, const std::vector<float>& numbers) {
  char separator = '[';
  for (const float number : numbers) {
    text += std::exchange(separator, ',');
    const size_t start = text.size();
    text += fmt::format("{}", number);
    if (text.find_first_of(".e", start) == text.npos) text += ".0";
  }
  text += ']';
}

}  // namespace

int64_t EmbeddingRequest::tokens() const noexcept {
  int64_t sum = 0;
  for (const auto& text : texts) sum += std::ssize(text);
  return sum;
}

EmbeddingRequest read_embedding_request(std::string_view body, const ServedModel& served) {
  Parameters parameters(body);
  check_model(parameters, served);
  EmbeddingRequest request;
  const std::string format = parameters.text("encoding_format").value_or("float");
  if (format != "float" && format != "base64") refuse_value("encoding_format", "float or base64", format);
  request.base64 = format == "base64";
  parameters.only("dimensions", {served.model.info().hidden_size});
  parameters.label("user");
  parameters.label("input");
  parameters.finish();  // before any work
  request.texts = read_texts(parameters, "input", kMostTexts, served);
  for (const auto& text : request.texts) {
    if (std::ssize(text) <= served.context) continue;
    throw bad_request(fmt::format("the context holds {} tokens, a text has {}", served.context, text.size()), "input",
                      "context_length_exceeded");
  }
  return request;
}

EmbeddingAnswer::EmbeddingAnswer(EmbeddingRequest request, const ServedModel& served)
    : request_(std::move(request)), served_(served), embeddings_(request_.texts.size()), open_(request_.texts.size()) {}

void EmbeddingAnswer::add(size_t text, Update update) {
  if (!update.ending) return;
  --open_;
  if (!update.ending->fault.empty() && !fault_) fault_ = fault_of(*update.ending);
  embeddings_[text] = std::move(update.embedding);
}

std::string EmbeddingAnswer::take_piece() {
  constexpr size_t kPiece = 64 << 10;
  std::string piece;
  if (is_taken_) return piece;
  if (taken_ == 0) piece = R"({"object":"list","data":[)";
  for (; taken_ < embeddings_.size() && piece.size() < kPiece; ++taken_) {
    const std::vector<float> numbers = std::move(embeddings_[taken_]);
    piece += fmt::format(R"({}{{"object":"embedding","index":{},"embedding":)", taken_ > 0 ? "," : "", taken_);
    if (request_.base64) {
      piece += fmt::format(R"("{}"}})", base64_of(numbers));
    } else {
      put_list(piece, numbers);
      piece += '}';
    }
  }
  if (taken_ < embeddings_.size()) return piece;
  is_taken_ = true;
  const int64_t tokens = request_.tokens();
  const ordered_json rest = {{"model", served_.name}, {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
  return piece + "]," + dumped(rest).substr(1);
}

}  // namespace hxq::serve
