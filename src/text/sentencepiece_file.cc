#include "text/sentencepiece_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "hxq/error.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/system_error.h"
#include "io/utf8.h"
#include "text/folder_tokens.h"
#include "text/json_part.h"
#include "text/protobuf.h"

namespace hxq::text {
namespace {

using nlohmann::json;

/// What SentencePiece writes for a space: U+2581.
constexpr std::string_view kSpace = "\xE2\x96\x81";

enum class PieceType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Piece {
  std::string_view text;  // in the file
  float score = 0;
  PieceType type = PieceType::normal;
};

/// The fields of sentencepiece_model.proto that matter here, with their defaults there.
struct Model {
  std::vector<Piece> pieces;
  int64_t model_type = 1;  // unigram
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  int32_t unk = 0, bos = 1, eos = 2, pad = -1;
  std::string_view normalization;  // its name
  bool has_character_map = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

Piece read_piece(ProtobufReader reader) {
  Piece piece;
  while (const auto field = reader.next()) {
    if (field->number == 1) piece.text = field->bytes;
    if (field->number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field->value));
    if (field->number == 3) {
      if (field->value < 1 || field->value > 6) reader.fail(fmt::format("a piece of unknown type {}", field->value));
      piece.type = static_cast<PieceType>(field->value);
    }
  }
  if (piece.text.empty() || !is_valid_utf8(piece.text)) reader.fail("a piece that is not a text of valid UTF-8");
  if (!std::isfinite(piece.score)) reader.fail("a piece whose score is not finite");
  if (piece.type == PieceType::unused) reader.fail("a piece of type 'unused', which is not known here");
  return piece;
}

void read_training(ProtobufReader reader, Model& model) {
  while (const auto field = reader.next()) {
    const auto id = static_cast<int32_t>(static_cast<int64_t>(field->value));
    switch (field->number) {
      case 3:
        model.model_type = static_cast<int64_t>(field->value);
        break;
      case 24:
        model.whitespace_as_suffix = field->value != 0;
        break;
      case 35:
        model.byte_fallback = field->value != 0;
        break;
      case 40:
        model.unk = id;
        break;
      case 41:
        model.bos = id;
        break;
      case 42:
        model.eos = id;
        break;
      case 43:
        model.pad = id;
        break;
      default:
        break;
    }
  }
}

void read_normalization(ProtobufReader reader, Model& model) {
  while (const auto field = reader.next()) {
    switch (field->number) {
      case 1:
        model.normalization = field->bytes;
        break;
      case 2:
        model.has_character_map = !field->bytes.empty();
        break;
      case 3:
        model.add_dummy_prefix = field->value != 0;
        break;
      case 4:
        model.remove_extra_whitespaces = field->value != 0;
        break;
      case 5:
        model.escape_whitespaces = field->value != 0;
        break;
      default:
        break;
    }
  }
}

Model read_model(ProtobufReader& reader) {
  Model model;
  std::unordered_set<std::string_view> known;
  while (const auto field = reader.next()) {
    if (!field->has_bytes) reader.fail("found a number, expected the parts of a SentencePiece model");
    if (field->number == 1) {
      model.pieces.push_back(read_piece(reader.inner(*field)));
      const std::string_view text = model.pieces.back().text;
      if (!known.insert(text).second) reader.fail(fmt::format("the piece '{}' is there twice", text));
      if (model.pieces.size() > static_cast<size_t>(kMaxTokenId)) reader.fail("too many pieces");
    }
    if (field->number == 2) read_training(reader.inner(*field), model);
    if (field->number == 3) read_normalization(reader.inner(*field), model);
  }
  if (model.pieces.empty()) reader.fail("no pieces, expected a SentencePiece model");
  return model;
}

void check_is_known(const Model& model, const ProtobufReader& reader) {
  constexpr std::string_view kTypes[] = {"unknown", "unigram", "BPE", "word", "char"};
  if (model.model_type != 2) {
    const bool named = model.model_type >= 1 && model.model_type <= 4;
    reader.fail(fmt::format("a SentencePiece model of type {}, expected BPE (a tokenizer.json may serve)",
                            kTypes[named ? model.model_type : 0]));
  }
  if (model.has_character_map) {
    reader.fail(
        fmt::format("the normalization '{}', expected 'identity' (a tokenizer.json may serve)", model.normalization));
  }
  if (model.whitespace_as_suffix || !model.escape_whitespaces) {
    reader.fail("spaces that are not the beginning of words, which is not known here");
  }
}

/// The pairs of pieces that make another piece, each with the rank of that piece's score: in SentencePiece the better
/// score goes first, and of equal ones the one further left.
void add_merges(const Model& model, const ProtobufReader& reader, TokenizerFile& file) {
  std::unordered_set<std::string_view> normal;
  std::map<float, uint32_t, std::greater<>> ranks;
  double work = 0;
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::normal) continue;
    normal.insert(piece.text);
    ranks[piece.score] = 0;
    work += static_cast<double>(piece.text.size()) * static_cast<double>(piece.text.size());
  }
  constexpr double kMostWork = 1e9;  // bytes looked at below
  if (work > kMostWork) reader.fail("the pieces are too long");
  for (uint32_t next = 0; auto& [score, rank] : ranks) rank = next++;
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::normal) continue;
    for (size_t at = first_code_point(piece.text).size; at < piece.text.size();) {
      const std::string_view left = piece.text.substr(0, at), right = piece.text.substr(at);
      at += first_code_point(right).size;
      if (!normal.contains(left) || !normal.contains(right)) continue;
      file.merge_halves.push_back(left);
      file.merge_halves.push_back(right);
      file.merge_ranks.push_back(ranks.at(piece.score));
    }
  }
}

json normalizer_of(const Model& model) {
  json steps = json::array();
  const auto replace = [&](const char* kind, std::string_view pattern, std::string_view content) {
    steps.push_back({{"type", "Replace"}, {"pattern", {{kind, pattern}}}, {"content", content}});
  };
  if (model.remove_extra_whitespaces) {
    replace("Regex", R"(\A +)", "");
    replace("Regex", fmt::format(R"([ {}]+\z)", kSpace), "");
    replace("Regex", " {2,}", " ");
  }
  if (model.add_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  replace("String", " ", kSpace);
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

json decoder_of(const Model& model) {
  json steps = {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
                {{"type", "ByteFallback"}},
                {{"type", "Fuse"}}};
  if (model.add_dummy_prefix || model.remove_extra_whitespaces) {
    // Extra white space is removed here too, at the beginning.
    const int most = model.remove_extra_whitespaces ? 1 << 20 : 1;
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", most}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", steps}};
}

json added_token(std::string_view content, bool special) {
  return {{"id", 0},         {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// The folder's other files add tokens to the pieces, or give them other properties.
json added_tokens_of(const Model& model, const std::filesystem::path& path, FolderTokens tokens_beside) {
  std::map<int64_t, json> tokens;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& [text, score, type] = model.pieces[id];
    const bool special = type == PieceType::control || type == PieceType::unknown;
    if (special) tokens[static_cast<int64_t>(id)] = added_token(text, true);
  }
  auto next = static_cast<int64_t>(model.pieces.size());
  for (auto& [id, token] : tokens_beside.added) {
    const bool piece = id < static_cast<int64_t>(model.pieces.size());
    const auto content = token.at("content").get<std::string>();
    if (piece ? content != model.pieces[static_cast<size_t>(id)].text : id != next) {
      const std::string expected = piece ? fmt::format("'{}' to have it", model.pieces[static_cast<size_t>(id)].text)
                                         : fmt::format("{} as the next id", next);
      throw Error(fmt::format("the added token '{}' has the id {}, expected {}", content, id, expected),
                  {.file = path.string()});
    }
    next += !piece;
    token["normalized"] = false;
    tokens[id] = token;
  }
  json list = json::array();
  for (auto& [id, token] : tokens) {
    token["id"] = id;
    list.push_back(std::move(token));
  }
  return list;
}

/// The tokens that go around a text.
json post_processor_of(const TokenizerFile& file, const JsonPart& config) {
  json single = json::array(), tokens = json::object();
  const auto add = [&](const std::optional<int32_t>& id) {
    const std::string name = fmt::format("{}", *id);
    single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
    tokens[name] = {{"id", name}, {"ids", {static_cast<uint32_t>(*id)}}};
  };
  if (file.bos && config.boolean_or("add_bos_token", true)) add(file.bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (file.eos && config.boolean_or("add_eos_token", false)) add(file.eos);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", tokens}};
}

}  // namespace

TokenizerFile read_sentencepiece_file(const std::filesystem::path& path) {
  constexpr size_t kMaxBytes = size_t{256} << 20;
  const MappedFile mapped = MappedFile::open(path);
  if (mapped.bytes().size() > kMaxBytes) {
    throw Error(fmt::format("{} bytes, expected at most {}", mapped.bytes().size(), kMaxBytes),
                {.file = path.string()});
  }
  const std::string_view bytes(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  ProtobufReader reader(bytes, path.string());
  const Model model = read_model(reader);
  check_is_known(model, reader);

  TokenizerFile file;
  file.name = path.string();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    file.tokens.push_back(model.pieces[id].text);
    file.ids.push_back(static_cast<int32_t>(id));
    if (model.pieces[id].type == PieceType::user_defined) file.whole_tokens.push_back(model.pieces[id].text);
  }
  add_merges(model, reader, file);
  const auto named = [&](int32_t id) {
    const bool exists = id >= 0 && static_cast<size_t>(id) < model.pieces.size();
    return exists ? std::optional(id) : std::nullopt;
  };
  file.bos = named(model.bos);
  file.eos = named(model.eos);
  file.pad = named(model.pad);
  file.unk = named(model.unk);

  const auto config_path = path.parent_path() / "tokenizer_config.json";
  const json config = is_there(config_path) ? load_json(config_path) : json::object();
  file.json = {{"version", "1.0"},
               {"model",
                {{"type", "BPE"},
                 {"vocab", json::object()},
                 {"merges", json::array()},
                 {"fuse_unk", true},
                 {"byte_fallback", model.byte_fallback}}},
               {"normalizer", normalizer_of(model)},
               {"decoder", decoder_of(model)},
               {"post_processor", post_processor_of(file, JsonPart(config, config_path.string(), ""))},
               {"added_tokens", added_tokens_of(model, path, read_folder_tokens(path.parent_path()))}};
  if (file.unk) file.json["model"]["unk_token"] = model.pieces[static_cast<size_t>(*file.unk)].text;
  return file;
}

}  // namespace hxq::text
