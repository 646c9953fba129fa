#include "serve/connection.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <ctime>
#include <tuple>

#include "hxq/version.h"
#include "serve/check_request.h"
#include "serve/http_date.h"

namespace hxq::serve {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using asio::as_tuple;
using boost::system::error_code;

constexpr uint32_t kHeadBytes = 16 << 10;
/// Of a next request, that a client may send before it has the answer to this one.
constexpr size_t kAheadBytes = 64 << 10;
/// For what a client still sends after an answer that ends the connection, so that it gets to read the answer.
constexpr std::chrono::seconds kLinger{2};
/// Of what is not looked at: so many bodies' bytes are taken from a client, then the connection ends.
constexpr int64_t kDroppedBodies = 4;

constexpr std::string_view kEventStream = "text/event-stream";

constexpr auto kNoThrow = as_tuple(asio::use_awaitable);

std::chrono::nanoseconds duration(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
}

class Connection : public Client, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Hub& hub, asio::ip::tcp::socket socket) : hub_(hub), stream_(std::move(socket)) {
    hub_.clients.insert(this);
    hub_.counts.connections = std::ssize(hub_.clients);
  }
  ~Connection() override {
    hub_.clients.erase(this);
    hub_.counts.connections = std::ssize(hub_.clients);
  }

  void end_if_idle() override {
    if (idle_) end();
  }
  void end() override {
    error_code ignored;
    stream_.socket().close(ignored);
  }

  asio::awaitable<void> run();

 private:
  using Parser = http::request_parser<http::string_body>;

  asio::awaitable<bool> read_body(Parser& parser);
  asio::awaitable<bool> answer(Request& request);
  asio::awaitable<Reply> reply_of(const Route& route, const Request& request);
  asio::awaitable<void> complete(Request& request, bool chat);
  asio::awaitable<void> embed(Request& request);
  asio::awaitable<void> stream(Completion& completion, const std::shared_ptr<Mailbox>& mailbox);
  asio::awaitable<void> write(Reply reply);
  asio::awaitable<void> write_text(std::string_view text);
  asio::awaitable<void> linger();
  template <class Answer>
  asio::awaitable<bool> next_updates(Answer& answer, Mailbox& mailbox);
  template <class Answer>
  asio::awaitable<void> wait_until_done(Answer& answer, Mailbox& mailbox);
  asio::awaitable<void> begin_pieces(std::string_view content_type);
  asio::awaitable<void> end_pieces();

  void note_head(const Request& request);
  template <class Message>
  void put_common(Message& message) const;
  bool may_drop(size_t bytes) noexcept;
  static asio::awaitable<void> watch(std::shared_ptr<Connection> self, std::shared_ptr<Mailbox> mailbox);
  class Watched;

  Hub& hub_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kAheadBytes};
  bool idle_ = true;
  int64_t dropped_ = 0;  ///< bytes that came and were not looked at

  // Of the request at hand.
  Share body_share_;
  const Route* route_ = nullptr;
  std::string id_, origin_, wanted_headers_;
  unsigned version_ = 11;
  bool keep_alive_ = false;
  bool answering_ = false;  ///< the answer's head may be on its way: no other can follow
  bool is_head_ = false;
  bool preflight_ = false;
};

/// Sees a client go away while its answer is being made: the end of what it sends is behind all that it has sent, which
/// therefore is read. It is the next request's beginning; of one that is too long for the buffer the rest is dropped,
/// and the answer is the connection's last. A client that goes on and on with it is taken for gone.
asio::awaitable<void> Connection::watch(std::shared_ptr<Connection> self, std::shared_ptr<Mailbox> mailbox) {
  asio::ip::tcp::socket& socket = self->stream_.socket();
  while (true) {
    const auto [error] = co_await socket.async_wait(asio::socket_base::wait_read, kNoThrow);
    if (mailbox->is_over) co_return;  // what comes now is read as the next request
    if (error) break;
    std::array<char, 16 << 10> bytes;
    const ssize_t size = recv(socket.native_handle(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (size <= 0) break;
    const size_t kept = std::min(static_cast<size_t>(size), kAheadBytes - self->buffer_.size());
    self->buffer_.commit(
        asio::buffer_copy(self->buffer_.prepare(kept), asio::buffer(bytes.data(), static_cast<size_t>(size)), kept));
    if (kept == static_cast<size_t>(size)) continue;
    self->keep_alive_ = false;
    if (!self->may_drop(static_cast<size_t>(size) - kept)) break;
  }
  mailbox->client_is_gone = true;
  mailbox->wake.cancel();
}

/// Whether the client may send more after these bytes, which are dropped.
bool Connection::may_drop(size_t bytes) noexcept {
  dropped_ += static_cast<int64_t>(bytes);
  return dropped_ <= kDroppedBodies * hub_.options.body_bytes;
}

void Connection::note_head(const Request& request) {
  version_ = request.version();
  keep_alive_ = request.keep_alive() && has_clear_end(request) && !hub_.draining;
  is_head_ = request.method() == http::verb::head;
  origin_ = text_of(request[http::field::origin]);
  wanted_headers_ = text_of(request[http::field::access_control_request_headers]);
  preflight_ = request.method() == http::verb::options && hub_.access.lists(origin_);
}

template <class Message>
void Connection::put_common(Message& message) const {
  message.set(http::field::server, fmt::format("hxq/{}", kVersion));
  message.set(http::field::date, http_date(std::time(nullptr)));
  message.set("X-Request-Id", id_);
  message.set("X-Content-Type-Options", "nosniff");
  if (!origin_.empty() && hub_.access.lists(origin_)) {
    message.set(http::field::access_control_allow_origin, origin_);
    message.set(http::field::access_control_expose_headers, "X-Request-Id, Retry-After");
    message.set(http::field::vary, "Origin, Access-Control-Request-Headers");
  }
  message.keep_alive(keep_alive_);
}

asio::awaitable<void> Connection::write(Reply reply) {
  ++hub_.counts.requests[{route_ ? std::string(route_->path) : "other", reply.status}];
  http::response<http::string_body> message{static_cast<http::status>(reply.status), version_};
  put_common(message);
  if (reply.status == 405) message.set(http::field::allow, route_->post ? "POST" : "GET, HEAD");
  if (reply.status == 401) message.set(http::field::www_authenticate, "Bearer");
  if (reply.status == 503) message.set(http::field::retry_after, "1");
  if (reply.status == 204) {
    message.set(http::field::access_control_allow_methods, "GET, HEAD, POST");
    // Clients send headers of their own, which change nothing here.
    message.set(http::field::access_control_allow_headers,
                wanted_headers_.empty() ? "Authorization, Content-Type" : wanted_headers_);
    message.set(http::field::access_control_max_age, "600");
  } else {
    message.set(http::field::content_type, beast::string_view(reply.content_type.data(), reply.content_type.size()));
    message.content_length(reply.body.size());
  }
  if (route_ && route_->endpoint == Endpoint::page) {
    message.set("Content-Security-Policy",
                "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  }
  if (!is_head_) message.body() = std::move(reply.body);
  stream_.expires_after(duration(hub_.options.write_seconds));
  http::response_serializer<http::string_body> serializer{message};
  answering_ = true;
  co_await http::async_write(stream_, serializer, asio::use_awaitable);
}

asio::awaitable<void> Connection::write_text(std::string_view text) {
  stream_.expires_after(duration(hub_.options.write_seconds));
  const asio::const_buffer bytes(text.data(), text.size());
  if (version_ < 11) {
    co_await asio::async_write(stream_, bytes, asio::use_awaitable);
  } else {
    co_await asio::async_write(stream_, http::make_chunk(bytes), asio::use_awaitable);
  }
}

/// Waits for updates and adds them. False if none came for long.
template <class Answer>
asio::awaitable<bool> Connection::next_updates(Answer& answer, Mailbox& mailbox) {
  if (mailbox.updates.empty() && !mailbox.client_is_gone) {
    mailbox.wake.expires_after(duration(hub_.options.silence_seconds));
    co_await mailbox.wake.async_wait(kNoThrow);
  }
  if (mailbox.client_is_gone) throw boost::system::system_error(asio::error::connection_reset);
  if (mailbox.lost_some) throw std::bad_alloc();
  std::vector<std::pair<size_t, Update>> updates;
  updates.swap(mailbox.updates);
  for (auto& [choice, update] : updates) answer.add(choice, std::move(update));
  co_return !updates.empty();
}

/// Throws what has kept it from being completed.
template <class Answer>
asio::awaitable<void> Connection::wait_until_done(Answer& answer, Mailbox& mailbox) {
  while (!answer.done()) co_await next_updates(answer, mailbox);
  if (answer.fault()) throw *answer.fault();
}

/// The head of an answer that `write_text` goes on with.
asio::awaitable<void> Connection::begin_pieces(std::string_view content_type) {
  ++hub_.counts.requests[{std::string(route_->path), 200}];
  http::response<http::empty_body> head{http::status::ok, version_};
  if (version_ < 11) keep_alive_ = false;  // the end of the connection ends the answer
  put_common(head);
  head.set(http::field::content_type, beast::string_view(content_type.data(), content_type.size()));
  if (content_type == kEventStream) head.set(http::field::cache_control, "no-cache");
  head.chunked(version_ >= 11);
  stream_.expires_after(duration(hub_.options.write_seconds));
  http::response_serializer<http::empty_body> serializer{head};
  answering_ = true;
  co_await http::async_write_header(stream_, serializer, asio::use_awaitable);
}

asio::awaitable<void> Connection::end_pieces() {
  if (version_ >= 11) co_await asio::async_write(stream_, http::make_chunk_last(), asio::use_awaitable);
}

asio::awaitable<void> Connection::stream(Completion& completion, const std::shared_ptr<Mailbox>& mailbox) {
  co_await begin_pieces(kEventStream);
  std::optional<ApiError> fault;
  try {
    for (bool came = true;;) {
      const std::string events = came ? completion.take_events() : std::string(kSseComment);
      if (!events.empty()) co_await write_text(events);
      if (completion.done()) break;
      came = co_await next_updates(completion, *mailbox);
    }
  } catch (const boost::system::system_error&) {
    throw;  // the client is gone
  } catch (const std::exception& error) {
    fault = fault_of(error);
  }
  if (fault) {  // after the head there is no other way to tell
    keep_alive_ = false;
    co_await write_text(fault_events(*fault));
  }
  co_await end_pieces();
}

/// Looks out for the client while its texts run; ends both.
class Connection::Watched {
 public:
  Watched(Connection& connection, const std::shared_ptr<Mailbox>& mailbox, std::vector<Engine::Ticket> tickets)
      : hub_(connection.hub_), mailbox_(*mailbox), tickets_(std::move(tickets)) {
    try {
      // The signal lives as long as the coroutine, which ends some time after it is told to.
      asio::co_spawn(connection.stream_.get_executor(), watch(connection.shared_from_this(), mailbox),
                     asio::bind_cancellation_slot(mailbox->end_watch.slot(), [mailbox](const std::exception_ptr&) {}));
    } catch (...) {
      hub_.end(tickets_);
      throw;
    }
    connection.stream_.expires_never();
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
  ~Watched() {
    hub_.end(tickets_);
    mailbox_.is_over = true;
    mailbox_.end_watch.emit(asio::cancellation_type::terminal);
  }

 private:
  Hub& hub_;
  Mailbox& mailbox_;
  std::vector<Engine::Ticket> tickets_;
};

/// Answers a request for a text; it is cancelled if the client goes away.
asio::awaitable<void> Connection::complete(Request& request, bool chat) {
  CompletionRequest wanted = co_await hub_.work([&] {
    return chat ? read_chat_request(request.body(), hub_.served) : read_completion_request(request.body(), hub_.served);
  });
  request.body() = {};
  body_share_ = {};
  const Hub::Admission admission = hub_.admit(wanted);
  const auto mailbox = std::make_shared<Mailbox>(stream_.get_executor());
  Completion completion(std::move(wanted), hub_.served, hub_.new_id(chat ? "chatcmpl-" : "cmpl-"));
  std::vector<Generation> generations = co_await hub_.work([&] { return hub_.make_generations(completion.request()); });
  const Watched watched(*this, mailbox,
                        hub_.begin(std::move(generations), completion.request().shared_tokens, mailbox));
  if (completion.request().stream) {
    const Share streams(hub_.counts.streams, 1);
    co_await stream(completion, mailbox);
  } else {
    co_await wait_until_done(completion, *mailbox);
    Reply reply;
    reply.body = co_await hub_.work([&] { return dumped(completion.body()); });
    co_await write(std::move(reply));
  }
}

/// Answers a request for embeddings; likewise.
asio::awaitable<void> Connection::embed(Request& request) {
  EmbeddingRequest wanted = co_await hub_.work([&] { return read_embedding_request(request.body(), hub_.served); });
  request.body() = {};
  body_share_ = {};
  const Hub::Admission admission = hub_.admit(wanted);
  const auto mailbox = std::make_shared<Mailbox>(stream_.get_executor());
  EmbeddingAnswer answer(std::move(wanted), hub_.served);
  const Watched watched(*this, mailbox, hub_.begin(answer.request().texts, mailbox));
  co_await wait_until_done(answer, *mailbox);
  co_await begin_pieces("application/json");
  while (true) {
    const std::string piece = co_await hub_.work([&] { return answer.take_piece(); });
    if (piece.empty()) break;
    co_await write_text(piece);
  }
  co_await end_pieces();
}

asio::awaitable<Reply> Connection::reply_of(const Route& route, const Request& request) {
  Reply reply;
  switch (route.endpoint) {
    case Endpoint::page:
      reply.content_type = "text/html; charset=utf-8";
      reply.body = kPage;
      break;
    case Endpoint::schema:
      reply.body = kSchema;
      break;
    case Endpoint::health:
      reply.status = hub_.draining ? 503 : 200;
      reply.body = hub_.draining ? R"({"status":"ending"})" : R"({"status":"ok"})";
      break;
    case Endpoint::models:
      reply = models_reply(path_of(request), hub_.served);
      break;
    case Endpoint::metrics:
      reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
      reply.body = metrics_text(hub_.engine->status(), hub_.counts, hub_.options.parallel);
      break;
    case Endpoint::slots:
      reply.body = slots_text(hub_.engine->status(), hub_.options.parallel);
      break;
    case Endpoint::tokenize:
      reply = co_await hub_.work([&] { return tokenize_reply(request.body(), hub_.served); });
      break;
    case Endpoint::detokenize:
      reply = co_await hub_.work([&] { return detokenize_reply(request.body(), hub_.served); });
      break;
    default:
      throw std::logic_error("a route without a reply");
  }
  co_return reply;
}

/// Answers a request whose body was read; false if the connection is to be ended.
asio::awaitable<bool> Connection::answer(Request& request) {
  std::optional<Reply> refusal;
  try {
    if (route_->endpoint == Endpoint::completions || route_->endpoint == Endpoint::chat_completions) {
      co_await complete(request, route_->endpoint == Endpoint::chat_completions);
    } else if (route_->endpoint == Endpoint::embeddings) {
      co_await embed(request);
    } else {
      Reply reply = co_await reply_of(*route_, request);
      co_await write(std::move(reply));
    }
  } catch (const ApiError& error) {
    refusal = error_reply(error);
  } catch (const boost::system::system_error&) {
    throw;  // the client is gone, or does not take what is written
  } catch (const std::exception& error) {
    refusal = error_reply(fault_of(error));
  }
  if (refusal && answering_) co_return false;
  if (refusal) co_await write(std::move(*refusal));
  co_return keep_alive_;
}

/// Reads the body, after saying that it is awaited where the client asks.
asio::awaitable<bool> Connection::read_body(Parser& parser) {
  if (version_ >= 11 && beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_on{http::status::continue_, version_};
    co_await http::async_write(stream_, go_on, asio::use_awaitable);
  }
  stream_.expires_after(duration(hub_.options.body_seconds));
  error_code error;
  std::optional<Reply> refusal;
  while (!error && !refusal && !parser.is_done()) {
    std::tie(error, std::ignore) = co_await http::async_read_some(stream_, buffer_, parser, kNoThrow);
    try {
      if (!error && !parser.content_length()) hub_.charge_body(body_share_, std::ssize(parser.get().body()));
    } catch (const ApiError& fault) {
      refusal = error_reply(fault);
    }
  }
  if (!error && !refusal) co_return true;
  keep_alive_ = false;
  if (error == http::error::body_limit) {
    refusal =
        error_reply(ApiError(413, "invalid_request_error",
                             fmt::format("a body may have {} bytes", hub_.options.body_bytes), "", "body_too_large"));
  } else if (error.category() == make_error_code(http::error::bad_method).category() &&
             error != http::error::end_of_stream && error != http::error::partial_message) {
    refusal = error_reply(bad_request("the body is not as HTTP has it: " + error.message()));
  }
  if (refusal) {
    co_await write(std::move(*refusal));
    co_await linger();
  }
  co_return false;
}

/// Lets the client read the last answer: what it sends meanwhile is dropped.
asio::awaitable<void> Connection::linger() {
  error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLinger);
  std::array<char, 4096> dropped;
  while (true) {
    const auto [error, size] = co_await stream_.async_read_some(asio::buffer(dropped), kNoThrow);
    if (error || !may_drop(size)) co_return;
  }
}

asio::awaitable<void> Connection::run() {
  for (bool goes_on = true; goes_on;) {
    Parser parser;
    parser.header_limit(kHeadBytes);
    parser.body_limit(static_cast<uint64_t>(hub_.options.body_bytes));
    route_ = nullptr;
    body_share_ = {};
    id_ = hub_.new_id("req_");
    origin_.clear();
    keep_alive_ = answering_ = is_head_ = preflight_ = false;
    idle_ = buffer_.size() == 0;
    stream_.expires_after(duration(hub_.options.head_seconds));
    const auto [error, size] = co_await http::async_read_header(stream_, buffer_, parser, kNoThrow);
    idle_ = false;
    std::optional<Reply> refusal;
    if (error) {
      const bool is_http = error.category() == make_error_code(http::error::bad_method).category();
      if (!is_http || error == http::error::end_of_stream || error == http::error::partial_message) co_return;
      const int status = error == http::error::header_limit ? 431 : error == http::error::body_limit ? 413 : 400;
      refusal = error_reply(ApiError(status, "invalid_request_error",
                                     "the request is not as HTTP and this server have it: " + error.message()));
    } else {
      note_head(parser.get());
      try {
        resolve_target(parser.get());
        route_ = find_route(path_of(parser.get()));
        check_request(parser.get(), route_, hub_.access, preflight_);
        if (preflight_) refusal = Reply{.status = 204};
        if (!refusal && parser.content_length()) {
          hub_.charge_body(body_share_, static_cast<int64_t>(*parser.content_length()));
        }
      } catch (const ApiError& fault) {
        refusal = error_reply(fault);
      }
    }
    if (refusal) {
      // What follows of the request is not looked at.
      keep_alive_ = keep_alive_ && parser.is_done();
      co_await write(std::move(*refusal));
      if (!keep_alive_) co_await linger();
      if (!keep_alive_) co_return;
      continue;
    }
    if (!parser.is_done() && !co_await read_body(parser)) co_return;
    Request request = parser.release();
    goes_on = co_await answer(request) && !hub_.draining;
  }
  co_await linger();
}

}  // namespace

void start_connection(Hub& hub, asio::ip::tcp::socket socket) {
  const auto connection = std::make_shared<Connection>(hub, std::move(socket));
  asio::co_spawn(
      hub.io, [connection]() -> asio::awaitable<void> { co_await connection->run(); },
      [connection](const std::exception_ptr&) {});  // a client that is gone needs no answer
}

}  // namespace hxq::serve
