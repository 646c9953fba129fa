/* c_api.h and cuda_c_api.h are C99, and what they declare can be called from it. */
#include "hxq/cuda_c_api.h"

int hxq_header_abi(void);
hxq_status hxq_header_products(const char* name, const hxq_tensor* parts, size_t count, const float* x, float* y);

int hxq_header_abi(void) { return HXQ_C_ABI == hxq_abi_version() ? HXQ_C_ABI : -1; }

/* y = x W^T for one token, as a C program writes it. */
hxq_status hxq_header_products(const char* name, const hxq_tensor* parts, size_t count, const float* x, float* y) {
  hxq_context* context = NULL;
  hxq_matrix* matrix = NULL;
  hxq_linear_args args = {0};
  hxq_status status = hxq_context_create(1, NULL, &context);
  if (status == HXQ_OK) status = hxq_matrix_create(name, parts, count, 0, 0, &matrix);
  args.tokens = 1;
  args.x.data = x;
  args.y.data = y;
  args.precision = HXQ_EXACT;
  args.phase = HXQ_DECODE;
  if (status == HXQ_OK) status = hxq_linear(context, matrix, &args);
  hxq_matrix_destroy(matrix);
  hxq_context_destroy(context);
  return status;
}
