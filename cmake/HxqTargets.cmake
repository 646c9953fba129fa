# Headers that most sources include, and that take longer to read than those: hxq and the first group of tests compile
# them once, and the others use what these have. Sources name them all the same (tests/structure/check_includes.py, and
# -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without). Flags of a source's own that change its code need SKIP_PRECOMPILE_HEADERS.
set(HXQ_COMMON_HEADERS <algorithm> <cmath> <filesystem> <fmt/format.h> <functional> <map> <memory>
                       <optional> <span> <string> <vector>)

# A library of the project: include/ is public, src/ is for the project itself.
function(hxq_library name)
  add_library(${name})
  add_library(hxq::${name} ALIAS ${name})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
                                     PRIVATE ${PROJECT_SOURCE_DIR}/src)
  hxq_compile_options(${name})
  hxq_compile_together(${name})
  set_target_properties(${name} PROPERTIES DEFINE_SYMBOL "")  # precompiled headers are for one set of macros
  if(name STREQUAL hxq)
    target_precompile_headers(hxq PRIVATE ${HXQ_COMMON_HEADERS})
  else()
    target_precompile_headers(${name} REUSE_FROM hxq)
  endif()
endfunction()

# Warnings and sanitizers, the same for every target.
function(hxq_compile_options name)
  target_compile_options(${name} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor)
  if(HXQ_SANITIZE)
    target_compile_options(${name} PRIVATE -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
    target_link_options(${name} PUBLIC -fsanitize=address,undefined)
  elseif(HXQ_SANITIZE_THREADS)
    target_compile_options(${name} PRIVATE -fsanitize=thread)
    target_link_options(${name} PUBLIC -fsanitize=thread)
  endif()
endfunction()

# For tests, which are compiled more often than they loop.
function(hxq_compile_quickly name)
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
endfunction()

# Compiles the sources of a target several at a time, which takes half as long as one by one: headers of other projects take
# longer than what includes them. Names in their unnamed namespaces must then differ from file to file. Flags of a source's
# own keep it out of this.
function(hxq_compile_together name)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ${HXQ_UNITY})
  # Unnamed namespaces are no longer those of the file that the compiler was given.
  target_compile_options(${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
endfunction()

# hxq_add_tests(io a_test.cc b_test.cc): one executable io_tests, each of its cases a test of ctest. With PROCESSORS 2, one
# that takes as many from other tests: threads that wait for each other take many times as long where they share processors.
# With TOGETHER, hxq_compile_together.
# Test data that is not in the repository is looked for in HXQ_SHARED_DIR (the environment) or ../shared.
function(hxq_add_tests group)
  if(NOT HXQ_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 tests "TOGETHER" "PROCESSORS" "")
  if(NOT tests_PROCESSORS)
    set(tests_PROCESSORS 1)
  endif()
  add_executable(${group}_tests ${tests_UNPARSED_ARGUMENTS})
  target_include_directories(${group}_tests PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${group}_tests PRIVATE hxq hxq_text hxq_compressor GTest::gtest_main fmt::fmt nlohmann_json::nlohmann_json)
  target_compile_definitions(${group}_tests PRIVATE HXQ_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  hxq_compile_options(${group}_tests)
  hxq_compile_quickly(${group}_tests)
  if(group STREQUAL io)
    target_precompile_headers(io_tests PRIVATE ${HXQ_COMMON_HEADERS} <gtest/gtest.h>)
  else()
    target_precompile_headers(${group}_tests REUSE_FROM io_tests)
  endif()
  if(tests_TOGETHER)
    hxq_compile_together(${group}_tests)
  endif()
  set_target_properties(${group}_tests PROPERTIES BUILD_RPATH ${PROJECT_BINARY_DIR})  # where libhxq_cuda.so is
  gtest_discover_tests(${group}_tests TEST_PREFIX "${group}." DISCOVERY_TIMEOUT 60
    PROPERTIES PROCESSORS ${tests_PROCESSORS})
endfunction()
