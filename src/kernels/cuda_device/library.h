#pragma once

#include "kernels/cuda/table.h"

namespace hxq::kernels {

/// What libhxq_cuda.so offers. It is looked for beside the program or library that this code is in, in the `lib` folder
/// beside that one's, and then where the loader looks; the first call opens it. Throws `Error` that says in one line
/// what is missing.
const cuda::Kernels& cuda_library();

/// Throws `Error`, in one line, unless there is a GPU of that number that the kernels run on.
void check_gpu(const cuda::Kernels& kernels, int number);

}  // namespace hxq::kernels
