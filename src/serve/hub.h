#pragma once

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hxq/serve.h"
#include "serve/access.h"
#include "serve/api.h"
#include "serve/api_error.h"
#include "serve/embeddings.h"
#include "serve/engine.h"
#include "serve/metrics.h"

namespace hxq::serve {

namespace asio = boost::asio;

/// Updates of one request's choices, between the engine and the coroutine that answers.
struct Mailbox {
  explicit Mailbox(const asio::any_io_executor& executor) : wake(executor) {}

  std::vector<std::pair<size_t, Update>> updates = {};  ///< by choice
  bool client_is_gone = false;
  bool lost_some = false;                    ///< updates, for want of memory
  bool is_over = false;                      ///< nobody looks out for the client any more
  asio::steady_timer wake;                   ///< cancelled when something has come
  asio::cancellation_signal end_watch = {};  ///< for what looks out for the client
};

/// A connection, as the hub sees it.
class Client {
 public:
  virtual ~Client() = default;
  /// Ends the connection where it is waiting for a request.
  virtual void end_if_idle() = 0;
  virtual void end() = 0;
};

/// A part of what all requests may take together, until it is given back.
class Share {
 public:
  Share() = default;
  /// `taken`, of all, must outlive it.
  Share(int64_t& taken, int64_t amount) : taken_(&taken), amount_(amount) { taken += amount; }
  Share(Share&& other) noexcept : taken_(std::exchange(other.taken_, nullptr)), amount_(other.amount_) {}
  Share& operator=(Share&& other) noexcept {
    std::swap(taken_, other.taken_);
    std::swap(amount_, other.amount_);
    return *this;
  }
  ~Share() {
    if (taken_) *taken_ -= amount_;
  }
  int64_t amount() const noexcept { return amount_; }

 private:
  int64_t* taken_ = nullptr;
  int64_t amount_ = 0;
};

/// What all connections share. Everything but `work` is used on the I/O thread alone.
class Hub {
 public:
  Hub(const ServedModel& model, const ServeOptions& with);

  /// Makes `share` that of a body of so many bytes, as far as is known. Throws `ApiError` if too many that are large
  /// are being read and looked at.
  void charge_body(Share& share, int64_t bytes);

  /// Room for a request's choices, for as long as they wait and run.
  struct Admission {
    Share texts, tokens;
  };
  /// Throws `ApiError`: the request asks for too much, or too much is waiting.
  Admission admit(const CompletionRequest& request);
  Admission admit(const EmbeddingRequest& request);

  /// The generations of a request's choices. On any thread. Throws `ApiError`.
  std::vector<Generation> make_generations(const CompletionRequest& request) const;

  /// Begins a request's choices, whose updates come to the mailbox. Throws `ApiError` if the server is ending.
  std::vector<Engine::Ticket> begin(std::vector<Generation> generations, int64_t shared_tokens,
                                    const std::shared_ptr<Mailbox>& mailbox);
  /// The same for the texts of a request for embeddings.
  std::vector<Engine::Ticket> begin(const std::vector<std::vector<int32_t>>& texts,
                                    const std::shared_ptr<Mailbox>& mailbox);
  /// Forgets choices; those that have not ended are cancelled.
  void end(const std::vector<Engine::Ticket>& tickets);

  /// Tells those who wait for what the engine has lost. To be called now and then.
  void end_lost();

  std::string new_id(std::string_view prefix);

  /// Runs `function` on the thread for work on texts, so that other requests need not wait for it.
  template <class Function>
  asio::awaitable<std::invoke_result_t<Function>> work(Function function) {
    co_return co_await asio::co_spawn(
        workers_, [&function]() -> asio::awaitable<std::invoke_result_t<Function>> { co_return function(); },
        asio::use_awaitable);
  }

  /// Ends what runs: no more is delivered.
  void stop();

  const ServedModel& served;
  const ServeOptions& options;
  const Access access;
  HttpCounts counts = {};
  std::set<Client*> clients = {};
  bool draining = false;
  std::unique_ptr<Engine> engine;

 private:
  void deliver(std::vector<Engine::Delivery> deliveries);
  Admission admit(int64_t texts, int64_t tokens, const char* param);
  template <class Submit>
  std::vector<Engine::Ticket> begin(size_t count, const std::shared_ptr<Mailbox>& mailbox, const Submit& submit);

  struct Address {
    std::shared_ptr<Mailbox> mailbox;
    size_t choice;
  };
  std::unordered_map<Engine::Ticket, Address> addresses_;
  Engine::Ticket lost_ = 0;
  int64_t body_bytes_ = 0, texts_ = 0, tokens_ = 0;  // that `Share`s have
  uint64_t last_id_;
  asio::thread_pool workers_{1};

 public:
  asio::io_context io{1};  // last: what its coroutines use outlives them
};

}  // namespace hxq::serve
