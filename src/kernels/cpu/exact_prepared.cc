#include "kernels/cpu/exact_prepared.h"

#include "kernels/cpu/ops.h"

namespace hxq::kernels::cpu {
namespace {

class PreparedExact final : public CpuMatrix {
 public:
  explicit PreparedExact(const ExactMatrix& stored) noexcept
      : CpuMatrix(stored),
        view_{.rows = stored.rows, .cols = stored.cols, .dtype = stored.dtype, .data = stored.bytes.data()},
        bytes_(stored.bytes_read()) {}

  int64_t bytes_read() const noexcept override { return bytes_; }

  void linear(const LinearArgs& args, const CpuContext& context) const noexcept override {
    kernels::linear(view_, args, context);
  }

  void gather_rows(const int32_t* ids, int64_t count, float* out, const CpuContext& context) const noexcept override {
    kernels::gather_rows(view_, ids, count, out, context);
  }

  void decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept override {
    if (context.measures) return;
    const Range mine = context.team.share(end - begin);
    ops_of(context.target)
        .decode_dense(view_, begin + mine.begin, mine.end - mine.begin, 0, cols(), out + mine.begin * cols(), cols());
    context.team.barrier();
  }

 private:
  DenseMatrix view_;
  int64_t bytes_;
};

}  // namespace

std::unique_ptr<const CpuMatrix> prepare_exact(std::unique_ptr<const StoredMatrix> stored) {
  return std::make_unique<PreparedExact>(static_cast<const ExactMatrix&>(*stored));
}

}  // namespace hxq::kernels::cpu
