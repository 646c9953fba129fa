#ifndef HXQ_C_API_H
#define HXQ_C_API_H

/* The one binary interface of hxq for other languages: plain C, no exceptions, no globals but the error message.
 *
 * Every function that can fail returns an hxq_status; on failure hxq_last_error() has one line for the calling thread,
 * and outputs are as they were. Pointers must not be null unless said otherwise. Matrices are row-major, contiguous
 * unless a stride (in elements) is given; "float" is IEEE binary32, sizes are counts of elements.
 *
 * Handles belong to the caller and are freed with the function named for it (null is allowed there). A handle may be
 * used from any thread. A context is used by one thread at a time; a matrix by any number at once.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define HXQ_API __attribute__((visibility("default")))
#else
#define HXQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a function changes or goes; new functions leave it as it is. */
#define HXQ_C_ABI 1

typedef enum hxq_status {
  HXQ_OK = 0,
  HXQ_INVALID_ARGUMENT = 1, /* the call itself is wrong: a size, a dtype, a name */
  HXQ_BAD_DATA = 2,         /* a file or tensor is not as it should be, or cannot be read or written */
  HXQ_OUT_OF_MEMORY = 3,
  HXQ_INTERNAL = 4
} hxq_status;

/* Element types, in the order of safetensors' names F32 F16 BF16 F64 I64 I32 I16 U16 U8 I8 BOOL. */
typedef enum hxq_dtype {
  HXQ_F32,
  HXQ_F16,
  HXQ_BF16,
  HXQ_F64,
  HXQ_I64,
  HXQ_I32,
  HXQ_I16,
  HXQ_U16,
  HXQ_U8,
  HXQ_I8,
  HXQ_BOOL
} hxq_dtype;

/* A tensor in the caller's memory, contiguous. */
typedef struct hxq_tensor {
  const char* name; /* for matrices: the part ("codebook", "indices", ...); otherwise for messages, may be null */
  int32_t dtype;    /* hxq_dtype */
  int32_t rank;     /* 0 to 4 */
  int64_t shape[4];
  const void* data; /* may be null if a dimension is 0 */
} hxq_tensor;

typedef struct hxq_context hxq_context; /* threads, instruction set and reusable memory of calls */
typedef struct hxq_matrix hxq_matrix;   /* a compressed weight matrix */
typedef struct hxq_encoded hxq_encoded; /* the tensors that stand for a compressed matrix */

/* Called with the name of the tensor at hand (empty at the end) and with bytes done and in all. */
typedef void (*hxq_progress)(const char* tensor, int64_t done, int64_t total, void* user);

/* ---- The library ---- */

HXQ_API int32_t hxq_abi_version(void);
HXQ_API const char* hxq_version(void);
/* One line about the last failure in the calling thread; valid until its next call. */
HXQ_API const char* hxq_last_error(void);
/* Instruction sets with kernels of their own that this processor runs, slowest first: "scalar,avx2,avx512". */
HXQ_API const char* hxq_supported_targets(void);
/* Frees text that a function here returned through char**. */
HXQ_API void hxq_free(char* text);

/* threads: 1 or more; results do not depend on it. target: one of hxq_supported_targets, or null for the best. */
HXQ_API hxq_status hxq_context_create(int32_t threads, const char* target, hxq_context** context);
HXQ_API void hxq_context_destroy(hxq_context* context);

/* ---- Compressed matrices ---- */

/* A matrix over its parts as a checkpoint stores them: codebook, indices and, optionally, sidecar_positions (or
 * sidecar_indices), sidecar_values, svd_U, svd_s, svd_Vt, channel_scales; in any layout the format has. Everything is
 * checked. The indices stay the caller's and must outlive the matrix; all else is copied. rows and cols: the shape; 0,
 * 0 where the indices tell it. name: for messages. */
HXQ_API hxq_status hxq_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows,
                                     int64_t cols, hxq_matrix** matrix);
HXQ_API void hxq_matrix_destroy(hxq_matrix* matrix);

typedef struct hxq_matrix_info {
  int64_t rows;
  int64_t cols;
  int32_t codewords;
  int32_t vector_dim; /* weights per codeword */
  int64_t outliers;
  int64_t rank;  /* of the added low-rank factors */
  int64_t bytes; /* that one product with a vector reads */
} hxq_matrix_info;
HXQ_API hxq_status hxq_matrix_get_info(const hxq_matrix* matrix, hxq_matrix_info* info);

/* y = (x / channel_scales) W^T + bias. x [tokens, cols] and y [tokens, rows], each F32, F16 or BF16 with its row
 * stride; sums are in float. bias [rows] float, or null. */
HXQ_API hxq_status hxq_linear(hxq_context* context, const hxq_matrix* matrix, int64_t tokens, const void* x,
                              int32_t x_dtype, int64_t x_stride, const float* bias, void* y, int32_t y_dtype,
                              int64_t y_stride);

/* dx = g W / channel_scales: the gradient of hxq_linear. g [tokens, rows], dx [tokens, cols], both of `dtype`. */
HXQ_API hxq_status hxq_linear_transposed(hxq_context* context, const hxq_matrix* matrix, int64_t tokens, const void* g,
                                         void* dx, int32_t dtype);

/* gradient [codewords, vector_dim] of the codebook: the sum of g^T (x / channel_scales) over the elements that take
 * each entry. x [tokens, cols], g [tokens, rows], contiguous. */
HXQ_API hxq_status hxq_codebook_gradient(hxq_context* context, const hxq_matrix* matrix, int64_t tokens, const float* x,
                                         const float* g, float* gradient);

/* out [count, cols] of `dtype`: the rows `ids`, decoded. An id outside the matrix is an error. */
HXQ_API hxq_status hxq_gather_rows(hxq_context* context, const hxq_matrix* matrix, int64_t count, const int64_t* ids,
                                   void* out, int32_t dtype);
/* The codebook's gradient for hxq_gather_rows; g [count, cols]. */
HXQ_API hxq_status hxq_gather_gradient(hxq_context* context, const hxq_matrix* matrix, int64_t count,
                                       const int64_t* ids, const float* g, float* gradient);

/* out [rows, cols] of `dtype`: the matrix that x / channel_scales is multiplied with. */
HXQ_API hxq_status hxq_decode(hxq_context* context, const hxq_matrix* matrix, void* out, int32_t dtype);

/* ---- Compression of one matrix ---- */

/* Whether the policy would compress a tensor of that role ("embedding", "projection", "head", ...), shape and dtype. */
HXQ_API hxq_status hxq_would_compress(const char* role, const hxq_tensor* tensor, int32_t* answer);

typedef struct hxq_fidelity {
  double snr_db; /* infinite when every value is reproduced exactly */
  double cosine;
  double max_error;
  int64_t outliers;
} hxq_fidelity;

/* Compresses source, F32, F16 or BF16 [rows, cols], without calibration data. sidecar_fraction: the share of weights
 * kept exactly, 0 to 1; max_codewords: 1 to 256. The result does not depend on threads. fidelity may be null. */
HXQ_API hxq_status hxq_encode(const hxq_tensor* source, double sidecar_fraction, int32_t max_codewords, int32_t threads,
                              hxq_encoded** encoded, hxq_fidelity* fidelity);
HXQ_API size_t hxq_encoded_count(const hxq_encoded* encoded);
/* The i-th part; name and data are valid while `encoded` is. */
HXQ_API hxq_status hxq_encoded_part(const hxq_encoded* encoded, size_t i, hxq_tensor* part);
HXQ_API void hxq_encoded_destroy(hxq_encoded* encoded);

/* ---- Operations along a sequence. All float. ---- */

/* y = silu(causal depthwise convolution of x). x [batch, tokens, channels]: rows x_stride apart, sequences
 * tokens * x_stride apart. weight [channels, width], bias [channels] or null, y contiguous. state
 * [batch, state_rows, channels]: the inputs before x, oldest first, with state_rows = width - 1 or width (the oldest is
 * then only kept); it is moved past x. Null: zeros came before, and nothing is kept. */
HXQ_API hxq_status hxq_causal_conv1d(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                     int64_t width, const float* x, int64_t x_stride, const float* weight,
                                     const float* bias, float* state, int64_t state_rows, float* y);
/* Of a call without state. dx contiguous, dweight and dbias are overwritten. */
HXQ_API hxq_status hxq_causal_conv1d_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                              int64_t width, const float* x, int64_t x_stride, const float* weight,
                                              const float* bias, const float* g, float* dx, float* dweight,
                                              float* dbias);

/* a [state_size, channels] = -exp(A_log^T), for hxq_selective_scan. */
HXQ_API hxq_status hxq_decay_rates(hxq_context* context, const float* a_log, int64_t channels, int64_t state_size,
                                   float* a);

/* Mamba's selective scan with softplus(dt + dt_bias), skip d and gate silu(z). u, dt, y [batch, tokens, channels]
 * contiguous; b, c [batch, tokens, state_size] with rows bc_stride apart; z with rows z_stride apart; sequences lie
 * tokens rows apart. dt_bias [channels] or null; d [channels]. state [batch, state_size, channels] is read and
 * advanced; null: zeros, not kept. */
HXQ_API hxq_status hxq_selective_scan(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                      int64_t state_size, const float* u, const float* dt, const float* dt_bias,
                                      const float* b, const float* c, int64_t bc_stride, const float* z,
                                      int64_t z_stride, const float* a, const float* d, float* state, float* y);

/* Of a call without state. All outputs are contiguous and overwritten: du, ddt, dz [batch, tokens, channels]; db, dc
 * [batch, tokens, state_size]; da_log [channels, state_size]; dd, ddt_bias [channels]. */
HXQ_API hxq_status hxq_selective_scan_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                               int64_t state_size, const float* u, const float* dt,
                                               const float* dt_bias, const float* b, const float* c, int64_t bc_stride,
                                               const float* z, int64_t z_stride, const float* a, const float* d,
                                               const float* g, float* du, float* ddt, float* dz, float* db, float* dc,
                                               float* da_log, float* dd, float* ddt_bias);

/* Mamba-2's recurrence (state-space duality). xbc [batch, tokens, heads * head_dim + 2 * groups * state_size], rows
 * xbc_stride apart: x, B, C side by side. dt [batch, tokens, heads] with rows dt_stride apart is passed through
 * softplus(dt + dt_bias) and clamped to [dt_min, dt_max]. z is the gate, rows z_stride apart; y
 * [batch, tokens, heads * head_dim] contiguous. state [batch, heads, state_size, head_dim] as above. */
HXQ_API hxq_status hxq_ssd(hxq_context* context, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                           int64_t groups, int64_t state_size, const float* xbc, int64_t xbc_stride, const float* dt,
                           int64_t dt_stride, const float* dt_bias, float dt_min, float dt_max, const float* a_log,
                           const float* d, const float* z, int64_t z_stride, float* state, float* y);

/* Of a call without state. Outputs are contiguous and overwritten: dxbc as xbc, dz as y, ddt [batch, tokens, heads],
 * da_log, dd, ddt_bias [heads]. */
HXQ_API hxq_status hxq_ssd_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t heads,
                                    int64_t head_dim, int64_t groups, int64_t state_size, const float* xbc,
                                    int64_t xbc_stride, const float* dt, int64_t dt_stride, const float* dt_bias,
                                    float dt_min, float dt_max, const float* a_log, const float* d, const float* z,
                                    int64_t z_stride, const float* g, float* dxbc, float* ddt, float* dz, float* da_log,
                                    float* dd, float* ddt_bias);

/* ---- Model folders. Text results are JSON, freed with hxq_free. ---- */

/* What the safetensors files (or one folder) hold in compressed form, from their headers alone:
 * {"modules": [{"module": "…", "parameter": "….weight", "shape": [rows, cols],
 *               "parts": {"codebook": {"dtype": "F32", "shape": [256]}, …}}],
 *  "ignored": ["…"]}
 * shape has one number where flat indices do not tell rows from columns. ignored: stored keys that are not tensors of
 * the model and not needed to load it (derived buffers, empty stubs, coded copies of exact tensors). */
HXQ_API hxq_status hxq_stored_modules(const char* const* paths, size_t count, char** json);

typedef struct hxq_compress_options {
  double sidecar_fraction; /* 0 to 0.5 */
  const char* const* keep; /* shell patterns of tensor names to store exactly */
  size_t keep_count;
  const char* const* only; /* if any: compress only tensors that match one of these */
  size_t only_count;
  int32_t threads; /* 0: the cores this process may run on */
  int32_t force;   /* replace a folder that an earlier compression wrote, if nothing was added to it */
} hxq_compress_options;

/* Compresses a model folder into a new one; the receipt as JSON. options and progress may be null. */
HXQ_API hxq_status hxq_compress(const char* source, const char* destination, const hxq_compress_options* options,
                                hxq_progress progress, void* user, char** receipt_json);

/* Checks a model folder, against its dense source if that is not null:
 * {"ok": true, "tensors": n, "compressed": n, "hashes_checked": n, "fidelities_checked": n, "has_receipt": true,
 *  "problems": ["…"]}. A folder with problems is no failure of the call. */
HXQ_API hxq_status hxq_verify(const char* folder, const char* source, hxq_progress progress, void* user, char** json);

/* Writes a compressed folder as a dense one, matrices as dtype F32, F16 or BF16. */
HXQ_API hxq_status hxq_decompress(const char* source, const char* destination, int32_t dtype, hxq_progress progress,
                                  void* user);

/* What a folder stores: {"model_type": "…", "quant_method": "…", "parameters": n, "stored_bytes": n,
 * "tensors": [{"name", "shape", "codec", "dtype", "codewords", "vector_dim", "outliers", "low_rank", "stored_bytes",
 *              "bits_per_weight", "snr_db"}]}. */
HXQ_API hxq_status hxq_inspect(const char* folder, char** json);

/* The stored tensors of one compressed tensor of a folder or file, copied; freed with hxq_encoded_destroy. folder: any
 * model folder or file, or one `….cdnav3` folder, whose tensor it then is (name may be null). Text about it as JSON:
 * {"parameter": "….weight", "shape": [rows, cols]}. */
HXQ_API hxq_status hxq_stored_parts(const char* folder, const char* name, hxq_encoded** parts, char** json);

/* Writes one tensor as `….cdnav3` folder (matrices, compressed) or as exact .npy with its meta file (anything else, or
 * if `exact` is not 0) into the tree `folder`, which is made if need be. source->name is the tensor's. The statistics
 * as JSON, the keys as in the tree's stats.json. */
HXQ_API hxq_status hxq_cdnav3_write(const char* folder, const hxq_tensor* source, int32_t exact,
                                    double sidecar_fraction, int32_t max_codewords, int32_t threads, char** stats_json);

/* One decoded tensor of a folder or .cdnav3 tree: find the shape first (out null), then decode to float.
 * shape has room for 4; *rank is set. */
HXQ_API hxq_status hxq_read_tensor(const char* folder, const char* name, int64_t* shape, int32_t* rank, float* out);

/* ---- Whole layers ---- */

/* A Mamba mixer: in_proj, convolution, x_proj, dt_proj, selective scan with skip and gate, out_proj. inner is the
 * number of columns of out_proj. Biases that are not there are null. */
typedef struct hxq_mamba_mixer {
  const hxq_matrix* in_proj;  /* [2 * inner, hidden] */
  const hxq_matrix* x_proj;   /* [rank + 2 * state_size, inner] */
  const hxq_matrix* dt_proj;  /* [inner, rank] */
  const hxq_matrix* out_proj; /* [hidden, inner] */
  const float* in_proj_bias;  /* [2 * inner] */
  const float* dt_bias;       /* [inner] */
  const float* out_proj_bias; /* [hidden] */
  const float* conv_weight;   /* [inner, width] */
  const float* conv_bias;     /* [inner] */
  const float* a;             /* [state_size, inner], as of hxq_decay_rates */
  const float* d;             /* [inner] */
  int64_t width;
  int64_t state_size;
} hxq_mamba_mixer;

/* x, y [batch, tokens, hidden], contiguous. conv_state [batch, width, inner], the last inputs of the convolution, and
 * ssm_state [batch, state_size, inner] are read and advanced. */
HXQ_API hxq_status hxq_mamba_mixer_forward(hxq_context* context, const hxq_mamba_mixer* mixer, int64_t batch,
                                           int64_t tokens, const float* x, float* conv_state, float* ssm_state,
                                           float* y);

/* ---- Whole models ---- */

typedef struct hxq_model hxq_model; /* an opened language model and one sequence; used by one thread at a time */

/* folder: dense or compressed. threads: 0 for all cores, fewer while other programs hold them up. target: as of
 * hxq_context_create. */
HXQ_API hxq_status hxq_model_open(const char* folder, int32_t threads, const char* target, hxq_model** model);
HXQ_API void hxq_model_destroy(hxq_model* model);
HXQ_API int64_t hxq_model_vocab_size(const hxq_model* model);
/* Continues the sequence with `count` tokens. logits: [vocab_size] of the last one, or with `all` [count, vocab_size];
 * null if none are wanted. */
HXQ_API hxq_status hxq_model_forward(hxq_model* model, size_t count, const int32_t* tokens, int32_t all, float* logits);
/* Starts a new sequence. */
HXQ_API void hxq_model_reset(hxq_model* model);

#ifdef __cplusplus
}
#endif

#endif
