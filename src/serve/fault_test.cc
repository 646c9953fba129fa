// What goes wrong after a stream has begun ends that stream with an error, and nothing else; so does memory that the
// compute thread does not get.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>

#include "hxq/serve.h"
#include "serve/engine.h"
#include "text/tokenizer_fixture.h"

namespace {

enum class Kind { other, test, http };
thread_local Kind kind = Kind::other;  // of this thread
/// The next allocation of the thread for HTTP that has at least so many bytes fails.
std::atomic<size_t> fails_from = SIZE_MAX;
/// So many allocations of other threads succeed, and the next fails; below 0: none fails.
std::atomic<int64_t> others_until_failure = -1;

bool is_to_fail(size_t size) {
  if (kind == Kind::http && size >= fails_from) {
    fails_from = SIZE_MAX;
    return true;
  }
  return kind == Kind::other && others_until_failure >= 0 && others_until_failure-- == 0;
}

}  // namespace

// Not inlined, or GCC pairs one's malloc with the other's caller and warns of a mismatch.
__attribute__((noinline)) void* operator new(size_t size) {
  if (is_to_fail(size)) throw std::bad_alloc();
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
// Sanitizers have one of their own, which would not fit the delete below. Who asks this way (std::stable_sort) goes on
// without the memory: were it to fail, nothing would be seen of it.
__attribute__((noinline)) void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size > 0 ? size : 1);
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace hxq::serve {
namespace {

class Client {
 public:
  Client(const std::string& address, const std::string& request) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit = {.tv_sec = 300, .tv_usec = 0};
    EXPECT_EQ(setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    EXPECT_EQ(connect(socket_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    EXPECT_EQ(send(socket_, request.data(), request.size(), 0), std::ssize(request));
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { close(socket_); }

  /// All that came up to this text, or to the end of the connection.
  std::string read_until(std::string_view text) {
    while (text.empty() || came_.find(text) == std::string::npos) {
      char bytes[4096];
      const ssize_t size = recv(socket_, bytes, sizeof(bytes), 0);
      EXPECT_GE(size, 0);
      if (size <= 0) break;
      came_.append(bytes, static_cast<size_t>(size));
    }
    return came_;
  }

 private:
  int socket_;
  std::string came_ = {};
};

class Streams : public ::testing::Test {
 protected:
  ~Streams() override {
    ends_ = true;
    thread_.join();
  }

  /// A stream that would be long; a request to read all at once.
  std::string completion(int tokens, bool stream) const {
    const std::string body = R"({"prompt": "The", "temperature": 0, "logprobs": 20, "max_tokens": )" +
                             std::to_string(tokens) + R"(, "stream": )" + (stream ? "true}" : "false}");
    return "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: "
           "close\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body;
  }

  static constexpr int kMany = 60'000;
  const std::filesystem::path folder_ = std::filesystem::path(HXQ_SOURCE_DIR) / "models" / "wiki-mamba-7m";
  const Model model_ = Model::open(folder_, {.threads = 1});
  const Tokenizer tokenizer_ = Tokenizer::load(folder_);
  std::atomic<bool> ends_ = false;
  Server server_{model_, tokenizer_, nullptr, {.port = 0, .interrupted = [this] { return ends_.load(); }}};
  std::thread thread_{[this] {
    kind = Kind::http;
    server_.run();
  }};
};

TEST_F(Streams, EndWithTheFaultThatCameAfterTheirHead) {
  std::string all;
  {
    Client client(server_.address(), completion(kMany, true));
    client.read_until("data: ");
    fails_from = 512;
    all = client.read_until("");
  }
  EXPECT_EQ(fails_from, SIZE_MAX) << "nothing has failed";
  EXPECT_EQ(all.find("HTTP/1.1", 1), std::string::npos) << "a second head, within the stream";
  const size_t error = all.find(R"(data: {"error":{"message":)");
  ASSERT_NE(error, std::string::npos) << all.substr(all.size() - std::min<size_t>(all.size(), 300));
  EXPECT_TRUE(all.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  const std::string head = "GET /slots HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(5);
  bool idle = false;
  while (!idle && std::chrono::steady_clock::now() < limit) {
    idle = Client(server_.address(), head).read_until("").find(R"("idle":8)") != std::string::npos;
  }
  EXPECT_TRUE(idle);
}

/// Texts alone, without what differs from answer to answer.
std::string text_of(const std::string& answer) {
  const size_t begin = answer.find(R"("text":)");
  return begin == std::string::npos ? "" : answer.substr(begin, answer.find(R"("finish_reason")") - begin);
}

TEST_F(Streams, EndWithAnErrorWhereTheComputeThreadGetsNoMemory) {
  kind = Kind::test;
  const std::string expected = text_of(Client(server_.address(), completion(5, false)).read_until(""));
  ASSERT_FALSE(expected.empty());
  for (const int before : {0, 1, 2, 3, 5, 8, 13, 21}) {
    Client client(server_.address(), completion(kMany, true));
    client.read_until("data: ");
    others_until_failure = before;
    const std::string all = client.read_until("");
    EXPECT_LT(others_until_failure, 0) << "nothing has failed";
    EXPECT_NE(all.find(R"("message":"out of memory","type":"server_error")"), std::string::npos) << before;
    EXPECT_TRUE(all.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n")) << before;
    EXPECT_EQ(text_of(Client(server_.address(), completion(5, false)).read_until("")), expected) << "it goes on";
  }
}

/// Every allocation of the compute thread fails once. What it ends is told, or is among what was lost; all else goes
/// on.
TEST(FailingEngine, GoesOnAfterAnyAllocationHasFailed) {
  kind = Kind::test;
  const Model model =
      Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "llama-bias", {.threads = 1});
  const Tokenizer tokenizer = testing::load_tokenizer(testing::byte_spec());
  std::mutex mutex;
  std::condition_variable came;
  std::map<Engine::Ticket, Update> updates;
  Engine engine(model, {.sequences = 2, .prefill_tokens = 8, .prefix_bytes = 1 << 20}, Pooling::mean,
                [&](const std::vector<Engine::Delivery>& deliveries) {
                  delete new char;  // what passes it on takes memory too
                  kind = Kind::test;
                  {
                    const std::lock_guard lock(mutex);
                    for (const Engine::Delivery& delivery : deliveries) {
                      updates[delivery.ticket].text += delivery.update.text;
                      for (const float number : delivery.update.embedding) {
                        updates[delivery.ticket].text += std::to_string(number) + " ";
                      }
                      if (delivery.update.ending) updates[delivery.ticket].ending = delivery.update.ending;
                    }
                  }
                  came.notify_one();
                  kind = Kind::other;
                });
  const auto submit = [&](std::vector<int32_t> prompt) {
    return engine.submit({model.info(), tokenizer, std::move(prompt), {.max_tokens = 6, .logprobs = 3}});
  };
  /// The text, or the numbers of the embedding; nothing if it has failed.
  const auto result_of = [&](Engine::Ticket ticket) -> std::optional<std::string> {
    std::unique_lock lock(mutex);
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (!updates[ticket].ending && engine.lost() < ticket && std::chrono::steady_clock::now() < limit) {
      came.wait_for(lock, std::chrono::milliseconds(1));
    }
    const Update& update = updates[ticket];
    EXPECT_TRUE(update.ending || engine.lost() >= ticket) << "it has neither ended nor failed";
    if (!update.ending) return std::nullopt;
    if (update.ending->fault.empty()) return update.text;
    EXPECT_EQ(update.ending->fault, "out of memory");
    EXPECT_TRUE(update.ending->is_temporary);
    return std::nullopt;
  };
  const std::vector<int32_t> first(20, 7), second(3, 9);
  const std::optional<std::string> of_first = result_of(submit(first)), of_second = result_of(submit(second)),
                                   embedding = result_of(engine.submit(first));
  ASSERT_TRUE(of_first && of_second && embedding);
  int failures = 0, told = 0;
  for (int64_t before = 0; others_until_failure < 0; ++before) {
    others_until_failure = before;
    const Engine::Ticket one = submit(first), embeds = engine.submit(first), other = submit(second);
    for (const auto& [ticket, expected] :
         {std::pair(one, of_first), std::pair(other, of_second), std::pair(embeds, embedding)}) {
      const std::optional<std::string> found = result_of(ticket);
      if (found) {
        EXPECT_EQ(found, expected) << before;
      }
      failures += !found;
      told += !found && engine.lost() < ticket;
    }
    if (others_until_failure < 0) {
      EXPECT_EQ(result_of(submit(second)), of_second) << "it goes on";
    }
    ASSERT_LT(before, 5000);
    EXPECT_EQ(engine.status().open, 0);
  }
  others_until_failure = -1;
  EXPECT_GT(failures, 20);
  EXPECT_GT(told, 5);
}

}  // namespace
}  // namespace hxq::serve
