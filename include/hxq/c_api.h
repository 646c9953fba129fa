#ifndef HXQ_C_API_H
#define HXQ_C_API_H

/* The one binary interface of hxq for other languages: plain C, no exceptions, no globals but the error message.
 *
 * Every function that can fail returns an hxq_status; on failure hxq_last_error() has one line for the calling thread,
 * and outputs are as they were. Pointers are not null unless said otherwise, and aligned, but for a tensor's data.
 * Matrices are row-major; "float" is IEEE binary32, sizes and strides count elements. Structs change only together with
 * HXQ_C_ABI. They begin filled with zeros, and a zero or null means the default, where there is one; only
 * hxq_encode_options and hxq_compress_options begin with what their `_init` function fills in.
 *
 * Handles belong to the caller and are freed, in any order, with the function named for them (null is allowed there). A
 * handle may be used from any thread. A context or sequence is used by one thread at a time; a matrix or model by any
 * number at once.
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

/* Grows when a function or struct changes or goes; new functions leave it as it is. */
#define HXQ_C_ABI 7

typedef enum hxq_status {
  HXQ_OK = 0,
  HXQ_INVALID_ARGUMENT = 1, /* the call itself is wrong: a null pointer, a size, a dtype, a name, an option */
  HXQ_BAD_DATA = 2,         /* a file or tensor is not as it should be, or cannot be read or written */
  HXQ_OUT_OF_MEMORY = 3,
  HXQ_INTERNAL = 4,
  HXQ_CANCELLED = 5 /* the progress function asked to stop */
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

/* What tokens are: those of a prompt, or those generated one a step. The arithmetic of a token is that of its phase. */
typedef enum hxq_phase { HXQ_PREFILL, HXQ_DECODE } hxq_phase;

/* Products with HXQ_PREFILL rows: fast may round x, exact does not. HXQ_DECODE rows are computed the same way with
 * either, and may round x, to 13 bits or more (docs/architecture.md). What GPUs round: docs/cuda.md. */
typedef enum hxq_precision { HXQ_FAST, HXQ_EXACT } hxq_precision;

/* A tensor in the caller's memory, contiguous. */
typedef struct hxq_tensor {
  const char* name; /* for matrices: the part ("codebook", "indices", ...); otherwise for messages, may be null */
  int32_t dtype;    /* hxq_dtype */
  int32_t rank;     /* 0 to 4 */
  int64_t shape[4];
  const void* data; /* may be null if a dimension is 0 */
} hxq_tensor;

/* Rows of numbers to read: `stride` from the start of one to that of the next; 0: they follow each other. */
typedef struct hxq_rows {
  const void* data;
  int32_t dtype; /* HXQ_F32, HXQ_F16 or HXQ_BF16 */
  int64_t stride;
} hxq_rows;

/* The same to write. */
typedef struct hxq_output_rows {
  void* data;
  int32_t dtype;
  int64_t stride;
} hxq_output_rows;

/* Rows of floats to read. */
typedef struct hxq_float_rows {
  const float* data;
  int64_t stride;
} hxq_float_rows;

typedef struct hxq_context hxq_context; /* threads, instruction set and reusable memory of calls */
typedef struct hxq_matrix hxq_matrix;   /* a compressed weight matrix */
typedef struct hxq_encoded hxq_encoded; /* the tensors that stand for a compressed matrix */

/* Functions may be null; both are called in the calling thread. report: with the name of the tensor at hand (empty at
 * the end) and with bytes done and in all; any result but 0 stops the work: the call returns HXQ_CANCELLED and leaves
 * nothing behind. notice: with a line that the user should read. All text is UTF-8 and valid during the call. */
typedef struct hxq_progress {
  int32_t (*report)(const char* tensor, int64_t done, int64_t total, void* user);
  void* user;
  void (*notice)(const char* line, void* user);
} hxq_progress;

/* ---- The library ---- */

/* HXQ_C_ABI that the loaded library was built with, and its release, "major.minor.patch". */
HXQ_API int32_t hxq_abi_version(void);
HXQ_API const char* hxq_version(void);
/* sizeof of a struct of this file by its name ("hxq_tensor"), for bindings that state layouts again; 0: unknown. */
HXQ_API size_t hxq_struct_size(const char* name);
/* One line about the last failure in the calling thread; valid until its next call. */
HXQ_API const char* hxq_last_error(void);
/* Instruction sets with kernels of their own that this processor runs, slowest first: "scalar,avx2,avx512,amx". */
HXQ_API const char* hxq_supported_targets(void);
/* Frees text that a function here returned through char**. */
HXQ_API void hxq_free(char* text);

/* threads: 1 to 1024; results do not depend on it. target: one of hxq_supported_targets, or null for the best. */
HXQ_API hxq_status hxq_context_create(int32_t threads, const char* target, hxq_context** context);
HXQ_API void hxq_context_destroy(hxq_context* context);

/* ---- Compressed matrices ---- */

/* A matrix over its parts as a checkpoint stores them, in any layout the format has: of the codec `codebook` codebook,
 * indices and, optionally, sidecar_positions (or sidecar_indices), sidecar_values, svd_U, svd_s, svd_Vt, channel_scales
 * (where there are none: ones); of `grouped` grouped_levels, grouped_indices, grouped_scales, grouped_scale_levels,
 * grouped_shape and, optionally, svd_U, svd_s, svd_Vt. Everything is checked, other parts are refused. Indices,
 * grouped_scales, svd_U and svd_Vt stay the caller's, must outlive the matrix and not change; all else is copied. rows
 * and cols: the shape; 0, 0 where the parts tell it. name: for messages. */
HXQ_API hxq_status hxq_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows,
                                     int64_t cols, hxq_matrix** matrix);
HXQ_API void hxq_matrix_destroy(hxq_matrix* matrix);

typedef struct hxq_matrix_info {
  int64_t rows;
  int64_t cols;
  int32_t codewords;  /* of a grouped matrix: levels */
  int32_t vector_dim; /* weights per codeword; 0 for a grouped matrix */
  int64_t outliers;   /* 0 for a grouped matrix */
  int64_t rank;       /* of the low-rank term, in options and JSON "low_rank"; 0: none */
  int64_t bytes;      /* that one product with a vector reads */
} hxq_matrix_info;
HXQ_API hxq_status hxq_matrix_get_info(const hxq_matrix* matrix, hxq_matrix_info* info);

typedef struct hxq_linear_args {
  int64_t tokens;
  hxq_rows x;        /* [tokens, cols] */
  hxq_output_rows y; /* [tokens, rows]; not x */
  const float* bias; /* [rows], or null */
  int32_t phase;     /* hxq_phase */
  int32_t precision; /* hxq_precision */
} hxq_linear_args;

/* y = (x / channel_scales) W^T + bias; sums are in float. */
HXQ_API hxq_status hxq_linear(hxq_context* context, const hxq_matrix* matrix, const hxq_linear_args* args);
/* dx = g W / channel_scales: the gradient of hxq_linear. g [tokens, rows], dx [tokens, cols]. */
HXQ_API hxq_status hxq_linear_transposed(hxq_context* context, const hxq_matrix* matrix, int64_t tokens,
                                         const hxq_rows* g, const hxq_output_rows* dx);
/* gradient [codewords, vector_dim] of the codebook: the sum of g^T (x / channel_scales) over the elements that take
 * each entry. x [tokens, cols], g [tokens, rows], contiguous. HXQ_INVALID_ARGUMENT for a grouped matrix. */
HXQ_API hxq_status hxq_codebook_gradient(hxq_context* context, const hxq_matrix* matrix, int64_t tokens, const float* x,
                                         const float* g, float* gradient);
/* out [count, cols]: the rows `ids` of W / channel_scales, decoded. An id outside of the matrix is an error. */
HXQ_API hxq_status hxq_gather_rows(hxq_context* context, const hxq_matrix* matrix, int64_t count, const int64_t* ids,
                                   const hxq_output_rows* out);
/* The codebook's gradient for hxq_gather_rows; g [count, cols], contiguous. Not of a grouped matrix, as above. */
HXQ_API hxq_status hxq_gather_gradient(hxq_context* context, const hxq_matrix* matrix, int64_t count,
                                       const int64_t* ids, const float* g, float* gradient);
/* out [rows, cols]: W, decoded, which x / channel_scales is multiplied with. */
HXQ_API hxq_status hxq_decode(hxq_context* context, const hxq_matrix* matrix, const hxq_output_rows* out);

/* ---- Compression of one matrix ---- */

/* Whether the runtime knows the architecture that the text of a config.json names: then tensors have roles. */
HXQ_API hxq_status hxq_knows_architecture(const char* config, int32_t* answer);
/* Whether the policy would compress a tensor of that shape and dtype; its data is not looked at. role: "embedding",
 * "projection" or "head"; null: nothing tells what it is for, so shape and dtype decide alone. profile: one of
 * hxq_profiles; null: the first. */
HXQ_API hxq_status hxq_would_compress(const char* role, const hxq_tensor* tensor, const char* profile, int32_t* answer);

typedef struct hxq_encode_options {
  double sidecar_fraction; /* the share of weights kept exactly, 0 to 1 (of folders: to 0.5); grouped: the default */
  int32_t max_codewords;   /* 1 to 256 */
  int32_t threads;         /* 0: the cores this process may run on; the result does not depend on it */
  const char* profile;     /* one of hxq_profiles; null: the first. max_codewords counts for the first alone */
  int32_t bits;            /* of an index, in place of a profile, where there is a choice; 0: none */
  int64_t group;           /* adjacent weights that share a scale, a multiple of 8; 0: the profile's */
  int32_t low_rank;        /* rank of a term that is stored apart, up to 64; 0: where it pays; -1: none */
} hxq_encode_options;
/* Fills in the defaults: a sidecar of 0.001, 256 codewords, everything else 0. */
HXQ_API void hxq_encode_options_init(hxq_encode_options* options);

/* How matrices can be stored, the default first: [{"name": "g4", "quant_method": "…", "bits": n, "group": n}]; group 0:
 * there are no groups. */
HXQ_API hxq_status hxq_profiles(char** json);

typedef struct hxq_fidelity {
  double snr_db;    /* 10 log10(sum w^2 / sum (w - decoded)^2); infinite when every value is reproduced exactly */
  double cosine;    /* of the angle between both matrices as vectors; 1 if both are zero */
  double max_error; /* the largest |w - decoded| */
  int64_t outliers; /* weights in the sidecar */
} hxq_fidelity;

/* Compresses source, F32, F16 or BF16 [rows, cols]. options: null for the defaults. fidelity may be null. */
HXQ_API hxq_status hxq_encode(const hxq_tensor* source, const hxq_encode_options* options, hxq_encoded** encoded,
                              hxq_fidelity* fidelity);
HXQ_API size_t hxq_encoded_count(const hxq_encoded* encoded);
/* The i-th part; name and data are valid while `encoded` is. */
HXQ_API hxq_status hxq_encoded_part(const hxq_encoded* encoded, size_t i, hxq_tensor* part);
HXQ_API void hxq_encoded_destroy(hxq_encoded* encoded);

/* ---- Operations along a sequence. All float; what has no stride is contiguous. Sequences of a batch lie `tokens` rows
 * apart. A state is read and advanced past the tokens; null: it begins with zeros, and nothing is kept. ---- */

/* Mamba's convolution (arXiv 2312.00752): causal, depthwise, then SiLU. */
typedef struct hxq_conv_args {
  int64_t batch;
  int64_t tokens;
  int64_t channels;
  int64_t width;
  hxq_float_rows x;    /* [batch, tokens, channels] */
  const float* weight; /* [channels, width] */
  const float* bias;   /* [channels], or null */
  float* state;        /* [batch, state_rows, channels]: the inputs before x, oldest first; or null */
  int64_t state_rows;  /* width - 1, or width: the oldest is then only kept */
  float* y;            /* [batch, tokens, channels]; not x */
} hxq_conv_args;
HXQ_API hxq_status hxq_causal_conv1d(hxq_context* context, const hxq_conv_args* args);

/* All but g are overwritten. */
typedef struct hxq_conv_gradients {
  const float* g; /* of y */
  float* dx;      /* [batch, tokens, channels] */
  float* dweight; /* [channels, width] */
  float* dbias;   /* [channels] */
} hxq_conv_gradients;
/* Of a call without state: state and y of `args` are null. */
HXQ_API hxq_status hxq_causal_conv1d_gradient(hxq_context* context, const hxq_conv_args* args,
                                              const hxq_conv_gradients* gradients);

/* a [state_size, channels] = -exp(a_log^T) with a_log [channels, state_size], for hxq_selective_scan. */
HXQ_API hxq_status hxq_decay_rates(hxq_context* context, const float* a_log, int64_t channels, int64_t state_size,
                                   float* a);

/* Mamba's selective scan (arXiv 2312.00752) with softplus(dt + dt_bias), skip d and gate silu(z). */
typedef struct hxq_scan_args {
  int64_t batch;
  int64_t tokens;
  int64_t channels;
  int64_t state_size;
  const float* u;       /* [batch, tokens, channels] */
  const float* dt;      /* [batch, tokens, channels] */
  const float* dt_bias; /* [channels], or null */
  hxq_float_rows b;     /* [batch, tokens, state_size] */
  hxq_float_rows c;     /* the same, with the stride of b */
  hxq_float_rows z;     /* [batch, tokens, channels] */
  const float* a;       /* [state_size, channels], of hxq_decay_rates */
  const float* d;       /* [channels] */
  float* state;         /* [batch, state_size, channels], or null */
  float* y;             /* [batch, tokens, channels]; may be u */
} hxq_scan_args;
HXQ_API hxq_status hxq_selective_scan(hxq_context* context, const hxq_scan_args* args);

/* All but g are overwritten. */
typedef struct hxq_scan_gradients {
  const float* g;  /* of y */
  float* du;       /* [batch, tokens, channels] */
  float* ddt;      /* [batch, tokens, channels] */
  float* dz;       /* [batch, tokens, channels] */
  float* db;       /* [batch, tokens, state_size] */
  float* dc;       /* [batch, tokens, state_size] */
  float* da_log;   /* [channels, state_size] */
  float* dd;       /* [channels] */
  float* ddt_bias; /* [channels] */
} hxq_scan_gradients;
/* Of a call without state: state and y of `args` are null. */
HXQ_API hxq_status hxq_selective_scan_gradient(hxq_context* context, const hxq_scan_args* args,
                                               const hxq_scan_gradients* gradients);

/* Mamba-2's recurrence, state-space duality (arXiv 2405.21060), with softplus(dt + dt_bias) clamped to [dt_min,
 * dt_max], skip d and gate silu(z). */
typedef struct hxq_ssd_args {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t groups; /* a divisor of heads */
  int64_t state_size;
  hxq_float_rows xbc;   /* [batch, tokens, heads * head_dim + 2 * groups * state_size]: x, B, C side by side */
  hxq_float_rows dt;    /* [batch, tokens, heads] */
  hxq_float_rows z;     /* [batch, tokens, heads * head_dim] */
  const float* dt_bias; /* [heads] */
  float dt_min;         /* these two have no default: 0 and infinity leave the time step as it is */
  float dt_max;
  const float* a_log; /* [heads] */
  const float* d;     /* [heads] */
  float* state;       /* [batch, heads, state_size, head_dim], or null */
  float* y;           /* [batch, tokens, heads * head_dim] */
} hxq_ssd_args;
HXQ_API hxq_status hxq_ssd(hxq_context* context, const hxq_ssd_args* args);

/* All but g are overwritten. */
typedef struct hxq_ssd_gradients {
  const float* g;  /* of y */
  float* dxbc;     /* as xbc, contiguous */
  float* ddt;      /* [batch, tokens, heads] */
  float* dz;       /* [batch, tokens, heads * head_dim] */
  float* da_log;   /* [heads] */
  float* dd;       /* [heads] */
  float* ddt_bias; /* [heads] */
} hxq_ssd_gradients;
/* Of a call without state: state and y of `args` are null. */
HXQ_API hxq_status hxq_ssd_gradient(hxq_context* context, const hxq_ssd_args* args, const hxq_ssd_gradients* gradients);

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
  const float* a;             /* [state_size, inner], of hxq_decay_rates */
  const float* d;             /* [inner] */
  int64_t width;
  int64_t state_size;
} hxq_mamba_mixer;

typedef struct hxq_mamba_mixer_args {
  int64_t batch;
  int64_t tokens;
  const float* x;    /* [batch, tokens, hidden] */
  float* conv_state; /* [batch, width, inner], the last inputs of the convolution, advanced */
  float* ssm_state;  /* [batch, state_size, inner], advanced */
  float* y;          /* [batch, tokens, hidden]; not x */
  int32_t phase;     /* hxq_phase */
  int32_t precision; /* hxq_precision */
} hxq_mamba_mixer_args;
HXQ_API hxq_status hxq_mamba_mixer_forward(hxq_context* context, const hxq_mamba_mixer* mixer,
                                           const hxq_mamba_mixer_args* args);

/* ---- Whole models ---- */

typedef struct hxq_model hxq_model;       /* an opened language model; its weights stay mapped and do not change */
typedef struct hxq_sequence hxq_sequence; /* what the model remembers of one text */

typedef struct hxq_model_options {
  int32_t threads;    /* 0: all cores, fewer while other programs hold them up; at most 1024 */
  const char* target; /* one of hxq_supported_targets, or null for the best */
  int32_t kv_cache;   /* how attention keeps keys and values: HXQ_F32, or HXQ_F16 at half the memory */
  int32_t precision;  /* hxq_precision */
  const char* device; /* "cpu", or an NVIDIA GPU: "cuda", "cuda:N"; null: "cpu" */
} hxq_model_options;

/* folder: dense or compressed. options may be null. */
HXQ_API hxq_status hxq_model_open(const char* folder, const hxq_model_options* options, hxq_model** model);
/* The model that `config`, the text of a config.json, describes, over tensors in the caller's memory under the names
 * that safetensors files use (all have one here). Matrices are run where they lie: their memory must outlive the model
 * and its sequences, and stay as it is. All else is copied. options may be null. */
HXQ_API hxq_status hxq_model_create(const char* config, const hxq_tensor* tensors, size_t count,
                                    const hxq_model_options* options, hxq_model** model);
HXQ_API void hxq_model_destroy(hxq_model* model);

typedef struct hxq_model_info {
  int64_t vocab_size;
  int64_t hidden_size;
  int64_t blocks;
  int64_t context_length;      /* tokens a sequence may have; 0: no limit */
  int64_t parameters;          /* distinct stored ones */
  int64_t compressed_matrices; /* that run in compressed form */
  int64_t dense_matrices;
  int64_t bytes_per_token; /* of weights that one decode step reads */
} hxq_model_info;
HXQ_API hxq_status hxq_model_get_info(const hxq_model* model, hxq_model_info* info);

HXQ_API hxq_status hxq_sequence_create(const hxq_model* model, hxq_sequence** sequence);
HXQ_API void hxq_sequence_destroy(hxq_sequence* sequence);
/* Forgets everything: the next token is the first. */
HXQ_API hxq_status hxq_sequence_reset(hxq_sequence* sequence);
/* Tokens seen so far; -1 if sequence is null. */
HXQ_API int64_t hxq_sequence_position(const hxq_sequence* sequence);

/* What a block of a model can remember of a sequence: a convolution's last inputs [width - 1, channels], oldest first;
 * the state of Mamba [state_size, channels] or Mamba-2 [heads, state_size, head_dim]; keys, turned by their rotary
 * positions, and values [kv_heads, positions, head_dim]. */
typedef enum hxq_state { HXQ_STATE_CONV, HXQ_STATE_SSM, HXQ_STATE_KEYS, HXQ_STATE_VALUES } hxq_state;
/* A copy of what the block of that number, from 0, remembers: find the shape first (out null, count 0), then copy
 * `count` floats. shape has room for 4; *rank is 0 where a block remembers nothing of that kind. */
HXQ_API hxq_status hxq_sequence_read(const hxq_sequence* sequence, int64_t block, int32_t state, int64_t* shape,
                                     int32_t* rank, float* out, int64_t count);

/* Which logits of a segment are wanted. */
typedef enum hxq_logits { HXQ_LOGITS_NONE, HXQ_LOGITS_LAST, HXQ_LOGITS_ALL } hxq_logits;

/* The next tokens of one sequence. */
typedef struct hxq_segment {
  hxq_sequence* sequence;
  const int32_t* tokens; /* [count], each less than vocab_size */
  int64_t count;         /* 1 or more; in C++ Segment::tokens */
  int32_t phase;         /* hxq_phase */
  int32_t wanted;        /* hxq_logits; in C++ Segment::logits */
  float* logits;         /* [vocab_size] or [count, vocab_size]; null if none are wanted */
  int64_t end;           /* the sequence's length after its whole prompt, where that comes in several calls and rotary
                            positions scale with the length; 0: after this segment */
} hxq_segment;

/* Continues one or more sequences, each with one segment. A token's logits do not depend on what else is in the call.
 * All segments are checked before the first is run. */
HXQ_API hxq_status hxq_forward(const hxq_model* model, const hxq_segment* segments, size_t count);

/* ---- Model folders. Text results are JSON, freed with hxq_free. Options and progress may be null. ---- */

/* What the safetensors files (or one folder) hold in compressed form, from their headers alone:
 * {"modules": [{"module": "…", "parameter": "….weight", "shape": [rows, cols], "codec": "codebook",
 *               "parts": {"codebook": {"dtype": "F32", "shape": [256]}, …}}],
 *  "ignored": ["…"]}
 * shape has one number where flat indices do not tell rows from columns. ignored: stored keys that are not tensors of
 * the model and not needed to load it (derived buffers, empty stubs, coded copies of exact tensors). */
HXQ_API hxq_status hxq_stored_modules(const char* const* paths, size_t count, char** json);

/* Other bits of an index for the matrices of one role. */
typedef struct hxq_role_bits {
  const char* role; /* "embedding", "projection" or "head" */
  int32_t bits;
} hxq_role_bits;

typedef struct hxq_compress_options {
  double sidecar_fraction; /* the share of weights kept exactly, 0 to 0.5; grouped: the default */
  const char* const* keep; /* shell patterns of tensor names to store exactly */
  size_t keep_count;
  const char* const* only; /* if any: compress only tensors that match one of these */
  size_t only_count;
  int32_t threads;         /* 0: the cores this process may run on */
  int32_t force;           /* replace a folder that an earlier compression wrote, if nothing was added to it */
  int32_t resume;          /* take up what a killed compression of the same source to the same destination has done */
  int64_t max_shard_bytes; /* of tensors in one file; more become shards with an index; 0: 5 000 000 000 */
  const char* profile;     /* one of hxq_profiles; null: the first */
  int32_t bits;            /* of an index, in place of a profile, where there is a choice; 0: none */
  int64_t group;           /* adjacent weights that share a scale, a multiple of 8; 0: the profile's */
  int32_t low_rank;        /* rank of a term that is stored apart, up to 64; 0: where it pays; -1: none */
  const hxq_role_bits* bits_for; /* each role once, where there is a choice of bits */
  size_t bits_for_count;
} hxq_compress_options;
/* Fills in the defaults: a sidecar of 0.001, everything else 0. */
HXQ_API void hxq_compress_options_init(hxq_compress_options* options);

/* Compresses a model folder into a new one; the receipt (docs/format.md) as JSON. */
HXQ_API hxq_status hxq_compress(const char* source, const char* destination, const hxq_compress_options* options,
                                const hxq_progress* progress, char** receipt_json);

/* Checks a model folder, against its dense source if that is not null:
 * {"ok": true, "tensors": n, "compressed": n, "has_receipt": true, "matrices_checked": n, "hashes_checked": n,
 *  "fidelities_checked": n, "exact_compared": n, "exact_converted": n, "worst_snr_db": x or null, "worst_tensor": "…",
 *  "median_snr_db": x or null, "fidelities": [{"name": "…", "snr_db": x or null}, …], "problems": ["…"]}
 * A folder with problems is no failure of the call. */
HXQ_API hxq_status hxq_verify(const char* folder, const char* source, const hxq_progress* progress, char** json);

/* Writes a compressed folder as a dense one, matrices as dtype F32, F16 or BF16. */
HXQ_API hxq_status hxq_decompress(const char* source, const char* destination, int32_t dtype,
                                  const hxq_progress* progress);

/* What a folder stores, from headers alone:
 * {"model_type": "…", "quant_method": "…", "parameters": n, "stored_bytes": n,
 *  "tensors": [{"name": "…", "shape": [n, …], "role": "…", "codec": "…", "dtype": "…", "codewords": n, "vector_dim": n,
 *               "low_rank": n, "outliers": n, "stored_bytes": n, "bits_per_weight": x, "snr_db": x or null}],
 *  "other_keys": ["…"], "faults": ["…"], "receipt_fault": "…"}
 * Codec "grouped" has "group" in place of vector_dim, "exact" neither, nor codewords and low_rank. bits_per_weight: of
 * stored_bytes. other_keys: stored keys that are no tensors of the model. faults: where the tensors are not those that
 * config.json describes. receipt_fault: why the receipt could not be read; empty if it could, or there is none. */
HXQ_API hxq_status hxq_inspect(const char* folder, char** json);

/* The stored tensors of one compressed tensor of a folder or file, copied; freed with hxq_encoded_destroy. folder: any
 * model folder or file, or one `….cdnav3` folder, whose tensor it then is (name may be null). Text about it as JSON:
 * {"parameter": "….weight", "shape": [rows, cols]}. */
HXQ_API hxq_status hxq_stored_parts(const char* folder, const char* name, hxq_encoded** parts, char** json);

/* Writes one tensor as `….cdnav3` folder (matrices, compressed) or as exact .npy with its meta file (anything else, or
 * if `exact` is not 0) into the tree `folder`, which is made if need be. source->name is the tensor's. The statistics
 * as JSON, the keys as in the tree's stats.json. */
HXQ_API hxq_status hxq_cdnav3_write(const char* folder, const hxq_tensor* source, int32_t exact,
                                    const hxq_encode_options* options, char** stats_json);

/* One decoded tensor of a folder or .cdnav3 tree: find the shape first (out null, count 0), then decode to `count`
 * floats. shape has room for 4; *rank is set. */
HXQ_API hxq_status hxq_read_tensor(const char* folder, const char* name, int64_t* shape, int32_t* rank, float* out,
                                   int64_t count);

#ifdef __cplusplus
}
#endif

#endif
