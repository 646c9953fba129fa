// Renders chat templates for parity.py: each line of stdin is {"template": ..., "context": {...}}, each line of stdout
// {"text": ...} or {"error": ...}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "hxq/error.h"
#include "jinja/template.h"

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const auto request = nlohmann::ordered_json::parse(line);
    nlohmann::json answer;
    try {
      const hxq::jinja::Template chat_template(request["template"].get<std::string>(), "test.jinja");
      answer["text"] = chat_template.render(request["context"]);
    } catch (const hxq::Error& error) {
      answer["error"] = error.what();
    }
    std::cout << answer.dump() << std::endl;
  }
}
