#ifndef HXQ_CUDA_C_API_H
#define HXQ_CUDA_C_API_H

#include "hxq/c_api.h"

/* Operations of c_api.h on an NVIDIA GPU, for programs that have memory and streams there of their own. What
 * libhxq_cuda.so holds is opened when it is first needed. Nothing is allocated on the GPU and nothing waited for, so
 * calls can be captured in a graph; the results are there when the stream has come so far. Addresses in arguments are
 * those of the GPU's memory unless said otherwise; what the GPU finds in it is not checked. */

#ifdef __cplusplus
extern "C" {
#endif

/* Where a call runs. */
typedef struct hxq_cuda_call {
  int32_t device;  /* N of cuda:N */
  int32_t measure; /* not 0: nothing is launched; workspace_bytes becomes what the same call needs */
  void* stream;    /* a cudaStream_t of that device; null: the default one */
  void* workspace; /* aligned to 256 bytes; its contents mean nothing before and after; null: none */
  int64_t workspace_bytes;
} hxq_cuda_call;

/* HXQ_OK where the GPU of that number can be used; otherwise the message says what is missing. */
HXQ_API hxq_status hxq_cuda_check(int32_t device);

/* A compressed matrix for GPUs. parts as for hxq_matrix_create, in host memory, read during the call alone; of codecs
 * that have no kernels for GPUs: an error. */
typedef struct hxq_cuda_matrix hxq_cuda_matrix;
HXQ_API hxq_status hxq_cuda_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows,
                                          int64_t cols, hxq_cuda_matrix** matrix);
HXQ_API void hxq_cuda_matrix_destroy(hxq_cuda_matrix* matrix);
/* What has to be on the GPU beside the indices: host memory, valid until the matrix is placed or destroyed. */
HXQ_API hxq_status hxq_cuda_matrix_arrays(const hxq_cuda_matrix* matrix, const void** data, size_t* bytes);
/* Where both lie there: the indices (of codec grouped: grouped_indices) as they are stored, readable up to the next
 * multiple of 4 bytes, and the arrays, aligned to 256 bytes. To be done once, before the matrix is used; the memory
 * must outlive it, and no kernel may write it just before a product in the same stream, which reads it early. */
HXQ_API hxq_status hxq_cuda_matrix_place(hxq_cuda_matrix* matrix, const void* indices, const void* arrays);

/* As hxq_linear; the phase does not matter. */
HXQ_API hxq_status hxq_cuda_linear(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, const hxq_linear_args* args);
/* As hxq_linear_transposed. */
HXQ_API hxq_status hxq_cuda_linear_transposed(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                              const hxq_rows* g, const hxq_output_rows* dx);
/* As hxq_codebook_gradient; the order of the sums is not fixed. */
HXQ_API hxq_status hxq_cuda_codebook_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                              const float* x, const float* g, float* gradient);
/* As hxq_gather_rows; ids are in [0, rows), or negative for a row of zeros. */
HXQ_API hxq_status hxq_cuda_gather_rows(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t count,
                                        const int32_t* ids, const hxq_output_rows* out);
/* As hxq_gather_gradient with such ids; the order of the sums is not fixed. */
HXQ_API hxq_status hxq_cuda_gather_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t count,
                                            const int32_t* ids, const float* g, float* gradient);
/* As hxq_decode. */
HXQ_API hxq_status hxq_cuda_decode(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, const hxq_output_rows* out);

/* As the functions of c_api.h of the same names. */
HXQ_API hxq_status hxq_cuda_causal_conv1d(hxq_cuda_call* call, const hxq_conv_args* args);
HXQ_API hxq_status hxq_cuda_causal_conv1d_gradient(hxq_cuda_call* call, const hxq_conv_args* args,
                                                   const hxq_conv_gradients* gradients);
HXQ_API hxq_status hxq_cuda_selective_scan(hxq_cuda_call* call, const hxq_scan_args* args);
HXQ_API hxq_status hxq_cuda_selective_scan_gradient(hxq_cuda_call* call, const hxq_scan_args* args,
                                                    const hxq_scan_gradients* gradients);
HXQ_API hxq_status hxq_cuda_ssd(hxq_cuda_call* call, const hxq_ssd_args* args);
HXQ_API hxq_status hxq_cuda_ssd_gradient(hxq_cuda_call* call, const hxq_ssd_args* args,
                                         const hxq_ssd_gradients* gradients);

/* As hxq_model_create, where options->device names a GPU that has tensors in its memory already: on_gpu[i] is where the
 * bytes of tensors[i] lie there, or null. Matrices are run there, and that memory must outlive the model and stay as it
 * is; all else is copied. The tensors in the host's memory are read during the call alone. */
HXQ_API hxq_status hxq_cuda_model_create(const char* config, const hxq_tensor* tensors, const void* const* on_gpu,
                                         size_t count, const hxq_model_options* options, hxq_model** model);

#ifdef __cplusplus
}
#endif

#endif
