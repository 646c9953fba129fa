# Kernels for NVIDIA GPUs. Without nvcc the build says so and goes on: everything else works as before.
if(HXQ_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(HXQ_CUDA_ARCHITECTURES "80-real;90a-real" CACHE STRING "GPU architectures of libhxq_cuda.so")
    set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})  # beside the command, which opens it
    add_subdirectory(src/kernels/cuda)
    unset(CMAKE_LIBRARY_OUTPUT_DIRECTORY)
  else()
    message(STATUS "No nvcc: libhxq_cuda.so is not built (CMAKE_CUDA_COMPILER names one)")
  endif()
endif()
