#include "jinja/parser.h"

#include <fmt/format.h>

#include <array>

namespace hxq::jinja {
namespace {

using Kind = Token::Kind;

constexpr int kMaxNesting = 100;

/// How a message calls a token.
std::string shown(const Token& token) {
  switch (token.kind) {
    case Kind::data:
      return "text";
    case Kind::print_begin:
      return "'{{'";
    case Kind::print_end:
      return "'}}'";
    case Kind::block_begin:
      return "'{%'";
    case Kind::block_end:
      return "'%}'";
    case Kind::end:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

/// The statements of Jinja.
class Parser {
 public:
  explicit Parser(TokenStream tokens) : tokens_(std::move(tokens)), expressions_(tokens_) {}

  Body whole() {
    Body statements = body({});
    if (!tokens_.is(Kind::end)) tokens_.fail_expected("no end of a block that was not begun");
    return statements;
  }

 private:
  static constexpr std::string_view kTags = "if, for, set, macro, filter, generation, break, continue, raw";

  /// Statements up to a tag that begins with one of `ends`; the tag's begin is passed, its name is what comes.
  Body body(std::initializer_list<std::string_view> ends) {
    const TokenStream::Nesting nesting(tokens_);
    Body statements;
    while (true) {
      const int line = tokens_.peek().line;
      if (tokens_.is(Kind::data)) {
        statements.push_back({line, Text{tokens_.next().text}});
      } else if (tokens_.skip(Kind::print_begin)) {
        statements.push_back({line, Print{expressions_.expression(true)}});
        tokens_.expect(Kind::print_end);
      } else if (tokens_.skip(Kind::block_begin)) {
        for (const std::string_view end : ends) {
          if (tokens_.is_name(end)) return statements;
        }
        statements.push_back(block());
      } else if (ends.size() > 0) {
        tokens_.fail_expected(fmt::format("'{}'", *(ends.end() - 1)));
      } else {
        return statements;
      }
    }
  }

  /// A body whose variables end with it. A macro sees the variables of the template alone, so none is defined in it.
  Body scoped_body(std::initializer_list<std::string_view> ends) {
    ++scopes_;
    Body statements = body(ends);
    --scopes_;
    return statements;
  }

  Statement block() {
    const int line = tokens_.peek().line;
    const std::string name = tokens_.expect(Kind::name).text;
    if (name == "macro" && scopes_ > 0) {
      throw SyntaxFault{line,
                        "'macro' inside of a for, a macro or a block with a scope of its own; known here: outside"};
    }
    if (name == "if") return {line, if_block()};
    if (name == "for") return {line, for_block()};
    if (name == "set") return {line, set_block()};
    if (name == "macro") return {line, macro_block()};
    if (name == "filter") return {line, filter_block()};
    if (name == "generation") {
      end_tag();
      Generation node{scoped_body({"endgeneration"})};
      tokens_.next();
      end_tag();
      return {line, std::move(node)};
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) throw SyntaxFault{line, fmt::format("'{}' outside of a for", name)};
      end_tag();
      if (name == "break") return {line, Break{}};
      return {line, Continue{}};
    }
    throw SyntaxFault{line, fmt::format("unexpected tag '{}'; known here: {}", name, kTags)};
  }

  void end_tag() { tokens_.expect(Kind::block_end); }

  If if_block() {
    If node;
    ExpressionPtr condition = expressions_.expression();
    while (true) {
      end_tag();
      const bool otherwise = !condition;
      Body branch = otherwise ? body({"endif"}) : body({"elif", "else", "endif"});
      node.branches.push_back({std::move(condition), std::move(branch)});
      const std::string next = tokens_.next().text;
      if (next == "endif") break;
      condition = next == "elif" ? expressions_.expression() : nullptr;
    }
    end_tag();
    return node;
  }

  For for_block() {
    For node{.target = target(true), .items = {}, .condition = {}, .body = {}, .otherwise = {}};
    tokens_.expect(Kind::name, "in");
    node.items = expressions_.iterated();
    if (tokens_.skip_name("if")) node.condition = expressions_.expression();
    if (tokens_.is_name("recursive")) tokens_.fail("recursive loops are not supported");
    end_tag();
    ++loops_;
    node.body = scoped_body({"else", "endfor"});
    --loops_;
    if (tokens_.next().text == "else") {
      end_tag();
      node.otherwise = scoped_body({"endfor"});
      tokens_.next();
    }
    end_tag();
    return node;
  }

  /// Names with commas between, in brackets or not.
  Target target(bool names_only) {
    Target found;
    const bool brackets = tokens_.skip_sign("(");
    do {
      if (!found.variables.empty() && !tokens_.is(Kind::name)) break;
      Target::Variable variable{tokens_.expect(Kind::name).text, {}};
      if (!names_only && tokens_.skip_sign(".")) variable.attribute = tokens_.expect(Kind::name).text;
      found.variables.push_back(std::move(variable));
      if (tokens_.is_sign(",")) found.unpacks = true;
    } while (tokens_.skip_sign(","));
    if (brackets) tokens_.expect(Kind::sign, ")");
    return found;
  }

  Set set_block() {
    Set node{.target = target(false), .value = {}, .body = {}, .filters = {}};
    if (tokens_.skip_sign("=")) {
      node.value = expressions_.expression(true);
      end_tag();
      return node;
    }
    if (tokens_.skip_sign("|")) node.filters = expressions_.filters();
    end_tag();
    node.body = scoped_body({"endset"});
    tokens_.next();
    end_tag();
    return node;
  }

  MacroStatement macro_block() {
    MacroStatement node{.name = tokens_.expect(Kind::name).text, .parameters = {}, .body = {}};
    tokens_.expect(Kind::sign, "(");
    while (!tokens_.skip_sign(")")) {
      if (!node.parameters.empty()) {
        tokens_.expect(Kind::sign, ",");
        if (tokens_.skip_sign(")")) break;
      }
      MacroStatement::Parameter parameter{tokens_.expect(Kind::name).text, nullptr};
      if (tokens_.skip_sign("=")) parameter.otherwise = expressions_.expression();
      node.parameters.push_back(std::move(parameter));
    }
    end_tag();
    const int outer_loops = std::exchange(loops_, 0);
    node.body = scoped_body({"endmacro"});
    loops_ = outer_loops;
    tokens_.next();
    skip_end_name(node.name);
    end_tag();
    return node;
  }

  void skip_end_name(const std::string& name) { tokens_.skip(Kind::name, name); }

  FilterBlock filter_block() {
    FilterBlock node{.filters = expressions_.filters(), .body = {}};
    end_tag();
    node.body = scoped_body({"endfilter"});
    tokens_.next();
    end_tag();
    return node;
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int loops_ = 0;
  int scopes_ = 0;
};

}  // namespace

TokenStream::Nesting::Nesting(TokenStream& tokens) : tokens_(tokens) {
  if (++tokens_.depth_ > kMaxNesting) {
    --tokens_.depth_;
    tokens_.fail(fmt::format("nested deeper than {}", kMaxNesting));
  }
}

Token TokenStream::expect(Token::Kind kind, std::string_view text) {
  if (!is(kind, text))
    fail_expected(text.empty() ? kind == Kind::name ? "a name" : shown({kind, "", 0}) : fmt::format("'{}'", text));
  return next();
}

void TokenStream::fail_expected(std::string_view expected) const {
  fail(fmt::format("found {}, expected {}", shown(peek()), expected));
}

Body parse(std::string_view source) { return Parser(TokenStream(tokenize(source))).whole(); }

}  // namespace hxq::jinja
