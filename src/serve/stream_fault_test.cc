// What goes wrong after a stream has begun ends that stream with an error, and nothing else.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <string>
#include <thread>

#include "hxq/serve.h"

namespace {

thread_local bool serves = false;  // whether this is the server's thread for HTTP
/// The next allocation there of at least so many bytes fails.
std::atomic<size_t> fails_from = SIZE_MAX;

}  // namespace

// Not inlined, or GCC pairs one's malloc with the other's caller and warns of a mismatch.
__attribute__((noinline)) void* operator new(size_t size) {
  if (serves && size >= fails_from) {
    fails_from = SIZE_MAX;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
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

TEST(Streams, EndWithTheFaultThatCameAfterTheirHead) {
  const std::filesystem::path folder = std::filesystem::path(HXQ_SOURCE_DIR) / "models" / "wiki-mamba-7m";
  const Model model = Model::open(folder, {.threads = 2});
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::atomic<bool> ends = false;
  Server server(model, tokenizer, nullptr, {.port = 0, .interrupted = [&] { return ends.load(); }});
  std::thread thread([&] {
    serves = true;
    server.run();
  });
  const std::string body = R"({"prompt": "The", "max_tokens": 60000, "stream": true, "logprobs": 20})";
  const std::string request =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ";
  std::string all;
  {
    Client client(server.address(), request + std::to_string(body.size()) + "\r\n\r\n" + body);
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
  while (Client(server.address(), head).read_until("").find(R"("idle":8)") == std::string::npos) {
    std::this_thread::yield();
  }
  ends = true;
  thread.join();
}

}  // namespace
}  // namespace hxq::serve
