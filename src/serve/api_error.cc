#include "serve/api_error.h"

#include <new>
#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "serve/update.h"

namespace hxq::serve {

nlohmann::ordered_json ApiError::json() const {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  return {
      {"error", {{"message", what()}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}},
  };
}

ApiError bad_request(const std::string& message, std::string param, std::string code) {
  return {400, "invalid_request_error", message, std::move(param), std::move(code)};
}

ApiError unavailable(const std::string& message) { return {503, "server_error", message, "", "unavailable"}; }

std::string without_file(const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error)) return own->without_file();
  return is_for_want_of_memory(error) ? "out of memory" : error.what();
}

bool is_for_want_of_memory(const std::exception& error) noexcept {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr || dynamic_cast<const OutOfMemory*>(&error) != nullptr;
}

ApiError server_fault(const std::string& message) { return {500, "server_error", message}; }

ApiError fault_of(const std::exception& error) {
  return is_for_want_of_memory(error) ? unavailable(without_file(error)) : server_fault(without_file(error));
}

ApiError fault_of(const Ending& ending) {
  return ending.is_temporary ? unavailable(ending.fault) : server_fault(ending.fault);
}

}  // namespace hxq::serve
