#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace hxq::tools {

enum class Align { left, right };

/// A text table with columns as wide as their widest cell (ASCII).
class Table {
 public:
  struct Column {
    std::string title;
    Align align;
  };

  explicit Table(std::vector<Column> columns);

  void add(std::vector<std::string> cells);

  /// Lines with a header, each ending in a newline.
  std::string text() const;

 private:
  std::string line(const std::vector<std::string>& cells, const std::vector<size_t>& widths) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace hxq::tools
