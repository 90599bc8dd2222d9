// Which rows of a class table's gradient a block has.
#pragma once

#include "cuda/launch.h"
#include "cuda/pair.h"

namespace bll::cuda {

// Rows begin..end of TableShare::order: a section of one class's, for one run of columns.
struct TablePart {
  uint32_t chunk;
  int64_t label, section, begin, end;
  bool exists;  // false: the rows without a class
};

// `number` counts the blocks, or clusters, of the launch.
__device__ __forceinline__ TablePart part_of(const TableShare& t, int64_t classes,
                                             uint32_t number) {
  TablePart part;
  part.chunk = number % t.chunks;
  const uint32_t owner = number / t.chunks, owners = static_cast<uint32_t>(classes) + 1;
  part.label = owner % owners, part.section = owner / owners;
  part.exists = part.label < classes;
  const int64_t first = t.start[part.label], last = t.start[part.label + 1];
  const int64_t share = ceil_div(last - first, t.sections);
  part.begin = first + part.section * share;
  part.end = part.begin + share < last ? part.begin + share : last;
  return part;
}

}  // namespace bll::cuda
