#include <fstream>
#include <iterator>
#include <regex>
#include <thread>

#include "capi_test_support.h"
#include "hxq/tensor.h"
#include "hxq/version.h"
#include "kernels/cpu_context.h"

extern "C" int hxq_header_abi(void);

namespace hxq::testing {
namespace {

std::string header_text(const char* header = "c_api.h") {
  std::ifstream file(std::string(HXQ_SOURCE_DIR "/include/hxq/") + header);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Library, VersionsAreThoseOfTheHeader) {
  EXPECT_EQ(hxq_abi_version(), HXQ_C_ABI);
  EXPECT_EQ(hxq_header_abi(), HXQ_C_ABI);
  EXPECT_STREQ(hxq_version(), kVersion);
}

TEST(Library, KnowsTheSizeOfEveryStruct) {
  const std::string header = header_text() + header_text("cuda_c_api.h");
  const std::regex pattern(R"(typedef struct (hxq_\w+) \{)");
  int count = 0;
  for (std::sregex_iterator it(header.begin(), header.end(), pattern), end; it != end; ++it, ++count) {
    EXPECT_GT(hxq_struct_size((*it)[1].str().c_str()), 0u) << (*it)[1];
  }
  EXPECT_GE(count, 21);
  EXPECT_EQ(hxq_struct_size("hxq_linear_args"), sizeof(hxq_linear_args));
  EXPECT_EQ(hxq_struct_size("hxq_nothing"), 0u);
  EXPECT_EQ(hxq_struct_size(nullptr), 0u);
}

TEST(Library, DtypesAreNamedAsInSafetensors) {
  std::smatch found;
  const std::string header = header_text();
  ASSERT_TRUE(std::regex_search(header, found, std::regex(R"(safetensors' names ([A-Z0-9 ]+)\.)")));
  std::string names;
  for (int32_t dtype = HXQ_F32; dtype <= HXQ_BOOL; ++dtype) {
    if (!names.empty()) names += ' ';
    names += name_of(static_cast<DType>(dtype));
  }
  EXPECT_EQ(found[1].str(), names);
}

TEST(Library, TargetsAreThoseOfTheKernels) {
  std::string names;
  for (const Target target : kernels::supported_targets()) {
    if (!names.empty()) names += ',';
    names += name_of(target);
    EXPECT_NE(make_context(1, std::string(name_of(target)).c_str()), nullptr);
  }
  EXPECT_EQ(hxq_supported_targets(), names);
}

TEST(Library, ErrorsBelongToTheThread) {
  expect_invalid(hxq_context_create(0, nullptr, nullptr), "context is null");
  std::thread([] { EXPECT_STREQ(hxq_last_error(), ""); }).join();
}

TEST(Library, DestroyersTakeNull) {
  hxq_context_destroy(nullptr);
  hxq_matrix_destroy(nullptr);
  hxq_encoded_destroy(nullptr);
  hxq_model_destroy(nullptr);
  hxq_sequence_destroy(nullptr);
  hxq_free(nullptr);
  EXPECT_EQ(hxq_encoded_count(nullptr), 0u);
  EXPECT_EQ(hxq_sequence_position(nullptr), -1);
}

}  // namespace
}  // namespace hxq::testing
