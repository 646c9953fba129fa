#include "serve/hub.h"

#include <fmt/format.h>

#include <random>

#include "hxq/error.h"

namespace hxq::serve {

Hub::Hub(const ServedModel& model, const ServeOptions& with)
    : served(model),
      options(with),
      access(with.api_keys, with.cors_origins),
      last_id_(uint64_t{std::random_device()()} << 32) {
  const Scheduler::Limits limits = {.sequences = options.parallel,
                                    .prefill_tokens_beside_decode = options.prompt_budget,
                                    .prefix_bytes = options.prefix_bytes};
  engine = std::make_unique<Engine>(
      served.model, served.tokenizer, limits, [this](std::vector<Engine::Delivery> deliveries) {
        asio::post(io, [this, all = std::move(deliveries)]() mutable { deliver(std::move(all)); });
      });
}

std::string Hub::new_id(std::string_view prefix) { return fmt::format("{}{:016x}", prefix, ++last_id_); }

std::vector<Engine::Ticket> Hub::begin(const CompletionRequest& request, const std::shared_ptr<Mailbox>& mailbox) {
  if (draining) throw unavailable("the server is ending");
  if (engine->status().open + request.choices() > options.parallel + options.waiting) {
    throw unavailable("too many texts are waiting");
  }
  std::vector<Engine::Ticket> tickets;
  try {
    for (int64_t i = 0; i < request.choices(); ++i) {
      tickets.push_back(engine->submit(request.prompt(i), request.options_of(i), request.shared_tokens));
      addresses_[tickets.back()] = {mailbox, static_cast<size_t>(i)};
    }
  } catch (const OutOfMemory& error) {
    end(tickets);
    throw unavailable(error.what());
  } catch (const Error& error) {
    end(tickets);
    throw bad_request(without_file(error));
  } catch (...) {
    end(tickets);
    throw;
  }
  return tickets;
}

void Hub::end(const std::vector<Engine::Ticket>& tickets) {
  for (const Engine::Ticket ticket : tickets) {
    if (addresses_.erase(ticket) > 0) engine->cancel(ticket);
  }
}

void Hub::deliver(std::vector<Engine::Delivery> deliveries) {
  for (Engine::Delivery& delivery : deliveries) {
    const auto at = addresses_.find(delivery.ticket);
    if (at == addresses_.end()) continue;  // cancelled since
    const Address address = at->second;
    if (delivery.update.ending) addresses_.erase(at);
    address.mailbox->updates.emplace_back(address.choice, std::move(delivery.update));
    address.mailbox->wake.cancel();
  }
}

void Hub::stop() {
  engine.reset();
  workers_.join();
  addresses_.clear();
}

}  // namespace hxq::serve
