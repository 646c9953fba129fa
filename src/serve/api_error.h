#pragma once

#include <nlohmann/json_fwd.hpp>
#include <stdexcept>
#include <string>

namespace hxq::serve {

/// A request that is not served, as the client is told: an HTTP status, and a body in OpenAI's shape.
struct ApiError : std::runtime_error {
  ApiError(int of_status, std::string of_type, const std::string& message, std::string of_param = {},
           std::string of_code = {})
      : std::runtime_error(message),
        status(of_status),
        type(std::move(of_type)),
        param(std::move(of_param)),
        code(std::move(of_code)) {}

  /// {"error": {"message", "type", "param", "code"}}; null for what is empty.
  nlohmann::ordered_json json() const;

  int status;
  std::string type;
  std::string param;  ///< the member of the request that is wrong
  std::string code;   ///< for programs
};

/// 400: the request is wrong, or asks for what this server does not do.
ApiError bad_request(const std::string& message, std::string param = {}, std::string code = {});

/// 503: the server cannot take it now.
ApiError unavailable(const std::string& message);

/// 500, for what should not happen.
ApiError server_fault(const std::string& message);

/// What an error says, but for the file that it names: clients need not know where a model lies.
std::string without_file(const std::exception& error);

/// Whether there was not enough memory: another time there may be.
bool is_for_want_of_memory(const std::exception& error) noexcept;

/// An error that is not the request's, as the client is told: 503 for want of memory and what is temporary, or else
/// 500.
ApiError fault_of(const std::exception& error);
ApiError fault_of(const struct Ending& ending);

}  // namespace hxq::serve
