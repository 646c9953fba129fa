#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <chrono>
#include <cmath>

#include "hxq/error.h"
#include "hxq/serve.h"
#include "serve/connection.h"

namespace hxq {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
/// How often it is asked whether the server is to end, and whether something was lost.
constexpr std::chrono::milliseconds kPoll{50};
/// For the last answers to be written after the time to complete texts.
constexpr std::chrono::seconds kLastWords{2};

[[noreturn]] void throw_cannot_listen(const ServeOptions& options, const boost::system::error_code& error) {
  throw Error(fmt::format("cannot listen on {} port {}: {}", options.host, options.port, error.message()));
}

tcp::endpoint endpoint_of(const ServeOptions& options) {
  boost::system::error_code error;
  asio::io_context io;
  const auto found = tcp::resolver(io).resolve(options.host, std::to_string(options.port),
                                               tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) throw_cannot_listen(options, error);
  return *found.begin();
}

tcp::acceptor listening(asio::io_context& io, const tcp::endpoint& endpoint, const ServeOptions& options) {
  boost::system::error_code error;
  tcp::acceptor acceptor(io);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) throw_cannot_listen(options, error);
  return acceptor;
}

std::string address_of(const tcp::endpoint& endpoint) {
  const std::string host = endpoint.address().to_string();
  return fmt::format("http://{}:{}", endpoint.address().is_v6() ? "[" + host + "]" : host, endpoint.port());
}

/// Browsers say whose page asks as "https://host" or "https://host:port": what is spelled otherwise is never met.
void check_origin(const std::string& origin) {
  const size_t scheme = origin.find("://");
  const bool has_form =
      scheme != origin.npos && scheme > 0 && scheme + 3 < origin.size() &&
      origin.find_first_of("/?# \t", scheme + 3) == origin.npos &&
      std::ranges::none_of(origin, [](char c) { return (c >= 'A' && c <= 'Z') || (c & 0x80) != 0; }) &&
      !(origin.starts_with("https:") && origin.ends_with(":443")) &&
      !(origin.starts_with("http:") && origin.ends_with(":80"));
  if (has_form || origin == "*" || origin == "null") return;
  throw Error(fmt::format("origin '{}': expected one as https://example.org or http://localhost:3000, or *", origin));
}

void check(const ServeOptions& options) {
  // An empty one would be every address of the machine.
  if (options.host.empty()) throw Error("--host: expected an address or a name");
  const auto refuse_below = [](std::string_view what, auto value, auto least) {
    if (!(value >= least)) throw Error(fmt::format("{} {}: expected at least {}", what, value, least));
  };
  refuse_below("texts at once", options.parallel, 1);
  refuse_below("waiting texts", options.waiting, 0);
  refuse_below("context", options.context, 0);
  refuse_below("tokens in the queue", options.queued_tokens, 1);
  refuse_below("prompt budget", options.prompt_budget, 1);
  refuse_below("bytes of a body", options.body_bytes, 1);
  refuse_below("connections", options.connections, 1);
  const auto check_seconds = [](double seconds) {
    constexpr double kMost = 1e6;
    if (!(seconds >= 0 && seconds <= kMost)) throw Error(fmt::format("a limit of {} seconds", seconds));
  };
  check_seconds(options.drain_seconds);
  for (const double seconds :
       {options.head_seconds, options.body_seconds, options.write_seconds, options.silence_seconds}) {
    check_seconds(seconds);
    if (seconds == 0) throw Error("a limit of 0 seconds: only what runs when the server ends may be cut off at once");
  }
  for (const std::string& origin : options.cors_origins) check_origin(origin);
  for (const std::string& key : options.api_keys) {
    constexpr std::string_view kBlanks = " \t";
    if (key.empty()) throw Error("an API key is empty");
    if (kBlanks.find(key.front()) != kBlanks.npos || kBlanks.find(key.back()) != kBlanks.npos) {
      throw Error("an API key begins or ends with a blank, which HTTP does not carry");
    }
  }
}

/// `wanted`: 0: what the model has.
int64_t context_of(const Model& model, int64_t wanted) {
  constexpr int64_t kWithoutEnd = 65'536;
  const int64_t own = model.info().context_length;
  if (own > 0 && wanted > own) {
    throw Error(fmt::format("a context of {} tokens: that of the model holds {}", wanted, own));
  }
  return wanted > 0 ? wanted : own > 0 ? own : kWithoutEnd;
}

}  // namespace

struct Server::Impl {
  Impl(const Model& model, const Tokenizer& tokenizer, const ChatTemplate* chat_template, ServeOptions given)
      : options((check(given), std::move(given))),
        served{model,
               tokenizer,
               chat_template,
               options.model_name,
               std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count(),
               context_of(model, options.context),
               options.queued_tokens},
        endpoint(endpoint_of(options)),
        hub(served, options),
        acceptor(listening(hub.io, endpoint, options)),
        address(address_of(acceptor.local_endpoint())) {}

  ~Impl() { hub.stop(); }

  asio::awaitable<void> accept();
  asio::awaitable<void> wait_for_the_end();
  void run();

  ServeOptions options;
  serve::ServedModel served;
  tcp::endpoint endpoint;
  serve::Hub hub;
  tcp::acceptor acceptor;
  std::string address;
};

asio::awaitable<void> Server::Impl::accept() {
  asio::steady_timer pause(hub.io);
  while (true) {
    auto [error, socket] = co_await acceptor.async_accept(kNoThrow);
    if (!acceptor.is_open()) co_return;
    if (error) {  // no more files may be opened: some will be closed
      pause.expires_after(kPoll);
      co_await pause.async_wait(kNoThrow);
      continue;
    }
    boost::system::error_code ignored;
    if (std::ssize(hub.clients) >= options.connections) {
      socket.close(ignored);
      continue;
    }
    socket.set_option(tcp::no_delay(true), ignored);
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
    try {
      serve::start_connection(hub, std::move(socket));
    } catch (const std::bad_alloc&) {
      continue;  // this one is closed; there may be memory for the next
    }
  }
}

asio::awaitable<void> Server::Impl::wait_for_the_end() {
  asio::steady_timer timer(hub.io);
  const auto pause = [&]() -> asio::awaitable<void> {
    timer.expires_after(kPoll);
    co_await timer.async_wait(kNoThrow);
    hub.end_lost();
  };
  while (!options.interrupted || !options.interrupted()) co_await pause();
  hub.draining = true;
  boost::system::error_code ignored;
  acceptor.close(ignored);
  for (serve::Client* client : hub.clients) client->end_if_idle();
  const auto limit =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.drain_seconds));
  while (!hub.clients.empty() && Clock::now() < limit) co_await pause();
  hub.engine->end_all("the server is ending");
  while (!hub.clients.empty() && Clock::now() < limit + kLastWords) co_await pause();
  for (serve::Client* client : hub.clients) client->end();
}

void Server::Impl::run() {
  asio::co_spawn(hub.io, accept(), asio::detached);
  asio::co_spawn(hub.io, wait_for_the_end(), asio::detached);
  hub.io.run();
}

Server::Server(const Model& model, const Tokenizer& tokenizer, const ChatTemplate* chat_template, ServeOptions options)
    : impl_(std::make_unique<Impl>(model, tokenizer, chat_template, std::move(options))) {}
Server::Server(Server&&) noexcept = default;
Server& Server::operator=(Server&&) noexcept = default;
Server::~Server() = default;

const std::string& Server::address() const noexcept { return impl_->address; }
void Server::run() { impl_->run(); }

}  // namespace hxq
