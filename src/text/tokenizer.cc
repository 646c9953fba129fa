#include "hxq/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "hxq/error.h"
#include "io/system_error.h"
#include "io/utf8.h"
#include "text/sentencepiece_file.h"
#include "text/tokenizer_impl.h"

namespace hxq {

namespace {

using text::JsonPart;

constexpr std::array<std::string_view, 1> kKnownModels = {"BPE"};

template <class Part>
Part optional_part(const JsonPart& root, std::string_view key) {
  return root.has(key) ? Part(root.child(key)) : Part();
}

// Old files leave out the type of a BPE model.
text::Bpe load_model(text::TokenizerFile& file, const JsonPart& root) {
  const JsonPart model = root.child("model");
  const std::string type = model.string_or("type", model.has("merges") ? "BPE" : "none");
  if (type != "BPE") model.fail_unknown(type, kKnownModels);
  return text::Bpe(file, model);
}

/// What lies of the ranges in [begin, end), counted from there.
std::vector<TextRange> within(std::span<const TextRange> ranges, size_t begin, size_t end) {
  std::vector<TextRange> inside;
  for (const TextRange& range : ranges) {
    const size_t first = std::max(range.begin, begin), last = std::min(range.end, end);
    if (first < last) inside.push_back({first - begin, last - begin});
  }
  return inside;
}

text::TokenizerFile read_checked(const std::filesystem::path& path, const text::FolderTokens& tokens) {
  text::TokenizerFile file = text::read_tokenizer_file(path);
  const JsonPart root(file.json, file.name, "");
  if (!file.json.is_object()) {
    throw Error(fmt::format("found {}, expected an object with the member 'model'", file.json.type_name()),
                {.file = file.name});
  }
  const std::string version = root.string_or("version", "1.0");
  if (version != "1.0") root.child("version").fail(fmt::format("found '{}', expected '1.0'", version));
  file.json["added_tokens"] = text::merged_added_tokens(file.json.value("added_tokens", nlohmann::json()), tokens);
  return file;
}

size_t count_tokens(const text::TokenTable& vocab, const text::TokenTable& added) {
  size_t count = vocab.size();
  added.for_each([&](std::string_view token, int32_t) { count += !vocab.id_of(token); });
  return count;
}

}  // namespace

Tokenizer::Impl::Impl(text::TokenizerFile file) : Impl(file, JsonPart(file.json, file.name, "")) {}

Tokenizer::Impl::Impl(text::TokenizerFile& file, const JsonPart& root)
    : normalizer(optional_part<text::Normalizer>(root, "normalizer")),
      pre_tokenizer(optional_part<text::PreTokenizer>(root, "pre_tokenizer")),
      model(load_model(file, root)),
      post_processor(optional_part<text::PostProcessor>(root, "post_processor")),
      decoder(optional_part<text::Decoder>(root, "decoder")),
      added(root, model.tokens(), normalizer),
      size(count_tokens(model.tokens(), added.table())),
      bos(file.bos),
      eos(file.eos),
      pad(file.pad),
      unk(file.unk) {}

std::optional<int32_t> Tokenizer::Impl::id_of(std::string_view token) const {
  const auto id = added.table().id_of(token);
  return id ? id : model.tokens().id_of(token);
}

std::optional<std::string_view> Tokenizer::Impl::token_of(int32_t id) const {
  const auto token = added.table().token_of(id);
  return token ? token : model.tokens().token_of(id);
}

void Tokenizer::Impl::name_tokens(const text::FolderTokens& tokens) {
  for (const auto& [name, id] :
       {std::pair{"bos_token", &bos}, {"eos_token", &eos}, {"pad_token", &pad}, {"unk_token", &unk}}) {
    if (const auto content = tokens.content_of(name)) *id = id_of(*content);
  }
}

void Tokenizer::Impl::encode_piece(text::Words& words, text::Bpe::Scratch& scratch, std::vector<int32_t>& out) const {
  pre_tokenizer.apply(words);
  for (const text::Span& span : words.spans) {
    model.encode(std::string_view(words.text).substr(span.begin, span.end - span.begin), scratch, out);
  }
}

// Cuts out the added tokens that match as they are, normalizes what is left, cuts out those that match normalized, and
// encodes what is left then.
void Tokenizer::Impl::encode_text(std::string_view text, std::span<const TextRange> plain,
                                  std::vector<int32_t>& out) const {
  text::Bpe::Scratch scratch;
  for (const auto& raw : added.cut_raw(text, plain)) {
    if (raw.begin == raw.end) continue;
    if (raw.id) {
      out.push_back(*raw.id);
      continue;
    }
    const std::string_view original = text.substr(raw.begin, raw.end - raw.begin);
    const std::string normalized = normalizer.apply(original);
    std::vector<TextRange> plain_here = within(plain, raw.begin, raw.end);
    // Where normalizing moves the text, its ranges are not known any more.
    if (!plain_here.empty() && normalized != original) plain_here = {{0, normalized.size()}};
    for (const auto& piece : added.cut_normalized(normalized, plain_here)) {
      if (piece.begin == piece.end) continue;
      if (piece.id) {
        out.push_back(*piece.id);
        continue;
      }
      text::Words words = {.text = normalized.substr(piece.begin, piece.end - piece.begin)};
      words.spans = {{0, words.text.size()}};
      words.at_start = raw.begin == 0 && piece.begin == 0;
      encode_piece(words, scratch, out);
    }
  }
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::filesystem::path& dir) {
  const bool sentencepiece = !is_there(dir / "tokenizer.json") && is_there(dir / "tokenizer.model");
  if (!sentencepiece && !is_there(dir / "tokenizer.json")) {
    const bool is_slow = is_there(dir / "vocab.json") || is_there(dir / "vocab.txt");
    throw Error(fmt::format("holds no tokenizer: expected tokenizer.json or tokenizer.model{}",
                            is_slow ? " (transformers makes one of the vocabulary there, with save_pretrained)" : ""),
                {.file = dir.string()});
  }
  const text::FolderTokens tokens = text::read_folder_tokens(dir);
  auto impl = std::make_unique<Impl>(sentencepiece ? text::read_sentencepiece_file(dir / "tokenizer.model")
                                                   : read_checked(dir / "tokenizer.json", tokens));
  impl->name_tokens(tokens);
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8, bool add_special_tokens) const {
  std::string repaired;
  if (!is_valid_utf8(utf8)) {
    repaired = to_valid_utf8(utf8);
    utf8 = repaired;
  }
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = impl_->post_processor.before();
  impl_->encode_text(utf8, {}, ids);
  if (add_special_tokens) {
    const auto& after = impl_->post_processor.after();
    ids.insert(ids.end(), after.begin(), after.end());
  }
  return ids;
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8, std::span<const TextRange> plain) const {
  if (!is_valid_utf8(utf8)) throw Error("a text with ranges is not UTF-8");
  std::vector<int32_t> ids;
  impl_->encode_text(utf8, plain, ids);
  return ids;
}

std::vector<TextRange> Tokenizer::special_tokens_in(std::string_view utf8) const {
  std::vector<TextRange> found;
  for (const auto& pieces : {impl_->added.cut_raw(utf8), impl_->added.cut_normalized(utf8)}) {
    for (const auto& piece : pieces) {
      if (piece.id && is_special(*piece.id)) found.push_back({piece.begin, piece.end});
    }
  }
  std::ranges::sort(found, {}, &TextRange::begin);
  return found;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  text::Decoder::Stream stream(impl_->decoder);
  for (const int32_t id : ids) impl_->push(stream, id, skip_special_tokens);
  stream.finish();
  return stream.take();
}

size_t Tokenizer::vocab_size() const noexcept { return impl_->size; }
std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const { return impl_->id_of(token); }
std::optional<std::string_view> Tokenizer::id_to_token(int32_t id) const { return impl_->token_of(id); }
std::string Tokenizer::token_bytes(int32_t id) const {
  if (const auto token = impl_->added.table().token_of(id)) return std::string(*token);
  const auto token = impl_->model.tokens().token_of(id);
  return token ? impl_->decoder.bytes_of(*token) : std::string();
}
bool Tokenizer::is_special(int32_t id) const { return impl_->added.is_special(id); }
std::optional<int32_t> Tokenizer::bos_id() const noexcept { return impl_->bos; }
std::optional<int32_t> Tokenizer::eos_id() const noexcept { return impl_->eos; }
std::optional<int32_t> Tokenizer::pad_id() const noexcept { return impl_->pad; }
std::optional<int32_t> Tokenizer::unk_id() const noexcept { return impl_->unk; }

}  // namespace hxq
