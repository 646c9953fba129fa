#include "serve/hub.h"

#include <fmt/format.h>

#include <random>

#include "hxq/error.h"

namespace hxq::serve {

Hub::Hub(const ServedModel& model, const ServeOptions& with)
    : served(model),
      options(with),
      access(with.api_keys, with.cors_origins, with.host),
      last_id_(uint64_t{std::random_device()()} << 32) {
  const Scheduler::Limits limits = {.sequences = options.parallel,
                                    .prefill_tokens_beside_decode = options.prompt_budget,
                                    .prefix_bytes = options.prefix_bytes};
  engine =
      std::make_unique<Engine>(served.model, limits, options.pooling, [this](std::vector<Engine::Delivery> deliveries) {
        asio::post(io, [this, all = std::move(deliveries)]() mutable { deliver(std::move(all)); });
      });
}

std::string Hub::new_id(std::string_view prefix) { return fmt::format("{}{:016x}", prefix, ++last_id_); }

void Hub::charge_body(Share& share, int64_t bytes) {
  constexpr int64_t kSmall = 64 << 10;  // so that small requests are served whatever others send
  constexpr int64_t kLargeBodies = 32;
  if (bytes <= kSmall) return;
  if (bytes - share.amount() > kLargeBodies * options.body_bytes - body_bytes_) {
    throw unavailable("too many large bodies are coming");
  }
  share = {};
  share = {body_bytes_, bytes};
}

Hub::Admission Hub::admit(const CompletionRequest& request) {
  const int64_t choices = request.choices(), tokens = request.prompt_tokens();
  if (request.most_tokens() > static_cast<double>(served.queued_tokens)) {
    throw bad_request(
        fmt::format("the request asks for more than {} tokens in all: {} choices of up to {}, {} tokens of "
                    "prompts{}",
                    served.queued_tokens, choices, request.options.max_tokens, tokens,
                    request.stream || request.options.logprobs < 1
                        ? ""
                        : ", and for each the likeliest (which streams may ask for)"),
        "max_tokens", "invalid_value");
  }
  return admit(choices, tokens, "n");
}

Hub::Admission Hub::admit(const EmbeddingRequest& request) {
  const int64_t tokens = request.tokens();
  if (tokens > served.queued_tokens) {
    throw bad_request(fmt::format("the texts have {} tokens in all, expected at most {}", tokens, served.queued_tokens),
                      "input", "invalid_value");
  }
  return admit(std::ssize(request.texts), tokens, "input");
}

Hub::Admission Hub::admit(int64_t texts, int64_t tokens, const char* param) {
  const int64_t most = options.parallel + options.waiting;
  if (texts > most) {
    throw bad_request(fmt::format("the request has {} texts, expected at most {}: so many run and wait (--parallel, "
                                  "--waiting)",
                                  texts, most),
                      param, "invalid_value");
  }
  if (texts > most - texts_) throw unavailable("too many texts are waiting");
  if (tokens > served.queued_tokens - tokens_) throw unavailable("the prompts that are waiting are too long");
  return {{texts_, texts}, {tokens_, tokens}};
}

std::vector<Generation> Hub::make_generations(const CompletionRequest& request) const {
  std::vector<Generation> generations;
  try {
    for (int64_t i = 0; i < request.choices(); ++i) {
      generations.emplace_back(served.model.info(), served.tokenizer, request.prompt(i), request.options_of(i));
    }
  } catch (const Error& error) {
    throw bad_request(without_file(error));
  }
  return generations;
}

template <class Submit>
std::vector<Engine::Ticket> Hub::begin(size_t count, const std::shared_ptr<Mailbox>& mailbox, const Submit& submit) {
  if (draining) throw unavailable("the server is ending");
  std::vector<Engine::Ticket> tickets;
  tickets.reserve(count);
  try {
    for (size_t i = 0; i < count; ++i) {
      tickets.push_back(submit(i));
      addresses_[tickets.back()] = {mailbox, i};
    }
  } catch (...) {
    for (const Engine::Ticket ticket : tickets) {
      addresses_.erase(ticket);
      engine->cancel(ticket);
    }
    throw;
  }
  return tickets;
}

std::vector<Engine::Ticket> Hub::begin(std::vector<Generation> generations, int64_t shared_tokens,
                                       const std::shared_ptr<Mailbox>& mailbox) {
  return begin(generations.size(), mailbox,
               [&](size_t i) { return engine->submit(std::move(generations[i]), shared_tokens); });
}

std::vector<Engine::Ticket> Hub::begin(const std::vector<std::vector<int32_t>>& texts,
                                       const std::shared_ptr<Mailbox>& mailbox) {
  return begin(texts.size(), mailbox, [&](size_t i) { return engine->submit(texts[i]); });
}

void Hub::end(const std::vector<Engine::Ticket>& tickets) {
  for (const Engine::Ticket ticket : tickets) {
    if (addresses_.erase(ticket) > 0) engine->cancel(ticket);
  }
}

void Hub::end_lost() {
  const Engine::Ticket lost = engine->lost();
  if (lost == std::exchange(lost_, lost)) return;
  std::erase_if(addresses_, [&](const auto& entry) {
    const auto& [ticket, address] = entry;
    if (ticket > lost) return false;
    address.mailbox->lost_some = true;
    address.mailbox->wake.cancel();
    return true;
  });
}

void Hub::deliver(std::vector<Engine::Delivery> deliveries) {
  for (Engine::Delivery& delivery : deliveries) {
    const auto at = addresses_.find(delivery.ticket);
    if (at == addresses_.end()) continue;  // cancelled since
    const Address address = at->second;
    if (delivery.update.ending) addresses_.erase(at);
    try {
      address.mailbox->updates.emplace_back(address.choice, std::move(delivery.update));
    } catch (const std::bad_alloc&) {
      address.mailbox->lost_some = true;
    }
    address.mailbox->wake.cancel();
  }
}

void Hub::stop() {
  engine.reset();
  workers_.join();
  addresses_.clear();
}

}  // namespace hxq::serve
