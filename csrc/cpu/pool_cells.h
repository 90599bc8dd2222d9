// The cells of adaptive pooling along one axis, as in adaptive average pooling: cell i covers
// [floor(i * size / grid), ceil((i + 1) * size / grid)). Neighbours overlap when grid does not
// divide size, and cells repeat when grid > size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace bll::cpu {

struct Cells {
  struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };

  std::vector<Range> cell;   // positions of each cell
  std::vector<Range> cover;  // cells that contain each position
  int64_t longest = 0;
  int64_t phases = 1;  // cells i, i + phases, i + 2 * phases, ... do not overlap

  Cells(int64_t size, int64_t grid) {
    for (int64_t i = 0; i < grid; ++i) {
      cell.push_back({i * size / grid, ((i + 1) * size + grid - 1) / grid});
      longest = std::max(longest, cell.back().size());
    }
    while (overlap()) ++phases;
    for (int64_t position = 0, first = 0; position < size; ++position) {
      while (cell[first].end <= position) ++first;
      int64_t last = first + 1;
      while (last < grid && cell[last].begin <= position) ++last;
      cover.push_back({first, last});
    }
  }

 private:
  bool overlap() const {
    for (size_t i = 0; i + phases < cell.size(); ++i) {
      if (cell[i + phases].begin < cell[i].end) return true;
    }
    return false;
  }
};

}  // namespace bll::cpu
