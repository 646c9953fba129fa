#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hxq/chat.h"
#include "hxq/embedder.h"

namespace hxq {

struct ServeOptions {
  std::string host = "127.0.0.1";              ///< address or name to listen on
  uint16_t port = 8080;                        ///< 0: one that is free
  std::string model_name = "hxq";              ///< as clients call the model
  std::vector<std::string> api_keys = {};      ///< clients must have one of these; none: anybody is served
  std::vector<std::string> cors_origins = {};  ///< whose pages a browser may let in, besides the server's own; "*": all
  int64_t parallel = 8;                        ///< generations run at once, and as many embeddings
  int64_t waiting = 4096;                      ///< texts that may wait; more are refused (503)
  /// Tokens that a text may have with its prompt; 0: what the model's context holds, 65,536 where it has no end.
  int64_t context = 0;
  /// Tokens of all prompts that wait or run; beyond, requests are refused (503). A single request may ask for as many
  /// in all its prompts and texts together (400), where texts that are not streamed count once more for each of the
  /// likeliest tokens that are to be told with theirs.
  int64_t queued_tokens = 1 << 20;
  Pooling pooling = Pooling::mean;        ///< of embeddings
  int64_t prompt_budget = 128;            ///< tokens of prompts in a step that also continues texts
  int64_t prefix_bytes = 256'000'000;     ///< for states after beginnings of prompts, to be used again; 0: none
  int64_t body_bytes = int64_t{4} << 20;  ///< of a request, at most; 32 times that of all that are large
  int64_t connections = 4096;             ///< at once; more are closed
  double head_seconds = 30;               ///< for a request's head to come, and how long a connection may be idle
  double body_seconds = 60;               ///< for its body to come
  double write_seconds = 30;              ///< for a client to take what is written to it
  double silence_seconds = 15;            ///< after which a stream that has nothing to say gets a comment
  double drain_seconds = 10;              ///< for texts to be completed once the server is to end
  /// Asked many times a second: true ends the server.
  std::function<bool()> interrupted = {};
};

/// OpenAI's HTTP API for one model. Texts are continued together, a step at a time; each is, byte for byte, what it is
/// alone.
class Server {
 public:
  /// The references must outlive it. `chat_template`: null if there is none. Listens from now on. Throws `Error` for
  /// options out of range and an address that is not to be had.
  Server(const Model& model, const Tokenizer& tokenizer, const ChatTemplate* chat_template, ServeOptions options);
  Server(Server&&) noexcept;
  Server& operator=(Server&&) noexcept;
  ~Server();

  /// Where it listens: "http://127.0.0.1:8080".
  const std::string& address() const noexcept;

  /// Serves until `ServeOptions::interrupted` says so: then no more requests are taken, and what runs is completed, or
  /// ended with an error where that takes too long.
  void run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hxq
