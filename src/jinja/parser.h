#pragma once

#include <algorithm>
#include <string_view>

#include "jinja/lexer.h"
#include "jinja/syntax.h"

namespace hxq::jinja {

/// Parses a template, valid UTF-8. Throws `SyntaxFault`.
Body parse(std::string_view source);

/// A position in the tokens of a template, and how deep the parser is in it.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return at_ + 1 < tokens_.size() ? std::move(tokens_[at_++]) : tokens_.back(); }
  bool is(Token::Kind kind, std::string_view text = {}) const {
    return peek().kind == kind && (text.empty() || peek().text == text);
  }
  bool is_sign(std::string_view sign) const { return is(Token::Kind::sign, sign); }
  bool is_name(std::string_view name) const { return is(Token::Kind::name, name); }
  bool skip_sign(std::string_view sign) { return skip(Token::Kind::sign, sign); }
  bool skip_name(std::string_view name) { return skip(Token::Kind::name, name); }
  bool skip(Token::Kind kind, std::string_view text = {}) {
    const bool found = is(kind, text);
    if (found) ++at_;
    return found;
  }
  Token expect(Token::Kind kind, std::string_view text = {});

  [[noreturn]] void fail(std::string what) const { throw SyntaxFault{peek().line, std::move(what)}; }
  /// Fails because of the token that comes.
  [[noreturn]] void fail_expected(std::string_view expected) const;

  /// Held while a construct that can contain itself is parsed. Throws `SyntaxFault` when they nest too deep.
  class Nesting {
   public:
    explicit Nesting(TokenStream& tokens);
    ~Nesting() { --tokens_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    TokenStream& tokens_;
  };

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

/// The expressions of Jinja, from least to most tightly bound.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  /// An expression; with `tuples`, several with commas between make a tuple.
  ExpressionPtr expression(bool tuples = false);
  /// What a for goes through: an `if` after it is not part of it.
  ExpressionPtr iterated();
  /// name(arguments) | name(arguments)...: filters without a value before them.
  std::vector<Filter> filters();

 private:
  ExpressionPtr tuple(ExpressionPtr first, bool conditional);
  ExpressionPtr conditional();
  ExpressionPtr either();
  ExpressionPtr both();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr joined();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters);
  ExpressionPtr primary();
  ExpressionPtr number();
  ExpressionPtr bracketed();
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr postfix(ExpressionPtr value);
  ExpressionPtr with_filters_and_tests(ExpressionPtr value);
  ExpressionPtr subscript(ExpressionPtr value);
  ExpressionPtr test(ExpressionPtr value);
  Filter filter(ExpressionPtr value);
  Arguments arguments();
  std::string dotted_name();
  bool test_argument_follows() const;

  template <class Operand>
  ExpressionPtr chain(Chain::Kind kind, Operand operand,
                      std::initializer_list<std::pair<std::string_view, Operator>> signs);
  ExpressionPtr make(decltype(Expression::node) node) const;

  TokenStream& tokens_;
};

}  // namespace hxq::jinja
